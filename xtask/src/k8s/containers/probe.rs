//! Asking a container as a kubelet does: from outside, with the probes of the manifest.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::compose::Engine;
use crate::k8s::manifest::{Container, list, text};

/// How long one question may take, the manifest's `timeoutSeconds` besides.
const LIMIT: Duration = Duration::from_secs(3);

/// What a program of ours says of a part that it goes on without.
const DEGRADED: &str = ": degraded: ";

/// Asks all probes; `Err` says which one failed and why. More than a kubelet asks: a program that
/// goes on without a part of its own, such as Redis, has failed too.
pub(super) fn all(
    engine: &Engine,
    container: Container<'_>,
    name: &str,
    address: &str,
) -> Result<(), String> {
    for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let Some(probe) = container.value.get(kind) else {
            continue;
        };
        one(engine, container, probe, name, address)
            .map_err(|reason| format!("{kind}: {reason}"))?;
    }
    Ok(())
}

fn one(
    engine: &Engine,
    container: Container<'_>,
    probe: &Value,
    name: &str,
    address: &str,
) -> Result<(), String> {
    if probe.get("exec").is_some() {
        let mut docker = engine.docker();
        docker.args(["exec", name]);
        docker.args(list(probe, "/exec/command").filter_map(Value::as_str));
        docker.stdin(Stdio::null());
        let output = docker.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        return Err(String::from_utf8_lossy(&said).trim().to_owned());
    }
    let port = probe
        .pointer("/httpGet/port")
        .or_else(|| probe.pointer("/tcpSocket/port"))
        .ok_or("it asks nothing")?;
    let port = container
        .ports()
        .find(|(name, number, _)| port.as_str() == Some(name) || port.as_u64() == Some(*number))
        .and_then(|(_, number, _)| u16::try_from(number).ok())
        .ok_or("its port is not there")?;
    let address = address.parse().map_err(|_| "it has no address yet")?;
    let stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), LIMIT)
        .map_err(|error| format!("port {port}: {error}"))?;
    if probe.get("tcpSocket").is_some() {
        return Ok(());
    }
    let answer = get(stream, text(probe, "/httpGet/path"))?;
    let degraded = answer.lines().find(|line| line.contains(DEGRADED));
    match degraded.filter(|_| container.program().is_some()) {
        None => Ok(()),
        Some(line) => Err(line.to_owned()),
    }
}

/// One HTTP question and what is answered; anything but 200 to 399 is a failure, as for a kubelet.
fn get(mut stream: TcpStream, path: &str) -> Result<String, String> {
    let answer = (|| {
        stream.set_read_timeout(Some(LIMIT))?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })()
    .map_err(|error: std::io::Error| format!("{path}: {error}"))?;
    let code = answer.split_whitespace().nth(1);
    let code = code.and_then(|code| code.parse::<u16>().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    if code.is_some_and(|code| (200..400).contains(&code)) {
        return Ok(body.to_owned());
    }
    Err(format!("{path}: {}: {}", code.unwrap_or(0), body.trim()))
}
