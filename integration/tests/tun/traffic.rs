//! What goes through the devices: pings, iperf3, bytes that are looked at.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::Field;
use integration::cli::USUAL;
use mesh_testkit::{Child, Finished, Host, eventually};
use serde_json::Value;

use super::{BACK, SOON};

const IPERF_PORT: u16 = 5201;

/// Seconds of a connection that something happens to.
pub(super) const WHILE: u32 = 15;

pub(super) fn ping(host: &Host, to: IpAddr, args: &[&str]) -> Finished {
    let spec = host.spec("ping").args(["-n", "-W", "2"]).args(args);
    spec.arg(to.to_string()).run(USUAL).expect("ping runs")
}

pub(super) fn wait_for_ping(host: &Host, to: IpAddr, within: Duration) -> Duration {
    let begun = Instant::now();
    eventually(&format!("{to} answers"), within, || {
        let ran = ping(host, to, &["-c", "1", "-W", "1"]);
        ensure!(ran.code == Some(0), "{}", ran.all());
        Ok(())
    });
    begun.elapsed()
}

/// The last line of ping, which has the round-trip times.
pub(super) fn times(ran: &Finished) -> &str {
    ran.stdout.lines().last().unwrap_or_default()
}

/// How many of the pings were not answered.
pub(super) fn lost(ran: &Finished) -> u32 {
    let told = ran
        .stdout
        .lines()
        .find(|line| line.contains(" packets transmitted, "));
    let told = told.unwrap_or_else(|| panic!("no figures: {}", ran.all()));
    let mut numbers = told
        .split(|c: char| !c.is_ascii_digit())
        .filter(|n| !n.is_empty());
    let mut number = || numbers.next().and_then(|n| n.parse::<u32>().ok());
    let (sent, received) = (number().expect("sent"), number().expect("received"));
    sent - received
}

pub(super) fn start_iperf(host: &Host, to: IpAddr, seconds: u32, extra: &[&str]) -> Child {
    host.spec("iperf3")
        .args([
            "--client",
            &to.to_string(),
            "--port",
            &IPERF_PORT.to_string(),
        ])
        .args(["--time", &seconds.to_string(), "--json"])
        .args(extra)
        .spawn()
        .expect("starts")
}

/// Mbit/s that arrived, over all and in the last three seconds.
pub(super) fn finish_iperf(mut client: Child) -> (f64, f64) {
    let ran = client.finish(USUAL).expect("ends").expect_code(0);
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let mbits = |value: &Value| value.as_f64().expect("a rate") / 1e6;
    let intervals = report["intervals"].as_array().expect("intervals");
    let last = &intervals[intervals.len().saturating_sub(3)..];
    assert!(!last.is_empty(), "no interval: {report}");
    let sum: f64 = last
        .iter()
        .map(|one| mbits(&one["sum"]["bits_per_second"]))
        .sum();
    (
        mbits(&report["end"]["sum_received"]["bits_per_second"]),
        sum / last.len() as f64,
    )
}

/// A server on all addresses of the machine, published so that the machine itself answers.
pub(super) fn serve_iperf(field: &Field, worker: &str) -> Child {
    let port = IPERF_PORT.to_string();
    let host = field.worker(worker).host();
    let server = host
        .spec("iperf3")
        .args(["--server", "--forceflush", "--port", &port]);
    let server = server.spawn().expect("starts");
    server.wait_for_line("Server listening", SOON);
    let words = ["iperf", &port, "--tcp", "--direct"];
    field.worker(worker).run("publish", &words).expect_code(0);
    server
}

/// Bytes there and back by the machines' own TCP, each in its place: so it is, whatever is split
/// and put together on the way, and no checksum of the kernel's vouches for what was put together.
pub(super) fn assert_bytes_come_back(field: &Field, one: &Host, to_two: [IpAddr; 2]) {
    const WORDS: u32 = 4 << 20;
    let listener = field
        .worker("two")
        .host()
        .enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)));
    let listener = listener.expect("binds both families");
    let port = listener.local_addr().expect("bound").port();
    let words = ["bytes", &port.to_string(), "--tcp", "--direct"];
    field.worker("two").run("publish", &words).expect_code(0);
    let echo = thread::spawn(move || -> io::Result<()> {
        for _ in to_two {
            let (stream, _) = listener.accept()?;
            io::copy(&mut &stream, &mut &stream)?;
        }
        Ok(())
    });
    // No two stretches of it are the same.
    let bytes: Vec<u8> = (0..WORDS)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_be_bytes())
        .collect();
    for ip in to_two {
        let stream = eventually("the port is open", SOON, || {
            let connect = || TcpStream::connect_timeout(&(ip, port).into(), BACK);
            Ok(one.enter(connect)?)
        });
        let mut back = Vec::with_capacity(bytes.len());
        thread::scope(|scope| {
            scope.spawn(|| {
                (&stream).write_all(&bytes).expect("takes them");
                stream.shutdown(Shutdown::Write).expect("ends");
            });
            stream.set_read_timeout(Some(SOON)).expect("a limit");
            (&stream).read_to_end(&mut back).expect("comes back");
        });
        assert!(
            back == bytes,
            "{ip}: {} bytes came back, changed",
            back.len()
        );
    }
    echo.join().expect("no panic").expect("no error");
}
