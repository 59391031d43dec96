//! Interface names and patterns over them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

/// Longest interface name in bytes: the kernel's `IFNAMSIZ` (16) less the final zero.
pub const MAX_INTERFACE_NAME: usize = 15;

/// Why a text is no interface name or pattern.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// The empty text.
    #[error("an interface name cannot be empty")]
    Empty,
    /// More than [`MAX_INTERFACE_NAME`] bytes; holds how many there are.
    #[error("an interface name has at most {MAX_INTERFACE_NAME} bytes, this one has {0}")]
    TooLong(usize),
    /// A byte that the kernel refuses in a name (`dev_valid_name`, net/core/dev.c).
    #[error("an interface name cannot contain {0:?}")]
    Forbidden(char),
    /// `.` or `..`, which the kernel refuses because sysfs has a directory per interface.
    #[error("`.` and `..` are not interface names")]
    Dots,
    /// A `*` where one interface must be named.
    #[error("a `*` is not allowed here: one interface is meant")]
    Wildcard,
}

/// The name of one network interface: 1 to 15 bytes that the kernel accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_characters(text)?;
        if text.contains('*') {
            return Err(NameError::Wildcard);
        }
        if text.len() > MAX_INTERFACE_NAME {
            return Err(NameError::TooLong(text.len()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl AsRef<str> for InterfaceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An interface name in which each `*` stands for any number of characters, also none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamePattern(String);

impl NamePattern {
    /// The pattern as written, with runs of `*` collapsed into one.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True if the pattern has no `*`, so that it names one interface.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// True if `name` matches.
    pub fn matches(&self, name: &str) -> bool {
        // Names are bytes to the kernel; UTF-8 makes the comparison by bytes equal to the one by
        // characters. On a mismatch only the last `*` needs to take one byte more.
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        let mut retry = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p, n));
                    p += 1;
                }
                Some(byte) if *byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match retry {
                    Some((star, taken)) => {
                        retry = Some((star, taken + 1));
                        p = star + 1;
                        n = taken + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }

    /// Orders patterns by how much they say: an exact name is above every pattern, and of two
    /// patterns the one with more bytes besides `*` is above.
    pub fn specificity(&self) -> (bool, usize) {
        (self.is_exact(), literal_bytes(&self.0))
    }
}

impl FromStr for NamePattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        check_characters(text)?;
        let literal = literal_bytes(text);
        if literal > MAX_INTERFACE_NAME {
            return Err(NameError::TooLong(literal));
        }
        let mut pattern = text.to_owned();
        while pattern.contains("**") {
            pattern = pattern.replace("**", "*");
        }
        Ok(Self(pattern))
    }
}

impl From<InterfaceName> for NamePattern {
    fn from(name: InterfaceName) -> Self {
        Self(name.0)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for NamePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

fn literal_bytes(text: &str) -> usize {
    text.bytes().filter(|byte| *byte != b'*').count()
}

fn check_characters(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text == "." || text == ".." {
        return Err(NameError::Dots);
    }
    let forbidden = |c: &char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
    match text.chars().find(forbidden) {
        Some(c) => Err(NameError::Forbidden(c)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamePattern {
        text.parse().unwrap()
    }

    #[test]
    fn names_follow_the_kernel() {
        for good in [
            "lo",
            "br-web",
            "enp0s31f6",
            "eth0.100",
            "tailscale0",
            "abcdefghijklmno",
            "è",
        ] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        let cases = [
            ("", NameError::Empty),
            (".", NameError::Dots),
            ("..", NameError::Dots),
            ("a/b", NameError::Forbidden('/')),
            ("eth0:1", NameError::Forbidden(':')),
            ("a b", NameError::Forbidden(' ')),
            ("a\0", NameError::Forbidden('\0')),
            ("abcdefghijklmnop", NameError::TooLong(16)),
            ("èèèèèèèè", NameError::TooLong(16)),
            ("wg*", NameError::Wildcard),
        ];
        for (bad, why) in cases {
            assert_eq!(bad.parse::<InterfaceName>(), Err(why), "{bad:?}");
        }
    }

    #[test]
    fn patterns_match_like_a_shell() {
        let cases = [
            ("wg0", "wg0", true),
            ("wg0", "wg01", false),
            ("wg*", "wg", true),
            ("wg*", "wg123", true),
            ("wg*", "awg0", false),
            ("*", "", true),
            ("*", "anything", true),
            ("*0", "eth0", true),
            ("*0", "eth01", false),
            ("e*0*1", "eth0v1", true),
            ("e*0*1", "eth1v0", false),
            ("*a*b", "aab", true),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "aba", false),
        ];
        for (text, name, expected) in cases {
            assert_eq!(pattern(text).matches(name), expected, "{text} on {name}");
        }
    }

    #[test]
    fn patterns_are_normal_and_limited() {
        assert_eq!(pattern("wg***").as_str(), "wg*");
        assert_eq!(pattern("abcdefghijklmno*").as_str(), "abcdefghijklmno*");
        assert_eq!(
            "abcdefghijklmnop*".parse::<NamePattern>(),
            Err(NameError::TooLong(16))
        );
    }

    #[test]
    fn exact_is_above_long_is_above_short() {
        let mut list = [
            pattern("*"),
            pattern("wg0"),
            pattern("tailscale*"),
            pattern("t*"),
        ];
        list.sort_by_key(NamePattern::specificity);
        let order: Vec<_> = list.iter().map(NamePattern::as_str).collect();
        assert_eq!(order, ["*", "t*", "tailscale*", "wg0"]);
    }
}
