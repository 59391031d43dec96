//! Flow states and their lifetimes.
//!
//! | state | entered by | lifetime | source |
//! |---|---|---|---|
//! | `SynSent` | the client's SYN | 120 s | nf_conntrack; RFC 5382 REQ-5 allows less than the transitory 4 min before the handshake |
//! | `SynReceived` | the server's SYN-ACK | 240 s | RFC 5382 REQ-5 (transitory) |
//! | `Established` | the client's ACK, or a reply to a connection picked up | 5 days | nf_conntrack; RFC 5382 REQ-5 asks ≥ 2 h 4 min |
//! | `Closing` | a FIN of one side | 240 s | RFC 5382 REQ-5 (transitory) |
//! | `TimeWait` | a FIN of both | 240 s | RFC 5382 REQ-5 (transitory), RFC 7857 §2 |
//! | `Reset` | a RST | 240 s | RFC 7857 §2.2: a RST shortens the lifetime, and traffic after it restores it |
//! | `PickedUp` | a packet of a connection that began before netd | 240 s | nf_conntrack_tcp_loose |
//! | `UdpNew` | a first datagram | 120 s | RFC 4787 REQ-5 (≥ 2 min) |
//! | `UdpReplied` | a reply | 300 s | RFC 4787 REQ-5 (recommended 5 min) |
//! | `EchoNew`, `EchoReplied` | echo request, echo reply | 60 s | RFC 5508 REQ-1 |
//! | `OtherNew`, `OtherReplied` | any other protocol, untranslated | 120 s, 300 s | as UDP |

use crate::wire::tcp_flag;

/// State of a flow. The number is part of the map layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The client's SYN was seen.
    SynSent = 1,
    /// The server's SYN-ACK was seen.
    SynReceived = 2,
    /// The handshake is complete.
    Established = 3,
    /// One side has sent its FIN.
    Closing = 4,
    /// Both sides have sent their FIN.
    TimeWait = 5,
    /// A RST was seen.
    Reset = 6,
    /// First seen in its middle.
    PickedUp = 7,
    /// UDP without a reply yet.
    UdpNew = 8,
    /// UDP in both directions.
    UdpReplied = 9,
    /// Echo request without a reply yet.
    EchoNew = 10,
    /// Echo in both directions.
    EchoReplied = 11,
    /// Another protocol without a reply yet.
    OtherNew = 12,
    /// Another protocol in both directions.
    OtherReplied = 13,
}

impl State {
    /// All states.
    pub const ALL: [Self; 13] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::Closing,
        Self::TimeWait,
        Self::Reset,
        Self::PickedUp,
        Self::UdpNew,
        Self::UdpReplied,
        Self::EchoNew,
        Self::EchoReplied,
        Self::OtherNew,
        Self::OtherReplied,
    ];

    /// The state with this number.
    #[must_use]
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::SynSent,
            2 => Self::SynReceived,
            3 => Self::Established,
            4 => Self::Closing,
            5 => Self::TimeWait,
            6 => Self::Reset,
            7 => Self::PickedUp,
            8 => Self::UdpNew,
            9 => Self::UdpReplied,
            10 => Self::EchoNew,
            11 => Self::EchoReplied,
            12 => Self::OtherNew,
            13 => Self::OtherReplied,
            _ => return None,
        })
    }

    /// Name for people and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::TimeWait => "time-wait",
            Self::Reset => "reset",
            Self::PickedUp => "picked-up",
            Self::UdpNew | Self::EchoNew | Self::OtherNew => "unreplied",
            Self::UdpReplied | Self::EchoReplied | Self::OtherReplied => "replied",
        }
    }

    /// Seconds without a packet in either direction after which the flow ends.
    #[must_use]
    pub const fn lifetime(self) -> u32 {
        match self {
            Self::SynSent | Self::UdpNew | Self::OtherNew => 120,
            Self::SynReceived | Self::Closing | Self::TimeWait | Self::Reset | Self::PickedUp => {
                240
            }
            Self::Established => 5 * 24 * 3600,
            Self::UdpReplied | Self::OtherReplied => 300,
            Self::EchoNew | Self::EchoReplied => 60,
        }
    }

    /// Has the connection been closed by both sides, or reset?
    #[must_use]
    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::TimeWait | Self::Reset)
    }

    /// Has the flow been confirmed by its other side? Only then does it leave the embryos.
    #[must_use]
    #[inline(always)]
    pub const fn is_confirmed(self) -> bool {
        matches!(
            self,
            Self::Established
                | Self::Closing
                | Self::TimeWait
                | Self::UdpReplied
                | Self::EchoReplied
                | Self::OtherReplied
        )
    }
}

/// The shortest lifetime of any state: a flow that was idle for less is surely alive.
pub const SHORTEST_LIFETIME: u32 = 60;

/// Seconds since a packet was seen. Another CPU's clock may be a tick ahead: then none.
#[must_use]
#[inline(always)]
pub const fn idle(now: u32, last_seen: u32) -> u32 {
    let idle = now.wrapping_sub(last_seen);
    if idle > i32::MAX as u32 { 0 } else { idle }
}

/// Which side sent the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The side that opened the flow.
    Original,
    /// The other side.
    Reply,
}

/// State after a TCP segment.
///
/// `fin_other` says whether the *other* side has sent its FIN before. A SYN that reopens a closed
/// connection is not decided here: see [`reopens`].
#[must_use]
#[inline(always)]
pub const fn tcp_next(state: State, direction: Direction, flags: u8, fin_other: bool) -> State {
    if flags & tcp_flag::RST != 0 {
        // A blind RST must not end an embryo either: its lifetime is short enough.
        return match state {
            State::SynSent | State::SynReceived | State::PickedUp => state,
            _ => State::Reset,
        };
    }
    if flags & tcp_flag::FIN != 0 {
        return match state {
            State::SynSent | State::PickedUp if matches!(direction, Direction::Original) => state,
            _ if fin_other => State::TimeWait,
            _ => State::Closing,
        };
    }
    let syn = flags & tcp_flag::SYN != 0;
    let ack = flags & tcp_flag::ACK != 0;
    match (state, direction) {
        (State::SynSent, Direction::Reply) if syn && ack => State::SynReceived,
        // Simultaneous open (RFC 9293 §3.5, RFC 5382 REQ-2).
        (State::SynSent, Direction::Reply) if syn => State::SynReceived,
        (State::SynReceived, Direction::Original) if ack => State::Established,
        (State::PickedUp, Direction::Reply) if !syn => State::Established,
        (State::Reset, _) if !syn => State::Established,
        _ => state,
    }
}

/// Does this segment open a new connection on the tuple of a closed one? (RFC 9293 §3.6.1)
#[must_use]
#[inline(always)]
pub const fn reopens(state: State, flags: u8) -> bool {
    flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN
        && matches!(state, State::TimeWait | State::Reset)
}

/// State after a packet of a protocol without a handshake.
#[must_use]
#[inline(always)]
pub const fn datagram_next(state: State, direction: Direction) -> State {
    match (state, direction) {
        (State::UdpNew, Direction::Reply) => State::UdpReplied,
        (State::EchoNew, Direction::Reply) => State::EchoReplied,
        (State::OtherNew, Direction::Reply) => State::OtherReplied,
        _ => state,
    }
}

/// Flags that no segment of a connection bears: none, SYN+FIN, SYN+RST, FIN without ACK
/// (nf_conntrack's table of valid flags).
#[must_use]
#[inline(always)]
pub const fn tcp_flags_valid(flags: u8) -> bool {
    use tcp_flag::{ACK, FIN, RST, SYN};
    match flags & (SYN | FIN | RST | ACK) {
        x if x == SYN || x == SYN | ACK || x == RST || x == RST | ACK || x == ACK => true,
        x => x == FIN | ACK,
    }
}

#[cfg(test)]
mod tests {
    use super::{Direction::*, State::*, *};
    use tcp_flag::{ACK, FIN, RST, SYN};

    fn run(segments: &[(Direction, u8)]) -> State {
        let mut state = SynSent;
        let mut fin = [false; 2];
        for &(direction, flags) in segments {
            state = tcp_next(
                state,
                direction,
                flags,
                fin[usize::from(direction == Original)],
            );
            if flags & FIN != 0 {
                fin[usize::from(direction == Reply)] = true;
            }
        }
        state
    }

    #[test]
    fn handshake_and_orderly_close() {
        let open = [(Reply, SYN | ACK), (Original, ACK)];
        assert_eq!(run(&open[..1]), SynReceived);
        assert_eq!(run(&open), Established);
        let mut close = open.to_vec();
        close.push((Reply, FIN | ACK));
        assert_eq!(run(&close), Closing);
        close.push((Original, ACK));
        assert_eq!(run(&close), Closing);
        close.push((Original, FIN | ACK));
        assert_eq!(run(&close), TimeWait);
        close.push((Reply, ACK));
        assert_eq!(run(&close), TimeWait);
    }

    #[test]
    fn two_fins_of_one_side_are_one() {
        let s = run(&[
            (Reply, SYN | ACK),
            (Original, ACK),
            (Original, FIN | ACK),
            (Original, FIN | ACK),
        ]);
        assert_eq!(s, Closing);
    }

    #[test]
    fn simultaneous_open() {
        assert_eq!(run(&[(Reply, SYN), (Original, SYN | ACK)]), Established);
    }

    #[test]
    fn a_reset_shortens_and_traffic_restores() {
        let mut s = vec![(Reply, SYN | ACK), (Original, ACK), (Reply, RST)];
        assert_eq!(run(&s), Reset);
        assert!(Reset.lifetime() < Established.lifetime());
        s.push((Original, ACK));
        assert_eq!(run(&s), Established);
    }

    #[test]
    fn a_reset_does_not_end_a_handshake() {
        assert_eq!(run(&[(Reply, RST | ACK)]), SynSent);
        assert_eq!(tcp_next(PickedUp, Reply, RST, false), PickedUp);
    }

    #[test]
    fn pick_up_needs_the_other_side() {
        assert_eq!(tcp_next(PickedUp, Original, ACK, false), PickedUp);
        assert_eq!(tcp_next(PickedUp, Reply, ACK, false), Established);
    }

    #[test]
    fn only_a_bare_syn_reopens_a_closed_connection() {
        assert!(reopens(TimeWait, SYN) && reopens(Reset, SYN));
        assert!(!reopens(TimeWait, SYN | ACK) && !reopens(TimeWait, ACK));
        assert!(!reopens(Established, SYN) && !reopens(Closing, SYN));
    }

    #[test]
    fn flag_combinations() {
        for valid in [
            SYN,
            SYN | ACK,
            ACK,
            RST,
            RST | ACK,
            FIN | ACK,
            ACK | 8,
            SYN | 0xc0,
        ] {
            assert!(tcp_flags_valid(valid), "{valid:#x}");
        }
        for invalid in [
            0,
            FIN,
            SYN | FIN,
            SYN | RST,
            FIN | RST,
            8,
            0x20,
            SYN | FIN | ACK,
        ] {
            assert!(!tcp_flags_valid(invalid), "{invalid:#x}");
        }
    }

    #[test]
    fn datagrams_are_confirmed_by_a_reply_only() {
        for (new, replied) in [
            (UdpNew, UdpReplied),
            (EchoNew, EchoReplied),
            (OtherNew, OtherReplied),
        ] {
            assert_eq!(datagram_next(new, Original), new);
            assert_eq!(datagram_next(new, Reply), replied);
            assert_eq!(datagram_next(replied, Original), replied);
            assert!(!new.is_confirmed() && replied.is_confirmed());
        }
    }

    #[test]
    fn rfc_minimum_lifetimes() {
        assert!(Established.lifetime() >= 7440); // RFC 5382 REQ-5
        for s in [SynReceived, Closing, TimeWait] {
            assert!(s.lifetime() >= 240); // RFC 5382 REQ-5
        }
        assert!(UdpNew.lifetime() >= 120 && UdpReplied.lifetime() >= 120); // RFC 4787 REQ-5
        assert!(EchoNew.lifetime() >= 60); // RFC 5508 REQ-1
    }

    #[test]
    fn nothing_lives_shorter_than_the_shortest() {
        let shortest = State::ALL.map(State::lifetime).into_iter().min();
        assert_eq!(shortest, Some(SHORTEST_LIFETIME));
    }

    #[test]
    fn a_clock_that_is_behind_sees_no_idleness() {
        assert_eq!(idle(100, 40), 60);
        assert_eq!(idle(100, 101), 0);
        assert_eq!(idle(5, u32::MAX), 6);
    }

    #[test]
    fn numbers_round_trip() {
        for s in State::ALL {
            assert_eq!(State::from_number(s as u8), Some(s));
        }
        assert_eq!(State::from_number(0), None);
    }
}
