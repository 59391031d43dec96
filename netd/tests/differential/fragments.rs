//! Packets in fragments: in order and out of it, again, overlapping, too small and too late.

use anyhow::{Context as _, Result, ensure};
use netd_common::abi::{FragmentKey, Fragments};
use netd_common::model::cut::cut;
use netd_common::packet::SlicePacket;
use netd_common::parse::{Kind, parse};
use netd_common::wire::{ETH_LEN, Family, V4, V6, proto};

use super::programs::raw;
use super::random::Random;
use super::scenario::{LabFamily, Scenario};
use super::traffic::Shot;
use super::{Differential, seconds};

/// Fragments under way at a time.
const MOST: usize = 24;

/// Cuts the packet into fragments, if it is one that can be cut. The others follow as [`next`].
pub fn cut_up(random: &mut Random, scenario: &mut Scenario, shot: Shot) -> Shot {
    if shot.gso_size != 0 || scenario.fragments.len() > MOST {
        return shot;
    }
    match shot.bytes[12..14] {
        [0x08, 0x00] => of_family::<V4>(random, scenario, shot),
        [0x86, 0xdd] => of_family::<V6>(random, scenario, shot),
        _ => shot,
    }
}

fn of_family<F: Family>(random: &mut Random, scenario: &mut Scenario, shot: Shot) -> Shot {
    let mut bytes = shot.bytes.clone();
    let Ok(parsed) = parse::<F>(&mut SlicePacket(&mut bytes), ETH_LEN) else {
        return shot;
    };
    if matches!(parsed.kind, Kind::FirstFragment | Kind::LaterFragment) {
        return shot;
    }
    // Extension headers are cut off with the rest.
    let header = if F::VERSION == 4 {
        parsed.l4 as usize
    } else {
        ETH_LEN as usize + 40
    };
    let mut left = shot.bytes.len() - header;
    let mut lengths = Vec::new();
    while left > 8 && lengths.len() < 12 {
        let most = (left - 1) / 8;
        let units = match random.below(10) {
            0 => 1,
            1 => 2,
            _ => random.between(1, most as u64) as usize,
        };
        // Less would be no header: seldom asked for.
        let header = parsed.tuple.proto == proto::SCTP && lengths.is_empty();
        let units = if header && random.chance(80) {
            units.max(2)
        } else {
            units
        };
        lengths.push(units.min(most) * 8);
        left -= lengths[lengths.len() - 1];
        if random.chance(25) {
            break;
        }
    }
    if lengths.is_empty() {
        return shot;
    }
    // Few identifications: they come again.
    let id = random.between(1, 40) as u32;
    let mut pieces: Vec<Shot> = cut::<F>(&shot.bytes, id, 0, &lengths)
        .into_iter()
        .map(|bytes| Shot {
            bytes,
            ..shot.clone()
        })
        .collect();
    if random.chance(15) {
        pieces.swap(0, 1);
    }
    if random.chance(45) {
        let again = random.pick(&pieces).clone();
        pieces.push(again);
    }
    if random.chance(35) {
        // An offset that overlaps or leaves a gap, a length that is no multiple of eight, or both.
        let at = random.between(1, pieces.len() as u64 - 1) as usize;
        let field = if F::VERSION == 4 { 14 + 7 } else { 14 + 40 + 3 };
        pieces[at].bytes[field] =
            pieces[at].bytes[field].wrapping_add(if F::VERSION == 4 { 1 } else { 8 });
        if F::VERSION == 4 {
            mend(&mut pieces[at].bytes);
        }
    }
    if random.chance(5) {
        let shorter = pieces[0].bytes.len() - 3;
        if F::VERSION == 4 {
            let total = (shorter - 14) as u16;
            pieces[0].bytes[16..18].copy_from_slice(&total.to_be_bytes());
            mend(&mut pieces[0].bytes);
        } else {
            let payload = (shorter - 54) as u16;
            pieces[0].bytes[18..20].copy_from_slice(&payload.to_be_bytes());
        }
    }
    let first = pieces.remove(0);
    scenario.fragments.extend(pieces);
    first
}

/// The IPv4 header's checksum after a change.
fn mend(frame: &mut [u8]) {
    let header = usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let sum = netd_common::checksum::checksum(&[&frame[14..14 + header]]);
    frame[24..26].copy_from_slice(&sum);
}

/// One of the fragments that are under way, mostly the oldest.
pub fn next(random: &mut Random, scenario: &mut Scenario) -> Shot {
    let count = scenario.fragments.len() as u64;
    let at = if random.chance(85) {
        0
    } else {
        random.below(count)
    };
    scenario.fragments.remove(at as usize)
}

impl Differential<'_> {
    /// Lets a packet's fragments grow old.
    pub fn age_fragments<F: LabFamily>(&mut self) -> Result<()> {
        let table = &F::tables(&self.scenario.model).fragments;
        let rows: Vec<_> = table.rows().into_iter().collect();
        if rows.is_empty() {
            return Ok(());
        }
        // Mostly those that others follow: their age counts.
        let followed: Vec<_> = rows.iter().filter(|row| row.1.generation != 0).collect();
        let (key, mut row) = if followed.is_empty() || self.random.chance(20) {
            *self.random.pick(&rows)
        } else {
            **self.random.pick(&followed)
        };
        row.began = seconds()?.wrapping_sub(*self.random.pick(&[3, 20, 31, 61, 61, 70]));
        table.put(&key, &row);
        row.generation = self.generation(row.generation);
        self.programs.put(F::FRAGMENTS, &raw(&key), &raw(&row))
    }

    /// The kernel's generation of a flow.
    fn generation(&self, native: u32) -> u32 {
        *self.generations.get(&native).unwrap_or(&native)
    }

    /// Both have the same rows.
    pub fn compare_fragments<F: LabFamily>(&self) -> Result<()> {
        let native = F::tables(&self.scenario.model).fragments.rows();
        let rows = self
            .programs
            .entries::<FragmentKey<F::Addr>, Fragments<F::Addr>>(F::FRAGMENTS)?;
        for (key, bpf) in &rows {
            let own = native
                .get(key)
                .with_context(|| format!("{}: only BPF has {key:?} {bpf:?}", F::FRAGMENTS))?;
            let same = Fragments {
                generation: self.generation(own.generation),
                began: bpf.began,
                ..*own
            };
            ensure!(
                same == *bpf && own.began.abs_diff(bpf.began) <= 1,
                "{}: {key:?}\nnatively {own:?}\nby BPF   {bpf:?}",
                F::FRAGMENTS
            );
        }
        ensure!(
            rows.len() == native.len(),
            "{}: BPF has {} rows, the model {native:?}",
            F::FRAGMENTS,
            rows.len()
        );
        Ok(())
    }
}
