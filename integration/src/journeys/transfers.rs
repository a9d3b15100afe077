//! Published services through SOCKS5, and a large transfer beside many others.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use mesh_testkit::{Child, Curl, Need, Spec, eventually};

use super::WORKERS;
use crate::server::{sha256, write_noise};
use crate::{Field, Server};

/// What the journey needs of the machine.
pub const NEEDED: [Need; 4] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("sha256sum"),
];
/// Who publishes the files.
pub const NODE: &str = WORKERS[0];
const SOON: Duration = Duration::from_secs(30);
const LARGE: usize = 256 << 20;
const STREAMS: usize = 10;
/// What each of the other streams may take in a second: curl holds it by taking much at once and
/// resting then, so little of it at a time would be rests that are longer than the large transfer.
const OTHER_RATE: &str = "4M";

/// curl on the host of the deploy-manager, through its listener of a network.
pub fn through(field: &Field, network: &str) -> Curl {
    let proxy = field.socks(network).to_string();
    Curl::new()
        .on(Some(field.host("edge")))
        .args(["--socks5-hostname", &proxy])
}

/// Waits until a service answers by its node's name, with the answer of `host`'s [`Server`].
///
/// # Panics
/// When it does not in time.
#[track_caller]
pub fn wait_for_service(field: &Field, network: &str, node: &str, host: &str, port: u16) {
    eventually("the service is reached by name", SOON, || {
        let body = through(field, network)
            .get(format!("http://{node}:{port}/hi"))?
            .ok()?;
        ensure!(body == format!("hello from {host}: /hi\n"), "{body}");
        Ok(())
    });
}

/// A download through the default network's listener, not faster than `rate`, to be started.
pub fn download(field: &Field, port: u16, into: &Path, rate: &str) -> Spec {
    through(field, "default")
        .args(["--limit-rate", rate, "--max-time", "300", "-o"])
        .arg(into)
        .arg(format!("http://{NODE}:{port}/file"))
        .into_spec()
}

/// A file of 256 MiB at a server on [`NODE`]'s loopback.
#[derive(Debug)]
pub struct Transfers {
    source: PathBuf,
    server: Server,
}

impl Transfers {
    /// Writes the file and starts the server.
    ///
    /// # Panics
    /// When it does not start; so do the checks below when something is not as it must be.
    pub fn install(field: &mut Field) -> Self {
        let host = field.prepare_host(NODE).expect("host");
        let source = write_noise(field.operator().work("noise"), LARGE).expect("file");
        let server = Server::start(Some(&host), NODE, Some(&source)).expect("server");
        Self { source, server }
    }

    /// [`NODE`], which has joined, publishes the server as `files`.
    pub fn publish(&self, field: &Field) {
        field.worker(NODE).publish("files", self.port());
        wait_for_service(field, "default", NODE, NODE, self.port());
    }

    /// The server's port, on loopback and on the overlay.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The first half of point 5 of the issue: 256 MiB with the right checksum while ten other
    /// streams run, all of them from before it until after it. Returns how many bytes arrived.
    pub fn large_beside_ten(&self, field: &Field) -> u64 {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let mut others: Vec<(PathBuf, Child)> = (0..STREAMS)
            .map(|n| {
                let into = field.operator().work(&format!("other-{n}"));
                let spec = download(field, self.port(), &into, OTHER_RATE).name("other");
                (into, spec.spawn().expect("starts"))
            })
            .collect();
        eventually("all of the others run", SOON, || {
            for (into, _) in &others {
                ensure!(size(into) > 0, "{} is empty", into.display());
            }
            Ok(())
        });
        let before: Vec<u64> = others.iter().map(|(into, _)| size(into)).collect();

        let into = field.operator().work("large");
        let ran = download(field, self.port(), &into, "2G")
            .name("large")
            .run(Duration::from_secs(240))
            .expect("ends")
            .expect_code(0);
        let mut moved = size(&into);
        for ((into, other), before) in others.iter_mut().zip(before) {
            assert!(
                other.is_running(),
                "a slow stream ended: {}",
                other.log().tail(5)
            );
            moved += eventually("a slow stream goes on", SOON, || {
                let after = size(into);
                ensure!(after > before, "it stands at {after} bytes");
                Ok(after)
            });
        }
        assert_eq!(
            sha256(&into).expect("sum"),
            sha256(&self.source).expect("sum")
        );
        let rate = f64::from(u32::try_from(LARGE >> 20).expect("fits")) / ran.elapsed.as_secs_f64();
        println!("256 MiB through SOCKS5 beside {STREAMS} streams: {rate:.1} MiB/s");
        moved
    }
}
