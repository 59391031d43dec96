//! What the MTU concerns: packets that may not be fragmented, and the options of SYN.

use netd_common::model::frame::Frame;
use netd_common::wire::proto;

use super::random::Random;
use super::scenario::LabFamily;

const SYN: u8 = 2;

/// With "don't fragment", now and then without, and with TCP options.
pub fn dress<F: LabFamily>(random: &mut Random, frame: Frame<F::Addr>) -> Frame<F::Addr> {
    let mut frame = frame;
    if random.chance(25) && matches!(frame.proto, proto::TCP | proto::UDP) {
        let length = random.between(1381, 1500) as u16;
        if F::VERSION == 4 && random.chance(80) {
            frame.options = vec![1; 4];
        }
        frame.l4.resize(usize::from(length), 0x77);
        if frame.proto == proto::UDP {
            frame.l4[4..6].copy_from_slice(&length.to_be_bytes());
        }
    }
    let frame = if frame.fragment == 0 && random.chance(50) {
        frame.whole()
    } else {
        frame
    };
    if frame.proto != proto::TCP || frame.l4[12] != 0x50 {
        return frame;
    }
    let share = if frame.l4[13] & SYN != 0 { 80 } else { 5 };
    if random.chance(share) {
        frame.tcp_options(&options(random))
    } else {
        frame
    }
}

/// Options with an MSS at any place, and some that contradict themselves.
fn options(random: &mut Random) -> Vec<u8> {
    let mss = (*random.pick(&[0, 536, 540, 560, 1220, 1240, 1360, 1440, 1460, 8960, 0xffff])
        as u16)
        .to_be_bytes();
    let mss = [2, 4, mss[0], mss[1]];
    let mut options = Vec::new();
    for _ in 0..random.below(5) {
        options.extend(match random.below(6) {
            0 => vec![1; random.between(1, 3) as usize],
            1 => vec![4, 2],
            2 => vec![3, 3, 7],
            3 => [&[8, 10][..], &[0x5a; 8]].concat(),
            4 => vec![253, random.between(0, 12) as u8, 7, 7],
            _ => mss.to_vec(),
        });
    }
    if random.chance(80) {
        let at = random.below(options.len() as u64 + 1) as usize;
        options.splice(at..at, mss);
    }
    options.truncate(40);
    let end = *random.pick(&[0, 1, 2]);
    options.resize(options.len().next_multiple_of(4), end);
    options
}
