//! Postgres goes away under a running coordinator: changes are refused, all else goes on, and it
//! heals without a hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::{App, ManualClock, StoreTls};
use mesh_api::pb;
use mesh_daemon::Handles;
use mesh_testkit::{Postgres, PostgresOptions};
use tempfile::TempDir;
use tonic::Code;

use crate::harness::{Mesh, START, config, word};
use crate::session::{Stream, body, report};

/// How long healing may take: the trial's pause, a time limit, and the trial.
const HEAL: Duration = Duration::from_secs(20);

/// A directory whose coordinator uses a database of this server.
fn home(server: &Postgres) -> Arc<TempDir> {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    std::fs::write(dir.path().join("database-url"), server.database()).expect("notes the database");
    dir
}

async fn start(server: &Postgres) -> Mesh {
    Mesh::start_in(home(server), Arc::new(ManualClock::new(START))).await
}

fn store_reason(mesh: &Mesh) -> Option<String> {
    let report = mesh.handles.readiness.report();
    let store = report.into_iter().find(|part| part.name == "store");
    store.map(|part| part.reason)
}

async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + HEAL;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn create_token(mesh: &Mesh) -> Result<(), tonic::Status> {
    let wish = pb::CreateTokenRequest {
        role: pb::Role::Worker.into(),
        ..Default::default()
    };
    mesh.admin().await.create_token(wish).await.map(drop)
}

/// What must hold while the server is away, and after it is back.
async fn goes_on_and_heals(mesh: &Mesh, back: impl FnOnce()) {
    // The first change may have to find out; each one is answered within the time limits.
    let asked = Instant::now();
    let refused = create_token(mesh).await.expect_err("no store");
    println!("first change refused after {:?}", asked.elapsed());
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(asked.elapsed() < Duration::from_secs(8));
    assert_eq!(word(&refused), "store-unavailable");
    assert!(
        refused.message().contains("running connections go on"),
        "{refused}"
    );
    let asked = Instant::now();
    create_token(mesh).await.expect_err("no store");
    println!("next change refused after {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(1), "known by now");

    let reason = until("readiness says why", async || store_reason(mesh)).await;
    println!("readiness: {reason}");
    assert!(reason.contains("database"), "{reason}");

    // Reads that need no database, and TLS with certificates, go on.
    assert_eq!(mesh.nodes().await.len(), 1);
    let asked = Instant::now();
    let mut admin = mesh.admin().await;
    let tokens = admin.list_tokens(pb::ListTokensRequest::default());
    let refused = tokens.await.expect_err("tokens are in the database only");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(asked.elapsed() < Duration::from_secs(1), "known by now");

    back();
    let healing = Instant::now();
    until("ready again", async || {
        store_reason(mesh).is_none().then_some(())
    })
    .await;
    println!("healed after {:?}", healing.elapsed());
    create_token(mesh).await.expect("changes go through again");
    mesh.joined(pb::Role::Worker, "later").await;
    assert_eq!(mesh.nodes().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_stops_changes_only() {
    let mut server = Postgres::start().expect("a server");
    let mesh = start(&server).await;
    mesh.joined(pb::Role::Worker, "worker").await;
    server.stop().expect("stops");
    goes_on_and_heals(&mesh, || server.start_again().expect("starts again")).await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_stops_changes_only() {
    let server = Postgres::start().expect("a server");
    let mesh = start(&server).await;
    mesh.joined(pb::Role::Worker, "worker").await;
    server.freeze().expect("freezes");
    goes_on_and_heals(&mesh, || server.thaw().expect("thaws")).await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_its_server_and_not_for_ever() {
    let mut server = Postgres::start().expect("a server");
    let dir = home(&server);
    server.stop().expect("stops");
    let build = |wait: Duration| {
        let mut config = config(&dir);
        config.store.wait = wait;
        let clock = Arc::new(ManualClock::new(START));
        App::build_with_clock(config, Handles::default(), clock as _)
    };
    let error = build(Duration::from_millis(500))
        .await
        .expect_err("nobody there");
    let text = format!("{error:#}");
    assert!(text.contains("could not be reached"), "{text}");
    assert!(text.contains("store.url"), "{text}");

    let waiting = build(Duration::from_secs(60));
    let (built, ()) = tokio::join!(waiting, async {
        // In the server's place until the start has asked once.
        let port = std::net::SocketAddr::from(([127, 0, 0, 1], server.port()));
        let vacant = tokio::net::TcpListener::bind(port).await.expect("its port");
        drop(vacant.accept().await.expect("the start asks"));
        drop(vacant);
        server.start_again().expect("starts again");
    });
    built.expect("the server came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_said_at_once() {
    let server = Postgres::shared();
    let dir = home(server);
    let mut config = config(&dir);
    config.store.password = mesh_daemon::Secret::new("wrong");
    let clock = Arc::new(ManualClock::new(START));
    let started = Instant::now();
    let error = App::build_with_clock(config, Handles::default(), clock as _)
        .await
        .expect_err("refused");
    let text = format!("{error:#}");
    assert!(text.contains("password authentication failed"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_checked_against_the_configured_authority() {
    let (ca, certificate, key) = certificates();
    let options = PostgresOptions::default().tls(certificate, key);
    let server = Postgres::start_with(&options).expect("a server");
    let dir = home(&server);
    let build = |host: &str, ca: &str, tls| {
        let mut config = config(&dir);
        config.store.url = config.store.url.replace("127.0.0.1", host);
        config.store.tls = Some(tls);
        config.store.ca = ca.to_owned();
        let clock = Arc::new(ManualClock::new(START));
        App::build_with_clock(config, Handles::default(), clock as _)
    };
    let refused = build("127.0.0.1", "", StoreTls::VerifyFull).await;
    let said = format!("{:#}", refused.expect_err("an unknown authority"));
    assert!(
        said.contains("cannot be trusted (invalid peer certificate: UnknownIssuer)"),
        "{said}"
    );
    assert!(said.contains("store.ca_file"), "{said}");
    // The certificate is for 127.0.0.1, and for no name.
    let refused = build("localhost", &ca, StoreTls::VerifyFull).await;
    let said = format!("{:#}", refused.expect_err("another host's certificate"));
    assert!(said.contains("not valid for name \"localhost\""), "{said}");
    let app = build("localhost", &ca, StoreTls::VerifyCa).await;
    drop(app.expect("any host of that authority"));
    let app = build("127.0.0.1", &ca, StoreTls::VerifyFull).await;
    let app = app.expect("the right authority and host");
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name LIKE 'coordinator%'";
    assert_eq!(server.psql("postgres", encrypted).expect("asks"), "t");
    drop(app);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_where_tls_is_asked_for() {
    let server = Postgres::shared();
    let dir = home(server);
    let mut config = config(&dir);
    config.store.tls = Some(StoreTls::VerifyFull);
    let clock = Arc::new(ManualClock::new(START));
    let refused = App::build_with_clock(config, Handles::default(), clock as _).await;
    let said = format!("{:#}", refused.expect_err("in the clear"));
    assert!(
        said.contains("cannot be trusted (server does not support TLS)"),
        "{said}"
    );
}

/// An authority, and a certificate of it for 127.0.0.1 with its key (PEM).
fn certificates() -> (String, String, String) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("a certificate");
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    (ca.pem(), certificate.pem(), key.serialize_pem())
}

/// The database gives way to somebody else's transaction now and then; the caller hears nothing
/// of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_tried_again() {
    let server = Postgres::shared();
    let dir = home(server);
    let url = std::fs::read_to_string(dir.path().join("database-url")).expect("noted");
    let database = url.rsplit('/').next().expect("a name").to_owned();
    let mesh = Mesh::start_in(dir, Arc::new(ManualClock::new(START))).await;
    // A sequence counts on although its transaction is undone.
    let plant = |code: &str, times: u32| {
        let sql = format!(
            "DROP TRIGGER IF EXISTS planted ON audit; DROP SEQUENCE IF EXISTS planted; \
             CREATE SEQUENCE planted; \
             CREATE OR REPLACE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('planted') <= {times} THEN RAISE EXCEPTION 'planted' \
             USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER planted BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION planted()"
        );
        server.psql(&database, &sql).expect("plants");
    };
    for code in ["40001", "40P01"] {
        plant(code, 3);
        create_token(&mesh).await.expect("tried again");
        plant(code, 2);
        mesh.joined(pb::Role::Worker, "worker").await;
    }
    plant("40001", 1_000);
    let refused = create_token(&mesh).await.expect_err("not for ever");
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(word(&refused), "store-conflict");
    plant("40001", 0);
    create_token(&mesh).await.expect("and then again");
    mesh.stop().await;
}

fn name_of(dir: &TempDir) -> String {
    let url = std::fs::read_to_string(dir.path().join("database-url")).expect("noted");
    url.rsplit('/').next().expect("a name").to_owned()
}

/// The server stops to answer at the very moment when it has been told to commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_while_its_report_is_in_doubt() {
    let server = Postgres::start().expect("a server");
    let dir = home(&server);
    let database = name_of(&dir);
    let mesh = Mesh::start_in(dir, Arc::new(ManualClock::new(START))).await;
    let member = mesh.joined(pb::Role::Worker, "worker").await;
    let mut stream = Stream::open(&mesh, &member, None).await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                PERFORM pg_sleep(2); RETURN NULL; END $$; \
                CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON node DEFERRABLE \
                INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()";
    server.psql(&database, slow).expect("plants");

    let said = pb::sync_request::Message::Report(report(&[("wiki", 8080)]));
    stream.say(said).await;
    let committing = "SELECT count(*) FROM pg_stat_activity \
                      WHERE wait_event = 'PgSleep' AND query ILIKE 'commit%'";
    until("the report is being committed", async || {
        let count = server.psql(&database, committing).expect("asks");
        (count == "1").then_some(())
    })
    .await;
    server.freeze().expect("freezes");

    for sequence in 1..=3 {
        let asked = Instant::now();
        let ack = stream.beat(&member, body(&mesh, &member, sequence)).await;
        assert_eq!((ack.sequence, ack.refusal.as_str()), (sequence, ""));
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(2), "answered after {took:?}");
    }
    // Now it is in doubt for sure: nobody has answered in time.
    until("readiness says why", async || store_reason(&mesh)).await;
    let ack = stream.beat(&member, body(&mesh, &member, 4)).await;
    assert_eq!(ack.sequence, 4);

    server.thaw().expect("thaws");
    until("the report has been taken over", async || {
        let nodes = mesh.nodes().await;
        nodes[0]
            .services
            .iter()
            .any(|service| service.name == "wiki")
            .then_some(())
    })
    .await;
    mesh.stop().await;
}

/// Its session is cut and another one takes the lock, and keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_lost_the_database_to_another_ends_and_says_so() {
    let server = Postgres::start().expect("a server");
    let dir = home(&server);
    let database = name_of(&dir);
    let mesh = Mesh::start_in(dir, Arc::new(ManualClock::new(START))).await;
    mesh.joined(pb::Role::Worker, "worker").await;
    let lock = "((l.classid::bigint << 32) | l.objid::bigint)";
    let take = format!(
        "DO $$ DECLARE key bigint; BEGIN \
         SELECT {lock} INTO key FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted; \
         PERFORM pg_terminate_backend(pid) FROM pg_locks \
         WHERE locktype = 'advisory' AND granted; \
         PERFORM pg_advisory_lock(key); PERFORM pg_sleep(50); END $$"
    );
    let started = Instant::now();
    // The server lives for as long as the other one holds the lock.
    let other = std::thread::spawn(move || server.psql(&database, &take).map(drop));
    let ended = mesh.ended(Duration::from_secs(48)).await;
    let error = ended.expect_err("ends by itself");
    other.join().expect("no panic").expect("keeps the lock");
    println!("ended after {:?}", started.elapsed());
    let text = format!("{error:#}");
    assert!(
        text.contains("another coordinator has taken the database"),
        "{text}"
    );
    assert!(text.contains("this one ends"), "{text}");
}
