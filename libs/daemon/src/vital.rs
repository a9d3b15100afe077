//! What every process tells of itself: its version, what is ready, what it uses of the machine.

use std::fmt;
use std::fs;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::build_info;
use crate::handles::Handles;
use crate::readiness::Readiness;

/// Registers the figures of the process; once per registry.
pub(crate) fn register(handles: &Handles) {
    let vital = Vital {
        readiness: handles.readiness.clone(),
        started: seconds(SystemTime::now()),
    };
    handles
        .metrics
        .register(|registry| registry.register_collector(Box::new(vital)));
}

#[derive(Debug)]
struct Vital {
    readiness: Readiness,
    /// In seconds since 1970.
    started: f64,
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

impl Collector for Vital {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = MetricType::Gauge;
        let mut info = encoder.encode_descriptor(
            "mesh_process_build_info",
            "Always 1; the label tells the version.",
            None,
            gauge,
        )?;
        let version = [("version", build_info::VERSION)];
        ConstGauge::new(1_i64).encode(info.encode_family(&version)?)?;
        let name = "mesh_process_start_seconds";
        let help = "When the process started, in seconds since 1970.";
        let metric = encoder.encode_descriptor(name, help, None, gauge)?;
        ConstGauge::new(self.started).encode(metric)?;
        let name = "mesh_process_latch_ready";
        let help = "What must be ready: 1 when it is, 0 when not.";
        let mut latches = encoder.encode_descriptor(name, help, None, gauge)?;
        for (latch, ready) in self.readiness.latches() {
            let label = [("latch", latch.as_str())];
            ConstGauge::new(i64::from(ready)).encode(latches.encode_family(&label)?)?;
        }
        let name = "mesh_process_latch_degraded";
        let help = "What is ready and yet worse than it should be: 1 while it is.";
        let mut latches = encoder.encode_descriptor(name, help, None, gauge)?;
        let degraded = self.readiness.degraded();
        for (latch, _) in self.readiness.latches() {
            let is_worse = degraded.iter().any(|worse| worse.name == latch);
            let label = [("latch", latch.as_str())];
            ConstGauge::new(i64::from(is_worse)).encode(latches.encode_family(&label)?)?;
        }
        if let Some(bytes) = resident_bytes() {
            let name = "mesh_process_resident_bytes";
            let help = "Memory that the process holds.";
            let metric = encoder.encode_descriptor(name, help, None, gauge)?;
            ConstGauge::new(bytes).encode(metric)?;
        }
        let (used, limit) = open_files();
        for (name, help, value) in [
            ("mesh_process_open_files", "File descriptors in use.", used),
            (
                "mesh_process_open_files_limit",
                "File descriptors that the process may have.",
                limit,
            ),
        ] {
            if value > 0 {
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                let metric = encoder.encode_descriptor(name, help, None, gauge)?;
                ConstGauge::new(value).encode(metric)?;
            }
        }
        if let Some(used) = cpu_seconds() {
            let counter = ConstCounter::new(used);
            let name = "mesh_process_cpu_seconds";
            let help = "Processor time used, by user and system.";
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

/// File descriptors that this process has open, and the most it may have (the soft
/// `RLIMIT_NOFILE`); 0 for what the system does not tell.
pub fn open_files() -> (u64, u64) {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let open = fs::read_dir("/proc/self/fd").map(|open| open.count() as u64);
    (used_files(open, limit), limit)
}

/// Counting takes a descriptor itself: when there is none left, all are in use.
fn used_files(open: io::Result<u64>, limit: u64) -> u64 {
    match open {
        Ok(used) => used,
        Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            Errno::EMFILE | Errno::ENFILE => limit,
            _ => 0,
        },
    }
}

/// Resident memory in bytes (proc_pid_statm(5): the second number, in pages).
fn resident_bytes() -> Option<i64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    Some(pages * page.ok().flatten()?)
}

/// Processor time in seconds (proc_pid_stat(5): utime and stime, in clock ticks).
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything, so counting starts behind it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let ticks = u32::try_from(ticks.ok().flatten()?).ok()?;
    Some((f64::from(user) + f64::from(system)) / f64::from(ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_cannot_open_anything_uses_all_that_it_may() {
        let failed = |errno: Errno| Err(io::Error::from_raw_os_error(errno as i32));
        assert_eq!(used_files(Ok(7), 1024), 7);
        assert_eq!(used_files(failed(Errno::EMFILE), 1024), 1024);
        assert_eq!(used_files(failed(Errno::ENFILE), 1024), 1024);
        // Nothing is known then.
        assert_eq!(used_files(failed(Errno::EACCES), 1024), 0);
        assert_eq!(
            used_files(Err(io::Error::other("not the system's")), 1024),
            0
        );
    }

    #[test]
    fn a_process_tells_what_is_ready_and_what_it_uses() {
        let handles = Handles::default();
        register(&handles);
        let latch = handles.readiness.latch("store", "opening");
        let before = handles.metrics.encode();
        assert!(
            before.contains("mesh_process_latch_ready{latch=\"store\"} 0"),
            "{before}"
        );
        latch.degraded("slow");
        let worse = handles.metrics.encode();
        assert!(
            worse.contains("mesh_process_latch_degraded{latch=\"store\"} 1")
                && worse.contains("mesh_process_latch_ready{latch=\"store\"} 1"),
            "{worse}"
        );
        latch.ready();
        let text = handles.metrics.encode();
        assert!(
            text.contains("mesh_process_latch_degraded{latch=\"store\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("mesh_process_latch_ready{latch=\"store\"} 1"),
            "{text}"
        );
        let version = format!(
            "mesh_process_build_info{{version=\"{}\"}} 1",
            build_info::VERSION
        );
        assert!(text.contains(&version), "{text}");
        let value = |name: &str| -> f64 {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")));
            let line = line.unwrap_or_else(|| panic!("{name} not in {text}"));
            line.rsplit(' ')
                .next()
                .and_then(|v| v.parse().ok())
                .expect("a number")
        };
        assert!(value("mesh_process_resident_bytes") > 1e6);
        assert!(value("mesh_process_open_files") >= 3.0);
        assert!(value("mesh_process_open_files_limit") > value("mesh_process_open_files"));
        assert!(value("mesh_process_cpu_seconds_total") >= 0.0);
        assert!(value("mesh_process_start_seconds") > 1e9);
    }
}
