//! What forwards the packets: each variant that is compared, behind one trait.

mod bare;
mod iptables;
mod netd;

use std::path::Path;

use crate::topology::Topology;

pub use self::bare::Bare;
pub use self::iptables::{Iptables, LEGACY, NFT};
pub use self::netd::Netd;

/// One way to get a packet from the uplink to the container.
pub trait Backend {
    /// Its name in the report and on the command line.
    fn name(&self) -> &'static str;

    /// What it is, in one line.
    fn about(&self) -> &'static str;

    /// Whether this machine has what it takes; if not, why.
    fn probe(&self) -> Result<(), String>;

    /// Whether it translates the destination, keeps the connection, and carries replies. One that
    /// does not marks a limit, and is no alternative.
    fn translates(&self) -> bool {
        true
    }

    /// Puts it to work on a topology that does nothing yet.
    ///
    /// # Errors
    /// What cannot be set up; nothing is left then.
    fn install(&self, topology: &Topology) -> anyhow::Result<Box<dyn Installed>>;
}

/// A backend at work. Dropping it removes whatever does not go away with the namespaces.
pub trait Installed {
    /// Says what went wrong since, for a message about packets that do not arrive.
    fn complaint(&mut self) -> Option<String> {
        None
    }

    /// Removes it in good order.
    ///
    /// # Errors
    /// What could not be removed.
    fn remove(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

/// All of them, in the order in which they take turns.
pub fn all(netd: &Path) -> Vec<Box<dyn Backend>> {
    vec![
        Box::new(Iptables::legacy()),
        Box::new(Iptables::nft()),
        Box::new(Netd::new(netd)),
        Box::new(Bare),
    ]
}
