//! What the route tables are asked, and when.

use std::{cell::RefCell, rc::Rc};

use super::*;
use crate::{
    flow::ROUTE_LIFETIME,
    model::frame::Frame,
    tables::{Route, RouteQuery},
};

for_both_families! {
    a_new_flow_is_asked_about_with_its_own_ports
    a_reply_is_asked_about_as_it_leaves
    an_echo_has_no_ports
    a_strict_reverse_path_is_asked_about_backwards
    a_flow_keeps_the_service_class_it_began_with
    a_reply_of_a_published_port_bears_its_own_service_class
}

/// Every question since the last time, oldest first.
type Asked<A> = Rc<RefCell<Vec<RouteQuery<A>>>>;

/// Expedited forwarding and ECN, as the byte of the header.
const EF_ECN: u8 = 0xb8 | 3;
const EF: u8 = 0xb8;

fn listening<F: Addresses>(host: &mut Host<F>) -> Asked<F::Addr> {
    let asked = Asked::<F::Addr>::default();
    let heard = Rc::clone(&asked);
    F::tables_mut(&mut host.model).route = Box::new(move |query| {
        heard.borrow_mut().push(*query);
        Ok(Route {
            oif: UP0,
            mtu: 1500,
            via: F::GATEWAY.padded(),
            via_v6: F::VERSION == 6,
            src: F::HOST,
        })
    });
    asked
}

fn port(port: u16) -> [u8; 2] {
    port.to_be_bytes()
}

fn query<F: Addresses>(
    src: (F::Addr, u16),
    dst: (F::Addr, u16),
    proto: u8,
    tos: u8,
) -> RouteQuery<F::Addr> {
    RouteQuery {
        iif: u32::from(WEB) * 10,
        src: src.0,
        dst: dst.0,
        sport: port(src.1),
        dport: port(dst.1),
        proto,
        tos,
    }
}

/// C0 sends a datagram to the client.
fn ask_out<F: Addresses>(host: &Host<F>, class: u8) -> Result<F> {
    let frame = Frame::udp((F::of(C0), 5353), (F::CLIENT, 53), b"?");
    host.sends(C0, frame.tos(class))
}

fn a_new_flow_is_asked_about_with_its_own_ports<F: Addresses>() {
    let mut host = Host::<F>::new();
    let asked = listening(&mut host);
    assert_eq!(ask_out(&host, 0).outcome, out::<F>(UP0));
    let own = query::<F>((F::of(C0), 5353), (F::CLIENT, 53), proto::UDP, 0);
    assert_eq!(asked.take(), [own], "once");
    assert_eq!(ask_out(&host, 0).outcome, out::<F>(UP0));
    assert_eq!(asked.take(), [], "and not again");
    // The same inputs when the next hop is looked up again: the same choice among several.
    host.model.pass(ROUTE_LIFETIME + 1);
    assert_eq!(ask_out(&host, 0).outcome, out::<F>(UP0));
    assert_eq!(asked.take(), [own]);
}

fn a_reply_is_asked_about_as_it_leaves<F: Addresses>() {
    let mut host = Host::<F>::new();
    let asked = listening(&mut host);
    host.connect(8081);
    let leaving = query::<F>((F::HOST, 8081), (F::CLIENT, 40000), proto::TCP, 0);
    assert_eq!(asked.take(), [leaving]);
    host.model.config.epoch += 1;
    assert_eq!(host.server(ACK).outcome, out::<F>(UP0));
    assert_eq!(asked.take(), [leaving]);
}

fn an_echo_has_no_ports<F: Addresses>() {
    let mut host = Host::<F>::new();
    let asked = listening(&mut host);
    let request = Frame::echo::<F>(F::of(C0), F::CLIENT, 7);
    assert_eq!(host.sends(C0, request).outcome, out::<F>(UP0));
    let own = query::<F>((F::of(C0), 0), (F::CLIENT, 0), F::ICMP, 0);
    assert_eq!(asked.take(), [own]);
}

fn a_strict_reverse_path_is_asked_about_backwards<F: Addresses>() {
    let mut host = Host::<F>::new();
    host.uplink(UP0).flags |= crate::abi::uplink_flag::STRICT_RP_FILTER;
    let asked = listening(&mut host);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    let back = query::<F>((F::HOST, 8081), (F::CLIENT, 40000), proto::TCP, 0);
    assert_eq!(asked.take(), [back]);
}

fn a_flow_keeps_the_service_class_it_began_with<F: Addresses>() {
    let mut host = Host::<F>::new();
    let asked = listening(&mut host);
    assert_eq!(ask_out(&host, EF_ECN).outcome, out::<F>(UP0));
    let own = query::<F>((F::of(C0), 5353), (F::CLIENT, 53), proto::UDP, EF);
    assert_eq!(asked.take(), [own]);
    // A reply of another class leads to the same question, and so does a packet of the flow.
    let leaves = F::tables(&host.model).embryos.rows();
    let (reply, _) = leaves.iter().find(|(key, _)| key.src == F::CLIENT).unwrap();
    let back = u16::from_be_bytes(reply.dport);
    let answer = || Frame::udp((F::CLIENT, 53), (F::HOST, back), b"!");
    assert_eq!(host.arrive(UP0, answer()).outcome, Outcome::Peer(C0));
    assert_eq!(host.flows(), 2);
    for _ in 0..2 {
        host.model.config.epoch += 1;
        assert_eq!(host.arrive(UP0, answer()).outcome, Outcome::Peer(C0));
        assert_eq!(asked.take(), [own], "an answer");
        assert_eq!(ask_out(&host, 0).outcome, out::<F>(UP0));
        assert_eq!(asked.take(), [own], "a packet of the flow");
        host.model.pass(ROUTE_LIFETIME + 1);
        assert_eq!(ask_out(&host, 0x20).outcome, out::<F>(UP0));
        assert_eq!(asked.take(), [own], "after a while");
    }
    assert_eq!(host.flows(), 2);
}

fn a_reply_of_a_published_port_bears_its_own_service_class<F: Addresses>() {
    let mut host = Host::<F>::new();
    let asked = listening(&mut host);
    assert_eq!(host.client(SYN, 8081).outcome, Outcome::Peer(C0));
    let frame = Frame::tcp((F::of(C0), 80), (F::CLIENT, 40000), SYN | ACK, b"");
    let answer = host.sends(C0, frame.tos(EF_ECN));
    assert_eq!(answer.outcome, out::<F>(UP0));
    let leaving = query::<F>((F::HOST, 8081), (F::CLIENT, 40000), proto::TCP, EF);
    assert_eq!(asked.take(), [leaving]);
}
