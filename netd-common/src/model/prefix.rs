//! A longest-prefix-match trie in memory.

use crate::{abi::PortPrefix, wire::Address};

/// A key as a string of bits, padded with zeros.
pub trait Bits {
    /// The bits, first byte first.
    fn bits(&self) -> [u8; 24];
}

impl<A: Address> Bits for A {
    fn bits(&self) -> [u8; 24] {
        let mut bits = [0; 24];
        bits[..16].copy_from_slice(&self.padded());
        bits
    }
}

impl<A: Address> Bits for PortPrefix<A> {
    fn bits(&self) -> [u8; 24] {
        let mut bits = [0; 24];
        let port = 4 + size_of::<A>();
        bits[0] = self.proto;
        bits[4..port].copy_from_slice(&self.addr.padded()[..size_of::<A>()]);
        bits[port..port + 2].copy_from_slice(&self.port);
        bits
    }
}

/// A table of prefixes, as `BPF_MAP_TYPE_LPM_TRIE` is one: the entry with the longest prefix that
/// the key begins with.
pub struct LongestPrefix<K, V>(Vec<(u32, K, V)>);

impl<K, V> Default for LongestPrefix<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Bits, V> LongestPrefix<K, V> {
    /// Inserts or replaces the prefix of `bits` leading bits of `key`; those beyond must be zero.
    pub fn insert(&mut self, bits: u32, key: K, value: V) {
        self.remove(bits, &key);
        self.0.push((bits, key, value));
    }

    /// Removes a prefix, if it is there.
    pub fn remove(&mut self, bits: u32, key: &K) {
        self.0
            .retain(|(b, k, _)| *b != bits || !matches(bits, &k.bits(), &key.bits()));
    }

    /// Removes all prefixes.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The value of the longest prefix of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let key = key.bits();
        self.0
            .iter()
            .filter(|(bits, prefix, _)| matches(*bits, &prefix.bits(), &key))
            .max_by_key(|(bits, _, _)| *bits)
            .map(|(_, _, value)| value)
    }

    /// All prefixes: bits, key, value.
    pub fn iter(&self) -> impl Iterator<Item = &(u32, K, V)> {
        self.0.iter()
    }
}

fn matches(bits: u32, prefix: &[u8; 24], key: &[u8; 24]) -> bool {
    let (whole, rest) = (bits as usize / 8, bits % 8);
    prefix[..whole] == key[..whole]
        && (rest == 0 || (prefix[whole] ^ key[whole]) >> (8 - rest) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::V4Addr;

    #[test]
    fn the_longest_prefix_wins() {
        let mut table = LongestPrefix::default();
        table.insert(0, V4Addr([0; 4]), "all");
        table.insert(8, V4Addr([10, 0, 0, 0]), "8");
        table.insert(13, V4Addr([10, 200, 0, 0]), "13");
        table.insert(32, V4Addr([10, 200, 0, 1]), "32");
        assert_eq!(table.get(&V4Addr([11, 0, 0, 0])), Some(&"all"));
        assert_eq!(table.get(&V4Addr([10, 192, 0, 0])), Some(&"8"));
        assert_eq!(table.get(&V4Addr([10, 207, 255, 255])), Some(&"13"));
        assert_eq!(table.get(&V4Addr([10, 208, 0, 0])), Some(&"8"));
        assert_eq!(table.get(&V4Addr([10, 200, 0, 1])), Some(&"32"));
        table.remove(13, &V4Addr([10, 200, 0, 0]));
        assert_eq!(table.get(&V4Addr([10, 200, 0, 2])), Some(&"8"));
        table.insert(32, V4Addr([10, 200, 0, 1]), "again");
        assert_eq!(table.get(&V4Addr([10, 200, 0, 1])), Some(&"again"));
        assert_eq!(table.iter().count(), 3);
    }
}
