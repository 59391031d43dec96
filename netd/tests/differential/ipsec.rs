//! Random IPsec policies.

use netd_common::abi::{IpsecPolicy, config_flag, ipsec_action};
use netd_common::wire::{Address as _, V4, V6, proto};

use super::random::Random;
use super::scenario::{LabFamily, Scenario};

impl Scenario {
    /// Other policies, or none.
    pub fn change_ipsec(&mut self, random: &mut Random) {
        self.model.v4.ipsec = policies::<V4>(random);
        self.model.v6.ipsec = policies::<V6>(random);
        let any = !self.model.v4.ipsec.is_empty() || !self.model.v6.ipsec.is_empty();
        self.model.config.flags &= !config_flag::IPSEC;
        self.model.config.flags |= if any { config_flag::IPSEC } else { 0 };
    }
}

fn policies<F: LabFamily>(random: &mut Random) -> Vec<IpsecPolicy<F::Addr>> {
    (0..random.below(5)).map(|_| policy::<F>(random)).collect()
}

fn policy<F: LabFamily>(random: &mut Random) -> IpsecPolicy<F::Addr> {
    let mask = |bytes: usize| {
        let mut mask = [0; 16];
        mask[..bytes].fill(0xff);
        F::Addr::from_padded(&mask)
    };
    let (few, whole) = (if F::VERSION == 4 { 2 } else { 4 }, F::ADDR_LEN as usize);
    let mut row = IpsecPolicy {
        dst: *random.pick(&F::world()),
        dst_mask: mask(*random.pick(&[few, whole])),
        priority: random.below(4) as u32,
        action: *random.pick(&[
            ipsec_action::FREE,
            ipsec_action::BYPASS,
            ipsec_action::REFUSE,
            ipsec_action::REFUSE,
        ]),
        ..IpsecPolicy::default()
    };
    if random.chance(50) {
        row.src = *random.pick(&F::host());
        row.src_mask = mask(*random.pick(&[few, whole]));
    }
    if random.chance(20) {
        row.proto = *random.pick(&[proto::TCP, proto::UDP]);
    }
    if random.chance(20) {
        row.dport = 80u16.to_be_bytes();
        row.dport_mask = [0xff; 2];
    }
    if random.chance(10) {
        row.sport = 40000u16.to_be_bytes();
        row.sport_mask = [0xff, 0xf0];
    }
    if random.chance(10) {
        row.ifindex = random.below(40) as u32;
    }
    row
}
