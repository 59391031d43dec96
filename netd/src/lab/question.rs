//! Probes as data: who asks whom how, and what should come of it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::host::StandardHost;
use super::outcome::{Expect, Outcome};
use super::probe::ProbeOptions;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A TCP connection.
    Tcp,
    /// A datagram.
    Udp,
    /// An echo request; the port is of no meaning.
    Echo,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Echo => "ping",
        })
    }
}

/// What should come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// The server of this name answers, and saw this address as its client's.
    Answer(String, IpAddr),
    /// An echo reply comes.
    Reply,
    /// The connection is refused: nobody listens, and the host says so.
    Refused,
    /// Nobody answers, in whatever way.
    Nothing,
}

impl Want {
    /// Whether the outcome is as wanted; a probe that could not be made, or a changed byte, never is.
    pub fn matches(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Answer(server, peer) => {
                outcome
                    .report()
                    .is_some_and(|report| report.server == *server)
                    && outcome.peer() == Some(*peer)
            }
            Self::Reply => outcome.answered(),
            Self::Refused => Expect::Refused.matches(outcome),
            Self::Nothing => Expect::NoAnswer.matches(outcome),
        }
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(server, peer) => write!(f, "ok server={server} peer={peer}"),
            Self::Reply => f.write_str("ok"),
            Self::Refused => f.write_str("refused"),
            Self::Nothing => f.write_str("no answer"),
        }
    }
}

/// One probe.
#[derive(Clone, Debug)]
pub struct Question {
    /// For people.
    pub name: String,
    /// Whose namespace it is asked from, as in [`StandardHost::namespace`].
    pub from: &'static str,
    /// How.
    pub way: Way,
    /// Whom.
    pub to: SocketAddr,
    /// What should come of it.
    pub want: Want,
}

impl Question {
    /// A question that is called by who asks whom.
    pub fn new(from: &'static str, way: Way, to: SocketAddr, want: Want) -> Self {
        let target = match way {
            Way::Echo => to.ip().to_string(),
            _ => to.to_string(),
        };
        Self {
            name: format!("{from} → {target}, {way}"),
            from,
            way,
            to,
            want,
        }
    }

    /// The same under another name.
    pub fn named(self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self
        }
    }

    /// Asks it.
    pub fn ask(&self, host: &StandardHost, patience: Duration) -> Outcome {
        let options = ProbeOptions::default().timeout(patience);
        match self.way {
            Way::Tcp => host.tcp(self.from, self.to, &options),
            Way::Udp => host.udp(self.from, self.to, &options),
            Way::Echo => host.ping(self.from, self.to.ip(), &options),
        }
    }
}

impl StandardHost {
    /// Asks all; outcomes in the order of the questions. What is answered is asked one after the other. What should
    /// not be ([`Want::Nothing`]), and everything if `all_at_once`, is asked at once, for it takes all of `short`;
    /// a slow machine may take `long` to answer what it should.
    pub fn ask(
        &self,
        questions: &[Question],
        short: Duration,
        long: Duration,
        all_at_once: bool,
    ) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Timeout; questions.len()];
        std::thread::scope(|scope| {
            let mut in_turn = Vec::new();
            for (question, outcome) in questions.iter().zip(&mut outcomes) {
                if all_at_once || question.want == Want::Nothing {
                    scope.spawn(move || *outcome = question.ask(self, short));
                } else {
                    in_turn.push((question, outcome));
                }
            }
            for (question, outcome) in in_turn {
                *outcome = question.ask(self, long);
            }
        });
        outcomes
    }
}
