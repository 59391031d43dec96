//! Messages of the programs themselves, in a build with the cargo feature `bpf-log`: every drop and
//! every decision of the slow path, at level debug. They go where the daemon's own go.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;

/// How often the messages are fetched.
const PERIOD: Duration = Duration::from_millis(100);

/// Reads the messages for as long as the runtime lives. Must be called within one.
///
/// # Errors
/// When the object has no message buffer.
pub fn forward(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let mut logger = EbpfLogger::init(ebpf)?;
    tokio::spawn(async move {
        let mut period = tokio::time::interval(PERIOD);
        loop {
            period.tick().await;
            logger.flush();
        }
    });
    Ok(())
}
