//! Traffic that goes on while something else happens, and says at its end what became of it.

mod connections;
mod flood;
mod live;
mod push;
pub mod short;
mod stream;
mod transfer;
pub mod wire;

pub use connections::Connections;
pub use flood::syn as syn_flood;
pub use live::Live;
pub use push::Push;
pub use stream::Stream;
pub use transfer::Transfers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Told to all threads of a load at once.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// From now on.
    pub fn now(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is time.
    pub fn told(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
