use netd_common::abi::V4Addr;

use super::*;
use crate::apply::{apply, apply_all};
use crate::dataplane::fake::Fake;
use crate::desired::tests::{BRIDGE, VETH, WEB, container, host, link, wanted};
use crate::host::{HostFacts, LinkKind};

const PUBLISH: &str = r#"
[[publish]]
network = "web"
container = "10.201.1.2"
host_ports = "8000-8005"
container_ports = "80-85"
"#;

fn plan_for(desired: &Desired, fake: &Fake) -> Vec<Step> {
    diff(desired, &fake.actual, &fake.sysctls)
}

/// Brings the fake into the state and checks that nothing is left to do.
fn settle(desired: &Desired, fake: &mut Fake) {
    apply(&plan_for(desired, fake), fake).unwrap();
    assert_eq!(plan_for(desired, fake), []);
}

fn two_containers() -> HostFacts {
    let mut facts = host();
    facts
        .links
        .push(link(21, "veth21", LinkKind::Veth, Some(BRIDGE)));
    facts
        .containers
        .push(container(21, BRIDGE, &["10.201.1.3/24"]));
    facts
}

/// Pairs of states between which a plan may lead.
fn transitions() -> Vec<(&'static str, Desired, Desired)> {
    let web = format!("{WEB}{PUBLISH}");
    let moved = web.replace("\"10.201.1.2\"", "\"10.201.1.3\"");
    let accelerate = format!("[host]\nmode = \"accelerate\"\n{web}");
    let mut without_bridge = host();
    without_bridge.links.retain(|l| l.ifindex < BRIDGE);
    without_bridge.containers.clear();
    let mut recreated = host();
    recreated.links.retain(|l| l.ifindex != VETH);
    recreated
        .links
        .push(link(22, "veth22", LinkKind::Veth, Some(BRIDGE)));
    recreated.containers = vec![container(22, BRIDGE, &["10.201.1.2/24"])];
    vec![
        ("cold start", Desired::default(), wanted(&web, &host())),
        ("teardown", wanted(&web, &host()), Desired::default()),
        (
            "publish moves",
            wanted(&web, &two_containers()),
            wanted(&moved, &two_containers()),
        ),
        ("publish goes", wanted(&web, &host()), wanted(WEB, &host())),
        (
            "container recreated",
            wanted(&web, &host()),
            wanted(&web, &recreated),
        ),
        (
            "replace to accelerate",
            wanted(&web, &host()),
            wanted(&accelerate, &host()),
        ),
        (
            "bridge goes",
            wanted(&web, &host()),
            wanted(&web, &without_bridge),
        ),
        (
            "bridge comes",
            wanted(&web, &without_bridge),
            wanted(&web, &host()),
        ),
    ]
}

/// What must hold in every state between two plans.
fn assert_closed(what: &str, fake: &Fake, from: &Desired, to: &Desired) {
    let tables = &fake.actual.tables;
    let has = |hook, ifindex| {
        let attachment = Attachment { hook, ifindex };
        fake.actual.attachments.contains_key(&attachment)
    };
    for ifindex in tables.endpoints.keys() {
        assert!(
            has(Hook::FromEndpoint, *ifindex) && has(Hook::ToEndpoint, *ifindex),
            "{what}: container {ifindex} is known without its programs"
        );
    }
    let guarded = |d: &Desired| d.attachments.keys().any(|a| a.hook == Hook::BridgeIn);
    if !tables.endpoints.is_empty() && guarded(from) && guarded(to) {
        assert!(
            has(Hook::BridgeIn, BRIDGE) && has(Hook::BridgeOut, BRIDGE),
            "{what}: no guard"
        );
    }
    // A publish of a container that is there in the end never leads to one that is not known.
    for backend in tables.publish_v4.values() {
        let wanted = to.tables.addrs_v4.contains_key(&backend.addr);
        let published = |d: &Desired| {
            let mut backends = d.tables.publish_v4.values();
            backends.any(|b| b.addr == backend.addr)
        };
        // A publish may have waited for its container.
        if wanted && published(to) && !published(from) {
            assert!(
                tables.addrs_v4.contains_key(&backend.addr),
                "{what}: frontend before its backend"
            );
        }
        assert!(
            tables.networks.contains_key(&u32::from(backend.network)),
            "{what}: no network"
        );
    }
    for row in tables.addrs_v4.values() {
        assert!(
            tables.endpoints.contains_key(&row.ifindex),
            "{what}: address without endpoint"
        );
        assert!(
            tables.networks.contains_key(&u32::from(row.network)),
            "{what}: no network"
        );
    }
    let forwarding = fake.sysctls.iter().any(|(_, value)| value == "1");
    if forwarding && guarded(to) && guarded(from) {
        assert!(
            has(Hook::BridgeIn, BRIDGE) || tables.endpoints.is_empty(),
            "{what}: forwarding"
        );
    }
}

#[test]
fn a_failure_at_any_call_opens_nothing_and_the_next_plan_goes_on() {
    for (what, from, to) in transitions() {
        let mut start = Fake::default();
        settle(&from, &mut start);
        let steps = plan_for(&to, &start).len();
        assert!(steps > 0, "{what}");
        for fail_at in 0..steps {
            let mut fake = start.clone();
            (fake.calls, fake.fail_at) = (0, Some(fail_at));
            let epoch = fake.actual.config.epoch;
            apply(&plan_for(&to, &fake), &mut fake).expect_err(what);
            assert_closed(&format!("{what}, failed at {fail_at}"), &fake, &from, &to);
            fake.fail_at = None;
            settle(&to, &mut fake);
            assert_eq!(fake.actual.tables, to.tables, "{what}, failed at {fail_at}");
            if start.actual.tables != to.tables && fail_at + 1 < steps {
                assert!(
                    fake.actual.config.epoch > epoch,
                    "{what}: flows were never told"
                );
            }
        }
    }
}

#[test]
fn every_state_between_two_steps_is_closed() {
    for (what, from, to) in transitions() {
        let mut fake = Fake::default();
        settle(&from, &mut fake);
        for step in plan_for(&to, &fake) {
            apply(std::slice::from_ref(&step), &mut fake).unwrap();
            assert_closed(&format!("{what}, after {step}"), &fake, &from, &to);
        }
        assert_eq!(plan_for(&to, &fake), [], "{what}");
    }
}

#[test]
fn a_teardown_goes_on_and_lists_what_failed() {
    let mut fake = Fake::default();
    settle(&wanted(&format!("{WEB}{PUBLISH}"), &host()), &mut fake);
    let steps = plan_for(&Desired::default(), &fake);
    (fake.calls, fake.fail_at) = (0, Some(3));
    let failures = apply_all(&steps, &mut fake);
    assert_eq!(failures.len(), 1);
    assert_eq!(fake.calls, steps.len());
    let text = failures[0].to_string();
    assert!(text.contains(&steps[3].subject()), "{text}");
}

#[test]
fn flows_end_by_port_and_not_by_row() {
    let with = |ports: &str| {
        let (first, last) = ports.split_once('-').unwrap();
        let shift = |p: &str| p.parse::<u16>().unwrap() - 8000 + 80;
        wanted(
            &format!(
                "{WEB}[[publish]]\nnetwork = \"web\"\ncontainer = \"10.201.1.2\"\nhost = \"0.0.0.0\"\nhost_ports = \"{ports}\"\ncontainer_ports = \"{}-{}\"\n",
                shift(first),
                shift(last)
            ),
            &host(),
        )
    };
    let ended = |from: &Desired, to: &Desired| -> Vec<(u16, u16)> {
        let filter = ended_flows(&to.tables, &from.tables);
        assert!(filter.containers.is_empty());
        filter.published.iter().map(|p| (p.first, p.last)).collect()
    };
    // The range grows: every row is another, every port leads where it led.
    assert_eq!(ended(&with("8000-8005"), &with("8000-8010")), []);
    assert_eq!(
        ended(&with("8000-8010"), &with("8000-8005")),
        [(8006, 8007), (8008, 8009), (8010, 8010)]
    );
    assert_eq!(ended(&with("8000-8005"), &wanted(WEB, &host())).len(), 2);
}

#[test]
fn a_container_that_goes_takes_its_flows_along() {
    let from = wanted(WEB, &two_containers());
    let to = wanted(WEB, &host());
    let mut fake = Fake::default();
    settle(&from, &mut fake);
    settle(&to, &mut fake);
    let ended = fake.ended.last().unwrap();
    let address: IpAddr = "10.201.1.3".parse().unwrap();
    assert_eq!(ended.containers, BTreeSet::from([address]));
}

#[test]
fn what_is_stale_is_detached_and_what_is_old_is_replaced() {
    let desired = wanted(WEB, &host());
    let mut fake = Fake::default();
    settle(&desired, &mut fake);
    let uplink = Attachment {
        hook: Hook::FromUplink,
        ifindex: 2,
    };
    let gone = Attachment {
        hook: Hook::FromEndpoint,
        ifindex: 99,
    };
    fake.actual.attachments.insert(uplink, Attached::Outdated);
    fake.actual.attachments.insert(gone, Attached::Stale);
    assert_eq!(
        plan_for(&desired, &fake),
        [Step::Detach(gone), Step::Replace(uplink, "up0".to_owned())],
        "and no flow decides again for it"
    );
    fake.actual.attachments.insert(uplink, Attached::Stale);
    assert_eq!(
        plan_for(&desired, &fake),
        [
            Step::Detach(uplink),
            Step::Detach(gone),
            Step::Attach(uplink, "up0".to_owned())
        ]
    );
}

#[test]
fn guards_come_first_and_go_last() {
    let desired = wanted(&format!("{WEB}{PUBLISH}"), &host());
    let mut fake = Fake::default();
    let up = plan_for(&desired, &fake);
    let first = up.iter().find(|s| matches!(s, Step::Attach(..))).unwrap();
    assert!(matches!(first, Step::Attach(a, _) if a.hook == Hook::BridgeIn));
    assert_eq!(up.last(), Some(&Step::BumpEpoch));
    settle(&desired, &mut fake);
    let down = plan_for(&Desired::default(), &fake);
    let last = down
        .iter()
        .rfind(|s| matches!(s, Step::Detach(..)))
        .unwrap();
    assert!(matches!(last, Step::Detach(a) if a.hook == Hook::BridgeIn));
}

#[test]
fn steps_read_well_as_json() {
    let desired = wanted(WEB, &host());
    let steps = plan_for(&desired, &Fake::default());
    let json = serde_json::to_value(&steps).unwrap();
    let first = &json[1];
    assert_eq!(first["action"], "add");
    assert_eq!(first["table"], "NETWORKS");
    assert!(first["subject"].as_str().unwrap().starts_with("network 1"));
}

#[test]
fn a_range_that_is_divided_leads_somewhere_all_the_time() {
    let whole = format!("{WEB}{PUBLISH}");
    // 8000-8005 is 8000/14 and 8004/15; without 8002 it is other prefixes.
    let divided = whole
        .replace("\"8000-8005\"", "\"8000-8001\"")
        .replace("\"80-85\"", "\"80-81\"");
    let (whole, divided) = (wanted(&whole, &host()), wanted(&divided, &host()));
    for (from, to) in [(&whole, &divided), (&divided, &whole)] {
        let mut fake = Fake::default();
        settle(from, &mut fake);
        let steps = plan_for(to, &fake);
        let port = |port: u16, tables: &Tables| {
            tables.publish_v4.keys().any(|key| {
                let bits = key.bits - port_prefix_base::<V4Addr>();
                (u16::from_be_bytes(key.data.port) ^ port).leading_zeros() >= bits
            })
        };
        for step in &steps {
            apply(std::slice::from_ref(step), &mut fake).unwrap();
            for still in [8000, 8001] {
                assert!(port(still, &fake.actual.tables), "after {step}");
            }
        }
        assert_eq!(plan_for(to, &fake), []);
    }
}
