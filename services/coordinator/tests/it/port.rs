//! The port itself: HTTPS, TLS, limits, and what a person is told when a start fails.

use std::sync::Arc;

use coordinator::{App, ManualClock};
use mesh_api::pb;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::{COORDINATOR_NAME, Pin, client_config};
use mesh_daemon::Handles;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{Mesh, START, config, word};

async fn get(mesh: &Mesh, path: &str) -> String {
    let tls = mesh.tls(None, &[b"http/1.1"]);
    let tcp = TcpStream::connect(mesh.addr).await.expect("connects");
    let name = COORDINATOR_NAME.try_into().expect("a name");
    let mut stream = TlsConnector::from(tls)
        .connect(name, tcp)
        .await
        .expect("TLS");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    // A server may close without a TLS goodbye; what was read counts.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn health_version_and_a_page_for_lost_browsers() {
    let mesh = Mesh::start().await;
    let health = get(&mesh, "/health").await;
    assert!(
        health.starts_with("HTTP/1.1 200") && health.ends_with("\r\n\r\nOK"),
        "{health}"
    );
    let version = get(&mesh, "/version").await;
    assert!(version.contains(r#""name":"coordinator""#), "{version}");
    assert!(get(&mesh, "/").await.contains("8081"));
    assert!(get(&mesh, "/nowhere").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn plain_http_is_told_to_use_https() {
    let mesh = Mesh::start().await;
    let mut tcp = TcpStream::connect(mesh.addr).await.expect("connects");
    tcp.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .expect("writes");
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.expect("reads");
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("https://"),
        "{answer}"
    );
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(
        head.contains(&format!("content-length: {}", body.len())),
        "{answer}"
    );
}

#[tokio::test]
async fn a_certificate_of_another_coordinator_opens_nothing() {
    let (mesh, other) = (Mesh::start().await, Mesh::start().await);
    let stranger = other.joined(pb::Role::Worker, "worker").await;
    let tls = mesh.tls(Some(stranger.certificate()), &[b"http/1.1"]);
    let tcp = TcpStream::connect(mesh.addr).await.expect("connects");
    let name = COORDINATOR_NAME.try_into().expect("a name");
    let outcome = async {
        let mut stream = TlsConnector::from(tls).connect(name, tcp).await?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            .await?;
        let mut answer = [0; 16];
        stream.read(&mut answer).await
    };
    assert!(outcome.await.is_err(), "TLS lets a stranger through");
}

#[tokio::test]
async fn a_loop_of_guesses_meets_a_wall_that_names_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config(&dir);
    (
        config.limits.anonymous.burst,
        config.limits.anonymous.per_second,
    ) = (20, 1);
    let app = App::build(config, Handles::default())
        .await
        .expect("builds");
    let (addr, ca) = (app.local_addr(), app.ca_certificate());
    let (trigger, shutdown) = mesh_daemon::ShutdownTrigger::new(std::time::Duration::from_secs(3));
    let running = tokio::spawn(app.run(shutdown));
    let tls = client_config(Pin::Ca(ca.into()), None, &[b"h2"]).expect("TLS");
    let channel = mesh_api::client::connect(&[addr.to_string()], COORDINATOR_NAME, tls).await;
    let mut client = ControlServiceClient::new(channel.expect("connects"));
    let mut refusals = 0;
    for _ in 0..40 {
        if let Err(status) = client.challenge(pb::ChallengeRequest {}).await {
            assert_eq!(word(&status), "rate-limited");
            assert!(
                status.message().contains("try again in"),
                "{}",
                status.message()
            );
            refusals += 1;
        }
    }
    assert!((10..=20).contains(&refusals), "{refusals}");
    trigger.trigger("test");
    running.await.expect("no panic").expect("ends well");
}

#[tokio::test]
async fn oversized_requests_are_refused() {
    let mesh = Mesh::start().await;
    let request = pb::EnrolRequest {
        csr: vec![0; 1024 * 1024],
        ..Default::default()
    };
    let status = mesh
        .anonymous()
        .await
        .enrol(request)
        .await
        .expect_err("too large");
    assert_eq!(status.code(), tonic::Code::OutOfRange);
}

async fn failed_start(config: coordinator::Config) -> String {
    let error = App::build(config, Handles::default())
        .await
        .expect_err("must not start");
    format!("{error:#}")
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_what_to_do() {
    let mesh = Mesh::start().await;
    // The same directory.
    let text = failed_start(config(&mesh.dir)).await;
    assert!(
        text.contains("in use") && text.contains(&std::process::id().to_string()),
        "{text}"
    );
    // The same port.
    let dir = tempfile::tempdir().expect("a directory");
    let mut taken = config(&dir);
    taken.server.listen = mesh.addr;
    let text = failed_start(taken).await;
    assert!(text.contains("--listen"), "{text}");
    // A worker's directory.
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("state")).expect("makes");
    std::fs::write(dir.path().join("state/node.key"), "x").expect("writes");
    let text = failed_start(config(&dir)).await;
    assert!(text.contains("a node's state directory"), "{text}");
    // Without its master key.
    let (dir, _clock) = mesh.stop().await;
    let key = dir.path().join("state/master.key");
    let saved = std::fs::read(&key).expect("reads");
    std::fs::remove_file(&key).expect("removes");
    let text = failed_start(config(&dir)).await;
    assert!(
        text.contains("master.key") && text.contains("backup"),
        "{text}"
    );
    // With another one.
    std::fs::write(&key, "0".repeat(64)).expect("writes");
    let text = failed_start(config(&dir)).await;
    assert!(text.contains("does not open"), "{text}");
    std::fs::write(&key, saved).expect("writes");
    let clock = Arc::new(ManualClock::new(START));
    Mesh::start_in(dir, clock).await;
}

#[tokio::test]
async fn keys_and_credentials_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;

    let mesh = Mesh::start().await;
    let state = mesh.dir.path().join("state");
    let mode = |name: &str| {
        let meta = std::fs::metadata(state.join(name)).expect(name);
        meta.permissions().mode() & 0o777
    };
    assert_eq!(mode("."), 0o700);
    assert_eq!(mode("operator"), 0o700);
    for name in [
        "master.key",
        "operator/operator.key",
        "operator/operator.crt",
        "coordinator.lock",
    ]
    .iter()
    .chain(crate::engine::FILES)
    {
        assert_eq!(mode(name), 0o600, "{name}");
    }
}

#[tokio::test]
async fn readiness_and_metrics_follow_the_store() {
    let mesh = Mesh::start().await;
    crate::harness::eventually("ready", async || {
        mesh.handles.readiness.is_ready().then_some(())
    })
    .await;
    mesh.joined(pb::Role::Worker, "worker").await;
    let metrics = mesh.handles.metrics.encode();
    assert!(
        metrics.contains("mesh_coordinator_enrolments_total 1"),
        "{metrics}"
    );
}
