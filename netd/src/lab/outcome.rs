//! What came of a probe, and what was expected of it.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;

use super::server::Report;

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server answered, and every byte came back.
    Answered(Answer),
    /// The connection was refused (a RST to the SYN, or ICMP port unreachable).
    Refused,
    /// The connection was reset after it had been established.
    Reset,
    /// Nothing came back in time.
    Timeout,
    /// The own kernel or an ICMP error said that there is no way, with the errno a socket gets for it.
    Unreachable(Errno),
    /// Something came back that is not what was sent.
    Corrupt(String),
    /// The probe itself could not be made.
    Failed(String),
}

/// An answer, and what the server said in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's report; None for a ping.
    pub report: Option<Report>,
    /// From the first packet to the last byte.
    pub elapsed: Duration,
}

impl Outcome {
    /// Whether a server answered.
    pub fn answered(&self) -> bool {
        matches!(self, Self::Answered(_))
    }

    /// The client's address as the server saw it.
    pub fn peer(&self) -> Option<IpAddr> {
        Some(self.report()?.peer.ip())
    }

    /// The server's report.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Answered(answer) => answer.report.as_ref(),
            _ => None,
        }
    }

    /// Milliseconds to the answer.
    pub fn millis(&self) -> Option<f64> {
        match self {
            Self::Answered(answer) => Some(answer.elapsed.as_secs_f64() * 1e3),
            _ => None,
        }
    }

    /// What an error of a socket call means for a probe.
    pub(super) fn from_error(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED) => Self::Reset,
            Some(Errno::EAGAIN | Errno::ETIMEDOUT | Errno::EINPROGRESS) => Self::Timeout,
            Some(
                errno @ (Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::EHOSTDOWN
                | Errno::ENETDOWN
                | Errno::EACCES
                | Errno::EPERM
                | Errno::EINVAL
                | Errno::EMSGSIZE
                | Errno::ENOPROTOOPT
                | Errno::EPROTO),
            ) => Self::Unreachable(errno),
            _ => match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout,
                io::ErrorKind::UnexpectedEof => Self::Reset,
                _ => Self::Failed(error.to_string()),
            },
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(Answer {
                report: Some(report),
                ..
            }) => {
                write!(f, "ok server={} peer={}", report.server, report.peer.ip())
            }
            Self::Answered(_) => f.write_str("ok"),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Timeout => f.write_str("timeout"),
            Self::Unreachable(errno) => write!(f, "unreachable ({errno:?})"),
            Self::Corrupt(what) => write!(f, "corrupt: {what}"),
            Self::Failed(what) => write!(f, "probe failed: {what}"),
        }
    }
}

/// What a probe should come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any server answers.
    Answer,
    /// A server answers, and saw this client address.
    AnswerFrom(IpAddr),
    /// The server of this name answers.
    AnswerBy(String),
    /// Refused.
    Refused,
    /// Nothing comes back.
    Timeout,
    /// The own kernel or an ICMP error says no.
    Unreachable,
    /// No answer, in whatever way.
    NoAnswer,
}

impl Expect {
    /// Whether the outcome is as expected. A probe that could not be made, and a corrupt answer, never are.
    pub fn matches(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Answer => outcome.answered(),
            Self::AnswerFrom(peer) => outcome.peer() == Some(*peer),
            Self::AnswerBy(server) => outcome
                .report()
                .is_some_and(|report| report.server == *server),
            Self::Refused => *outcome == Outcome::Refused,
            Self::Timeout => *outcome == Outcome::Timeout,
            Self::Unreachable => matches!(outcome, Outcome::Unreachable(_)),
            Self::NoAnswer => matches!(
                outcome,
                Outcome::Refused | Outcome::Reset | Outcome::Timeout | Outcome::Unreachable(_)
            ),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => f.write_str("ok"),
            Self::AnswerFrom(peer) => write!(f, "ok peer={peer}"),
            Self::AnswerBy(server) => write!(f, "ok server={server}"),
            Self::Refused => f.write_str("refused"),
            Self::Timeout => f.write_str("timeout"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::NoAnswer => f.write_str("no answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_could_not_be_made_is_never_a_pass() {
        let every = [
            Expect::Answer,
            Expect::AnswerFrom(IpAddr::from([198, 18, 0, 2])),
            Expect::AnswerBy("c0".to_owned()),
            Expect::Refused,
            Expect::Timeout,
            Expect::Unreachable,
            Expect::NoAnswer,
        ];
        for expect in every {
            assert!(
                !expect.matches(&Outcome::Failed("no socket".to_owned())),
                "{expect}"
            );
            assert!(
                !expect.matches(&Outcome::Corrupt("byte 3".to_owned())),
                "{expect}"
            );
        }
    }
}
