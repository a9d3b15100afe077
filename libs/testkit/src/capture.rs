//! Packet captures.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tempfile::NamedTempFile;

use crate::child::{Child, Spec};
use crate::eventually::rest;
use crate::lab::Host;

const QUIET: Duration = Duration::from_millis(300);
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    file: NamedTempFile,
}

/// What a finished capture saw: a pcap file's bytes, whole packets.
pub struct Captured(Vec<u8>);

impl Capture {
    /// Captures whole packets on `interface` of `host` that match `filter` (tcpdump's language;
    /// empty for all). Returns when the capture has begun.
    pub fn start(host: &Host, interface: &str, filter: &str) -> anyhow::Result<Self> {
        let file = NamedTempFile::new().context("make a file for the capture")?;
        let tcpdump = Spec::new("tcpdump")
            .host(host)
            .name(format!("tcpdump-{}-{interface}", host.name()))
            .args([
                "-i",
                interface,
                "-s",
                "0",
                "-U",
                "-n",
                "-B",
                "32768",
                "--immediate-mode",
                "-Z",
                "root",
                "-w",
            ])
            .arg(file.path())
            .args(filter.split_whitespace())
            .spawn()?;
        tcpdump.wait_for_line("listening on", Duration::from_secs(10));
        Ok(Self { tcpdump, file })
    }

    /// Waits until nothing more is written: tcpdump throws away what it has not read when it ends.
    fn settle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        let (mut size, mut since) = (0, Instant::now());
        while since.elapsed() < QUIET && Instant::now() < deadline {
            let now = self.file.as_file().metadata()?.len();
            if now != size {
                (size, since) = (now, Instant::now());
            }
            rest(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends it.
    pub fn finish(mut self) -> anyhow::Result<Captured> {
        self.settle()?;
        self.tcpdump.interrupt()?;
        let ended = self.tcpdump.finish(Duration::from_secs(10))?.success()?;
        for line in ended.stderr.lines() {
            let lost = line
                .strip_suffix("packets dropped by kernel")
                .map(str::trim);
            anyhow::ensure!(
                lost.is_none_or(|count| count == "0"),
                "the capture is not whole: {line}"
            );
        }
        Ok(Captured(
            std::fs::read(self.file.path()).context("read the capture")?,
        ))
    }
}

impl Captured {
    /// Whether these bytes occur anywhere, within one packet.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Size of the capture in bytes, its own headers included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no packet was captured.
    pub fn is_empty(&self) -> bool {
        // A pcap file starts with a header of 24 bytes.
        self.0.len() <= 24
    }
}

impl std::fmt::Debug for Captured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Captured({} bytes)", self.0.len())
    }
}
