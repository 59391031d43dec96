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

pub use diagnostic::{Diagnostic, Report, Severity};
pub use load::{ConfigError, Loaded, MAX_FILE_SIZE};
pub use model::{
    Config, ContainersAccess, DEFAULT_PATH, DEFAULT_PIN_DIR, Family, GatewayMode, GatewayModes,
    Host, HostAddresses, Limits, Log, LogFormat, LogLevel, MasqueradeTo, Mode, Nat, NatPorts,
    Network, Protocol, Publish, ReturnPath, Spoof, Uplink, UplinkPolicy, UplinkSelection,
};
pub use names::{InterfaceName, MAX_INTERFACE_NAME, NameError, NamePattern};
pub use ports::{PortError, PortRange};
