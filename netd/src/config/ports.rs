//! Ranges of ports.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use thiserror::Error;

/// A range of ports, both ends included, in host byte order. Never empty, never port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is no range of ports.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PortError {
    /// Neither a number nor two numbers with a `-` between them.
    #[error("this is neither a port nor a range of ports")]
    NotANumber,
    /// Port 0, which no packet is addressed to.
    #[error("port 0 cannot be used")]
    Zero,
    /// Above 65535.
    #[error("a port is at most 65535")]
    TooLarge,
    /// The last port is below the first one; holds both as written.
    #[error("the range ends before it begins")]
    Reversed(u16, u16),
}

impl PortRange {
    /// The range from `first` to `last`, both included.
    ///
    /// # Errors
    /// [`PortError::Zero`] if `first` is 0 and [`PortError::Reversed`] if `last` is below it.
    pub fn new(first: u16, last: u16) -> Result<Self, PortError> {
        if first == 0 || last == 0 {
            Err(PortError::Zero)
        } else if last < first {
            Err(PortError::Reversed(first, last))
        } else {
            Ok(Self { first, last })
        }
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports there are, 1 to 65535.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// True if `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// True if a port is in both ranges.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for PortRange {
    type Err = PortError;

    /// `"8080"` or `"8000-8099"`; blanks around the numbers are allowed.
    fn from_str(text: &str) -> Result<Self, PortError> {
        match text.split_once('-') {
            Some((first, last)) => Self::new(port(first)?, port(last)?),
            None => port(text).and_then(|only| Self::new(only, only)),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

fn port(text: &str) -> Result<u16, PortError> {
    let text = text.trim();
    // `u16::from_str` would also take a leading `+`.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PortError::NotANumber);
    }
    text.parse().map_err(|_| PortError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges() {
        let cases = [
            ("80", Ok((80, 80))),
            ("8000-8099", Ok((8000, 8099))),
            (" 8000 - 8099 ", Ok((8000, 8099))),
            ("1-65535", Ok((1, 65535))),
            ("0", Err(PortError::Zero)),
            ("0-80", Err(PortError::Zero)),
            ("80-0", Err(PortError::Zero)),
            ("90-80", Err(PortError::Reversed(90, 80))),
            ("65536", Err(PortError::TooLarge)),
            ("99999999999999999999", Err(PortError::TooLarge)),
            ("", Err(PortError::NotANumber)),
            ("-80", Err(PortError::NotANumber)),
            ("80-", Err(PortError::NotANumber)),
            ("+80", Err(PortError::NotANumber)),
            ("80-90-100", Err(PortError::NotANumber)),
            ("http", Err(PortError::NotANumber)),
        ];
        for (text, expected) in cases {
            let got = text
                .parse::<PortRange>()
                .map(|range| (range.first(), range.last()));
            assert_eq!(got, expected, "{text:?}");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_includes_the_ends() {
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        for (a, b, expected) in [
            ("80", "80", true),
            ("80", "81", false),
            ("80-90", "90-100", true),
            ("80-90", "91-100", false),
            ("1-65535", "443", true),
        ] {
            assert_eq!(range(a).overlaps(range(b)), expected);
            assert_eq!(range(b).overlaps(range(a)), expected);
        }
        assert_eq!(range("1-65535").count(), 65535);
    }
}
