//! Addresses, routes, policy rules and neighbours of a namespace.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::route::{RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::RulePortRange;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{RouteMessageBuilder, RouteNextHopBuilder};

use super::device::Mac;
use super::error::{LabError, Result};
use super::namespace::Namespace;

/// A route to add or to delete; what is not set is the kernel's default.
#[derive(Clone, Debug)]
pub struct Route {
    destination: IpNet,
    via: Option<IpAddr>,
    device: Option<String>,
    table: Option<u32>,
    metric: Option<u32>,
    source: Option<IpAddr>,
    onlink: bool,
    kind: RouteType,
    hops: Vec<(IpAddr, String)>,
}

impl Route {
    /// A unicast route to a prefix.
    pub fn to(destination: IpNet) -> Self {
        Self {
            destination,
            via: None,
            device: None,
            table: None,
            metric: None,
            source: None,
            onlink: false,
            kind: RouteType::Unicast,
            hops: Vec::new(),
        }
    }

    /// The default route of the gateway's family, through that gateway.
    pub fn default_via(gateway: IpAddr) -> Self {
        let any = match gateway {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
        };
        Self::to(any).via(gateway)
    }

    /// Through this gateway.
    pub fn via(self, gateway: IpAddr) -> Self {
        Self {
            via: Some(gateway),
            ..self
        }
    }

    /// Out of this device.
    pub fn device(self, device: &str) -> Self {
        Self {
            device: Some(device.to_owned()),
            ..self
        }
    }

    /// In this table instead of main.
    pub fn table(self, table: u32) -> Self {
        Self {
            table: Some(table),
            ..self
        }
    }

    /// With this metric.
    pub fn metric(self, metric: u32) -> Self {
        Self {
            metric: Some(metric),
            ..self
        }
    }

    /// With this preferred source address.
    pub fn source(self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// The gateway counts as reachable on the device although no prefix says so.
    pub fn onlink(self) -> Self {
        Self {
            onlink: true,
            ..self
        }
    }

    /// One more of several next hops of the same weight: a gateway on a device.
    pub fn hop(mut self, gateway: IpAddr, device: &str) -> Self {
        self.hops.push((gateway, device.to_owned()));
        self
    }

    /// Of another kind: blackhole, unreachable, prohibit, throw, local.
    pub fn kind(self, kind: RouteType) -> Self {
        Self { kind, ..self }
    }

    fn message(&self, namespace: &Namespace) -> Result<RouteMessage> {
        let invalid = |e: &dyn std::fmt::Display| LabError::Invalid(format!("{self:?}: {e}"));
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.destination.addr(), self.destination.prefix_len())
            .map_err(|e| invalid(&e))?
            .kind(self.kind);
        if let Some(device) = &self.device {
            message = message.output_interface(namespace.ifindex(device)?);
        }
        if !self.hops.is_empty() {
            let hops = self.hops.iter().map(|(gateway, device)| {
                let hop = match gateway {
                    IpAddr::V4(_) => RouteNextHopBuilder::new_ipv4(),
                    IpAddr::V6(_) => RouteNextHopBuilder::new_ipv6(),
                };
                let hop = hop.interface(namespace.ifindex(device)?);
                Ok(hop.via(*gateway).map_err(|e| invalid(&e))?.build())
            });
            message = message
                .multipath(hops.collect::<Result<_>>()?)
                .scope(RouteScope::Universe);
        }
        message = match (self.via, self.kind) {
            (None, RouteType::Unicast) if !self.hops.is_empty() => message,
            (Some(gateway), _) => message
                .gateway(gateway)
                .map_err(|e| invalid(&e))?
                .scope(RouteScope::Universe),
            (None, RouteType::Unicast) => message.scope(RouteScope::Link),
            (None, RouteType::Local) => message.scope(RouteScope::Host),
            (None, _) => message.scope(RouteScope::Universe),
        };
        if let Some(source) = self.source {
            message = message.pref_source(source).map_err(|e| invalid(&e))?;
        }
        if let Some(table) = self.table {
            message = message.table_id(table);
        }
        if let Some(metric) = self.metric {
            message = message.priority(metric);
        }
        if self.onlink {
            message = message.onlink();
        }
        Ok(message.build())
    }
}

/// A policy rule (`ip rule`) of one address family.
#[derive(Clone, Debug)]
pub struct Rule {
    ipv6: bool,
    priority: u32,
    action: RuleAction,
    invert: bool,
    attributes: Vec<RuleAttribute>,
    source: Option<IpNet>,
    destination: Option<IpNet>,
    tos: u8,
}

impl Rule {
    /// An IPv4 rule that looks up `table`.
    pub fn v4(priority: u32, table: u32) -> Self {
        Self {
            ipv6: false,
            priority,
            action: RuleAction::ToTable,
            invert: false,
            attributes: vec![RuleAttribute::Table(table)],
            source: None,
            destination: None,
            tos: 0,
        }
    }

    /// An IPv6 rule that looks up `table`.
    pub fn v6(priority: u32, table: u32) -> Self {
        Self {
            ipv6: true,
            ..Self::v4(priority, table)
        }
    }

    /// Ends the lookup with this action (blackhole, unreachable, prohibit) instead.
    pub fn action(mut self, action: RuleAction) -> Self {
        self.attributes
            .retain(|a| !matches!(a, RuleAttribute::Table(_)));
        Self { action, ..self }
    }

    /// Matches packets that came in by this device.
    pub fn input_device(self, device: &str) -> Self {
        self.with(RuleAttribute::Iifname(device.to_owned()))
    }

    /// Matches packets of sockets bound to this device.
    pub fn output_device(self, device: &str) -> Self {
        self.with(RuleAttribute::Oifname(device.to_owned()))
    }

    /// Matches packets whose mark equals `mark` under `mask`.
    pub fn mark(self, mark: u32, mask: u32) -> Self {
        self.with(RuleAttribute::FwMark(mark))
            .with(RuleAttribute::FwMask(mask))
    }

    /// Matches sources.
    pub fn from(self, source: IpNet) -> Self {
        Self {
            source: Some(source),
            ..self
        }
    }

    /// Matches destinations.
    pub fn to(self, destination: IpNet) -> Self {
        Self {
            destination: Some(destination),
            ..self
        }
    }

    /// Matches packets of this protocol.
    pub fn protocol(self, protocol: u8) -> Self {
        self.with(RuleAttribute::IpProtocol(IpProtocol::from(i32::from(
            protocol,
        ))))
    }

    /// Matches packets from this port; say the protocol as well.
    pub fn source_port(self, port: u16) -> Self {
        self.with(RuleAttribute::SourcePortRange(RulePortRange {
            start: port,
            end: port,
        }))
    }

    /// Matches packets to this port; say the protocol as well.
    pub fn destination_port(self, port: u16) -> Self {
        self.with(RuleAttribute::DestinationPortRange(RulePortRange {
            start: port,
            end: port,
        }))
    }

    /// Matches packets with this TOS byte or traffic class.
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// Matches what the rest of the rule does not match (`ip rule add not …`).
    pub fn invert(self) -> Self {
        Self {
            invert: true,
            ..self
        }
    }

    /// Refuses results with a prefix of this length or shorter.
    pub fn suppress_prefix_length(self, length: u32) -> Self {
        self.with(RuleAttribute::SuppressPrefixLen(length))
    }

    fn with(mut self, attribute: RuleAttribute) -> Self {
        self.attributes.push(attribute);
        self
    }

    fn fill(self, message: &mut RuleMessage) {
        message.header.action = self.action;
        message.header.tos = self.tos;
        message
            .attributes
            .push(RuleAttribute::Priority(self.priority));
        message.attributes.extend(self.attributes);
        if self.invert {
            message.header.flags |= RuleFlags::Invert;
        }
        if let Some(net) = self.source {
            message.header.src_len = net.prefix_len();
            message
                .attributes
                .push(RuleAttribute::Source(net.network()));
        }
        if let Some(net) = self.destination {
            message.header.dst_len = net.prefix_len();
            message
                .attributes
                .push(RuleAttribute::Destination(net.network()));
        }
    }
}

impl Namespace {
    /// Adds an address; an IPv6 one is usable at once on a device that is ready (no duplicate address detection).
    pub fn add_address(&self, device: &str, address: IpNet) -> Result<()> {
        let info = self.device(device)?;
        let index = info.ifindex;
        self.netlink(
            format!("add {address} to {device}"),
            move |handle| async move {
                let mut request = handle
                    .address()
                    .add(index, address.addr(), address.prefix_len());
                if address.addr().is_ipv6() {
                    let message = request.message_mut();
                    message.header.flags |= AddressHeaderFlags::Nodad;
                    message
                        .attributes
                        .push(AddressAttribute::Flags(AddressFlags::Nodad));
                }
                request.execute().await
            },
        )?;
        if info.ready && address.addr().is_ipv6() {
            self.wait_ready(device)
        } else {
            Ok(())
        }
    }

    /// Deletes an address.
    pub fn delete_address(&self, device: &str, address: IpNet) -> Result<()> {
        let index = self.ifindex(device)?;
        self.netlink(
            format!("delete {address} from {device}"),
            move |handle| async move {
                let mut request = handle
                    .address()
                    .add(index, address.addr(), address.prefix_len());
                let message = request.message_mut().clone();
                handle.address().del(message).execute().await
            },
        )
    }

    /// Adds a route.
    pub fn add_route(&self, route: &Route) -> Result<()> {
        let message = route.message(self)?;
        self.netlink(format!("add {route:?}"), move |handle| async move {
            handle.route().add(message).execute().await
        })
    }

    /// Adds a route or takes the place of the one with the same destination, table and metric.
    pub fn replace_route(&self, route: &Route) -> Result<()> {
        let message = route.message(self)?;
        self.netlink(format!("replace {route:?}"), move |handle| async move {
            handle.route().add(message).replace().execute().await
        })
    }

    /// Deletes a route.
    pub fn delete_route(&self, route: &Route) -> Result<()> {
        let message = route.message(self)?;
        self.netlink(format!("delete {route:?}"), move |handle| async move {
            handle.route().del(message).execute().await
        })
    }

    /// Adds a policy rule.
    pub fn add_rule(&self, rule: &Rule) -> Result<()> {
        let doing = format!("add {rule:?}");
        let rule = rule.clone();
        self.netlink(doing, move |handle| async move {
            if rule.ipv6 {
                let mut request = handle.rule().add().v6();
                rule.fill(request.message_mut());
                request.execute().await
            } else {
                let mut request = handle.rule().add().v4();
                rule.fill(request.message_mut());
                request.execute().await
            }
        })
    }

    /// Deletes a policy rule.
    pub fn delete_rule(&self, rule: &Rule) -> Result<()> {
        let doing = format!("delete {rule:?}");
        let rule = rule.clone();
        self.netlink(doing, move |handle| async move {
            let mut message = if rule.ipv6 {
                handle.rule().add().v6().message_mut().clone()
            } else {
                handle.rule().add().v4().message_mut().clone()
            };
            rule.fill(&mut message);
            handle.rule().del(message).execute().await
        })
    }

    /// Adds a permanent neighbour entry, or takes the place of one.
    pub fn set_neighbour(&self, device: &str, address: IpAddr, mac: Mac) -> Result<()> {
        let index = self.ifindex(device)?;
        self.netlink(
            format!("set neighbour {address} on {device}"),
            move |handle| async move {
                handle
                    .neighbours()
                    .add(index, address)
                    .link_layer_address(&mac)
                    .replace()
                    .execute()
                    .await
            },
        )
    }
}
