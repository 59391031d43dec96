//! The TOML file: its types, its errors, and its last good copy.

mod document;
mod model;
mod names;
mod ports;

pub use model::{
    Config, ContainersAccess, DEFAULT_PATH, DEFAULT_PIN_DIR, Family, GatewayMode, GatewayModes,
    Host, HostAddresses, Limits, Log, LogFormat, LogLevel, MasqueradeTo, Mode, Nat, NatPorts,
    Network, Protocol, Publish, ReturnPath, Spoof, Uplink, UplinkPolicy, UplinkSelection,
};
pub use names::{InterfaceName, MAX_INTERFACE_NAME, NameError, NamePattern};
pub use ports::{PortError, PortRange};
