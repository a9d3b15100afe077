//! The port itself: HTTPS, TLS, limits, and what a person is told when a start fails.

use std::sync::Arc;
use std::time::Duration;

use coordinator::{App, ManualClock};
use mesh_api::identity::Identity;
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_api::pb::control_service_client::ControlServiceClient;
use mesh_api::tls::COORDINATOR_NAME;
use mesh_daemon::Handles;
use mesh_types::JoinToken;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::{Machine, Mesh, START, config, eventually, refused, send, word};
use crate::session::Stream;

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

/// A request that is whole but for its secret.
async fn guess(mesh: &Mesh, token: &JoinToken) -> Result<pb::EnrolResponse, tonic::Status> {
    let mut request = Machine::new().request(mesh, token, "guess").await;
    request.token_id = Identity::generate()
        .expect("random")
        .public_key()
        .as_point()[1..17]
        .to_vec();
    send(mesh, request).await
}

#[tokio::test]
async fn a_loop_of_guesses_meets_a_wall_that_names_itself_and_locks_nobody_else_out() {
    let limited = |dir: &TempDir| {
        let mut config = config(dir);
        (
            config.limits.anonymous.burst,
            config.limits.anonymous.per_second,
        ) = (5, 1);
        config
    };
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let clock = Arc::new(ManualClock::new(START));
    let settings = limited(&dir);
    let mesh = Mesh::start_with(Arc::clone(&dir), clock, settings).await;
    let member = mesh.joined(pb::Role::Worker, "member").await;
    let token = mesh.token(pb::Role::Worker).await;
    let (dir, clock) = mesh.stop().await;
    // A start that has yet to see the token used.
    let settings = limited(&dir);
    let mesh = Mesh::start_with(dir, clock, settings).await;
    for _ in 0..40 {
        let mut client = mesh.anonymous().await;
        client
            .challenge(pb::ChallengeRequest {})
            .await
            .expect("nobody pays for a challenge");
    }
    let mut walls = 0;
    for _ in 0..20 {
        let status = guess(&mesh, &token).await.expect_err("no such token");
        if word(&status) == "rate-limited" {
            assert!(status.message().contains("try again in"), "{status}");
            walls += 1;
        }
    }
    assert!((10..=15).contains(&walls), "{walls}");
    // Behind the same address:
    member.renew(&mesh).await.expect("a member renews");
    let machine = Machine::new().join(&mesh, &token, "late").await;
    machine.expect("a token lets in whom it should");
    mesh.stop().await;
}

#[tokio::test]
async fn who_is_no_member_any_more_makes_room_and_a_member_does_not() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let mut settings = config(&dir);
    settings.server.max_connections = 2;
    let mesh = Mesh::start_with(dir, Arc::new(ManualClock::new(START)), settings).await;
    let gone = mesh.joined(pb::Role::Worker, "gone").await;
    let token = mesh.token(pb::Role::Worker).await;
    mesh.remove("default", "gone").await;
    // The operator's connection is the older one, and says nothing from now on.
    let wish = pb::WatchEventsRequest {
        follow: true,
        ..Default::default()
    };
    let watching = mesh.admin().await.watch_events(wish).await;
    let mut events = watching.expect("watches").into_inner();
    let mut removed = ControlServiceClient::new(gone.channel(&mesh).await);
    let refusal = removed.leave(pb::LeaveRequest {}).await;
    assert_eq!(refused(refusal), "removed");
    // Both stay. Each that comes now, one after the other, takes the place of the removed one.
    let late = Machine::new().join(&mesh, &token, "late");
    let late = tokio::time::timeout(Duration::from_secs(20), late).await;
    late.expect("there is room").expect("joins");
    let seen = async {
        loop {
            let event = events.message().await.expect("it watches on");
            if event.expect("an event").subject == "late" {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen)
        .await
        .expect("the operator sees who joins");
    drop(removed);
}

/// How many TLS connections are open.
fn open(mesh: &Mesh) -> usize {
    let metrics = mesh.handles.metrics.encode();
    let figure = metrics
        .lines()
        .find_map(|line| line.strip_prefix("mesh_coordinator_connections "));
    figure.expect("a figure").parse().expect("a number")
}

#[tokio::test]
async fn who_is_removed_loses_its_connection_too_and_nobody_else_does() {
    let mesh = Mesh::start().await;
    let stays = mesh.joined(pb::Role::Worker, "stays").await;
    let mut stays = Stream::open(&mesh, &stays, None).await;
    stays.update().await;
    eventually("the others' connections have ended", async || {
        (open(&mesh) == 1).then_some(())
    })
    .await;
    let streams = mesh.joined(pb::Role::Worker, "streams").await;
    let asks = mesh.joined(pb::Role::Worker, "asks").await;
    // One with an open stream, and one that was shown to be a member by a call, which was refused.
    let mut channels = Vec::new();
    for member in [&streams, &asks] {
        channels.push(member.channel(&mesh).await);
    }
    let mut stream = Stream::open_on(channels[0].clone(), None).await;
    let refusal = AdminServiceClient::new(channels[1].clone())
        .status(pb::AdminStatusRequest {})
        .await;
    assert_eq!(refused(refusal), "not-allowed");
    eventually("three are open", async || (open(&mesh) == 3).then_some(())).await;

    for name in ["streams", "asks"] {
        mesh.remove("default", name).await;
    }
    assert_eq!(stream.goodbye().await, pb::sync_goodbye::Reason::Removed);
    eventually("the connections of both have ended", async || {
        (open(&mesh) == 1).then_some(())
    })
    .await;
    drop(channels);
    // Whoever comes is told of on the one that is left.
    mesh.joined(pb::Role::Worker, "late").await;
    loop {
        let update = stays.update().await;
        if update.peers.iter().any(|peer| peer.name.as_str() == "late") {
            break;
        }
    }
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
    eventually("ready", async || {
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
