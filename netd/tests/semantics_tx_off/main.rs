//! The semantics again, with transmit offload off on every veth: no packet has a partial checksum then, and what
//! the stack would have summed later is summed already. The tests are those of `semantics`; `world` turns it off.

#[path = "../semantics/hostile.rs"]
mod hostile;
#[path = "../semantics/layer2.rs"]
mod layer2;
#[path = "../semantics/networks.rs"]
mod networks;
#[path = "../semantics/publish.rs"]
mod publish;
#[path = "../semantics/spoof.rs"]
mod spoof;
#[path = "../semantics/table.rs"]
mod table;
#[path = "../semantics/uplinks.rs"]
mod uplinks;
#[path = "../semantics/verbs.rs"]
mod verbs;
#[path = "../semantics/world.rs"]
mod world;
