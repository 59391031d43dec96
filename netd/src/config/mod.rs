//! The TOML file that describes a host: its types, its errors, and its last good copy.
//!
//! [`Config::load`] reads a file, [`Config::parse`] a text. Both look at all of it and report
//! every error at once, each with its place and what to write instead. `docs/configuration.md` is
//! the reference for those who write the file.

mod address;
mod advice;
mod conflicts;
mod diagnostic;
mod document;
pub mod last_good;
mod load;
mod model;
mod names;
mod network;
mod ports;
mod publish;
mod read;
mod schema;
#[cfg(test)]
mod tests;
mod words;

pub use diagnostic::{Diagnostic, Report, Severity};
pub use load::{ConfigError, Loaded, MAX_FILE_SIZE};
pub use model::{
    Config, DEFAULT_PATH, DEFAULT_PIN_DIR, Family, GatewayModes, Host, HostAddresses, Limits, Log,
    MasqueradeTo, Nat, NatPorts, Network, Publish, Uplink, UplinkPolicy, UplinkSelection,
};
pub use names::{InterfaceName, MAX_INTERFACE_NAME, NameError, NamePattern};
pub use ports::{PortError, PortRange};
pub use words::{
    ContainersAccess, GatewayMode, LogFormat, LogLevel, Mode, Protocol, ReturnPath, Spoof,
};
