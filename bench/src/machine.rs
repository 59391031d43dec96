//! What a figure depends on: the machine.

use std::fs;

use serde::Serialize;

/// The machine that measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs that are online.
    pub cores: usize,
    /// Architecture.
    pub arch: &'static str,
    /// Load average of the last minute when the benchmark began: other programs' demand.
    pub load: Option<f64>,
}

impl Machine {
    /// This one; what cannot be read is `unknown`.
    pub fn read() -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |text| text.trim().to_owned()),
            cpu: fs::read_to_string("/proc/cpuinfo")
                .ok()
                .and_then(|text| model(&text))
                .unwrap_or_else(unknown),
            cores: cores(),
            arch: std::env::consts::ARCH,
            load: fs::read_to_string("/proc/loadavg")
                .ok()
                .and_then(|text| text.split(' ').next()?.parse().ok()),
        }
    }
}

/// CPUs that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_is_the_first_one() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n\nmodel name\t: B\n";
        assert_eq!(model(text).as_deref(), Some("A CPU @ 2 GHz"));
        assert_eq!(model("processor\t: 0\n"), None);
    }
}
