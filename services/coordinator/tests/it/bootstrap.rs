//! `coordinator bootstrap`, and a coordinator that then lets in who comes with its tokens.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coordinator::{App, Config, ManualClock, ProvisionOptions, Provisioned, provision};
use mesh_api::context::{Context, Contexts};
use mesh_api::pb;
use mesh_api::pb::admin_service_client::AdminServiceClient;
use mesh_api::tls::ClientCert;
use mesh_daemon::{Handles, Secret};
use mesh_types::{JoinToken, Role};
use tempfile::TempDir;
use zeroize::Zeroizing;

use crate::harness::{self, Machine, Mesh, START};

const ADDRESS: &str = "coordinator.test:8080";
const ROLES: [&str; 4] = ["relay", "gateway", "deployer", "worker"];

struct Site {
    dir: Arc<TempDir>,
    clock: Arc<ManualClock>,
    config: Config,
    options: ProvisionOptions,
}

impl Site {
    fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a directory"));
        let mut config = harness::config(&dir);
        config.server.advertise = vec![ADDRESS.to_owned()];
        let options = ProvisionOptions {
            tokens_dir: dir.path().join("tokens"),
            operator_dir: dir.path().join("tokens/operator"),
            gateway: Some("http://localhost:8081".to_owned()),
            socks: None,
            reusable: BTreeSet::from([Role::Worker]),
        };
        Self {
            dir,
            clock: Arc::new(ManualClock::new(START)),
            config,
            options,
        }
    }

    async fn provision(&self) -> Provisioned {
        let clock = Arc::clone(&self.clock) as _;
        let made = provision(&self.config, &self.options, clock).await;
        made.expect("provisions")
    }

    async fn refused(&self) -> String {
        let clock = Arc::clone(&self.clock) as _;
        let made = provision(&self.config, &self.options, clock).await;
        format!("{:#}", made.expect_err("refused"))
    }

    fn file(&self, role: &str) -> PathBuf {
        self.options.tokens_dir.join(role).join("token")
    }

    fn token(&self, role: &str) -> JoinToken {
        let text = std::fs::read_to_string(self.file(role)).expect("a token file");
        text.trim().parse().expect("a token")
    }

    fn context(&self) -> Context {
        let contexts = Contexts::in_dir(self.options.operator_dir.join("mesh/contexts"));
        contexts.load(Some("default")).expect("a context")
    }

    async fn start(&self) -> Mesh {
        Mesh::start_in(Arc::clone(&self.dir), Arc::clone(&self.clock)).await
    }
}

fn replaced(made: &Provisioned) -> Vec<&'static str> {
    let new = made.tokens.iter().filter(|token| token.is_new);
    new.map(|token| token.role.as_str()).collect()
}

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::metadata(path).expect("it exists");
    metadata.permissions().mode() & 0o777
}

fn der(base64_text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(base64_text)
        .expect("base64")
}

#[tokio::test]
async fn every_role_joins_by_its_file_and_the_context_is_an_operator() {
    let site = Site::new();
    let made = site.provision().await;
    assert_eq!(replaced(&made), ROLES);
    assert_eq!(made.addresses, [ADDRESS]);
    for role in ROLES {
        assert_eq!(mode(&site.file(role)), 0o600, "{role}");
        assert_eq!(site.token(role).coordinators, [ADDRESS]);
    }
    let context = site.context();
    assert_eq!(context.coordinators, [ADDRESS]);
    assert_eq!(context.gateway.as_deref(), Some("http://localhost:8081"));

    let mesh = site.start().await;
    for (role, wanted) in [
        ("gateway", pb::Role::Gateway),
        ("deployer", pb::Role::Deployer),
        ("worker", pb::Role::Worker),
    ] {
        let token = site.token(role);
        let answer = Machine::new().enrol(&mesh, &token, role).await;
        let answer = answer.expect("joins");
        assert_eq!(answer.role(), wanted);
        assert_eq!(answer.owner, "first");
    }
    let operator = ClientCert {
        certificate: der(&context.certificate).into(),
        key_pkcs8: Zeroizing::new(der(&context.key)),
    };
    let mut admin = AdminServiceClient::new(mesh.channel(Some(operator)).await);
    let status = admin.status(pb::AdminStatusRequest {}).await;
    status.expect("an operator");
    mesh.stop().await;
}

#[tokio::test]
async fn what_is_still_good_is_kept_and_the_rest_replaced() {
    let site = Site::new();
    site.provision().await;
    let before: Vec<JoinToken> = ROLES.iter().map(|role| site.token(role)).collect();
    let again = site.provision().await;
    assert_eq!(replaced(&again), [] as [&str; 0]);
    let after: Vec<JoinToken> = ROLES.iter().map(|role| site.token(role)).collect();
    assert!(before == after, "the files are as they were");

    // One worker and one gateway join: the gateway's token is used up, the worker's is not.
    let mesh = site.start().await;
    for role in ["gateway", "worker"] {
        let joined = Machine::new().enrol(&mesh, &site.token(role), role).await;
        joined.expect("joins");
    }
    mesh.stop().await;
    assert_eq!(replaced(&site.provision().await), ["gateway"]);

    std::fs::write(site.file("relay"), "mesh1.damaged").expect("ours");
    assert_eq!(replaced(&site.provision().await), ["relay"]);

    site.clock.advance(Duration::from_secs(13 * 60 * 60));
    assert_eq!(replaced(&site.provision().await), ROLES);

    let mut moved = site;
    moved.config.server.advertise = vec!["elsewhere.test:8080".to_owned()];
    moved.options.reusable = BTreeSet::new();
    let made = moved.provision().await;
    assert_eq!(replaced(&made), ROLES);
    assert_eq!(moved.context().coordinators, ["elsewhere.test:8080"]);
}

#[tokio::test]
async fn lost_files_come_again_for_the_same_operator() {
    let site = Site::new();
    site.provision().await;
    let before = site.context();
    for lost in ["tokens", "state/operator"] {
        std::fs::remove_dir_all(site.dir.path().join(lost)).expect("removed");
    }
    // A volume that is there already keeps its mode.
    let volume = site.options.tokens_dir.join("worker");
    std::fs::create_dir_all(&volume).expect("made");
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&volume, open).expect("ours");
    assert_eq!(replaced(&site.provision().await), ROLES);
    assert_eq!(mode(&volume), 0o755);
    let after = site.context();
    assert_eq!(after.key, before.key);
    assert_eq!(after.ca, before.ca);
    assert!(std::fs::read_dir(&volume).expect("listed").count() == 1);
}

#[tokio::test]
async fn what_others_added_to_the_context_stays() {
    let site = Site::new();
    site.provision().await;
    let contexts = Contexts::in_dir(site.options.operator_dir.join("mesh/contexts"));
    let mut context = site.context();
    context.socks.insert("lab".into(), "127.0.0.1:1081".into());
    contexts.save("mine", &context, true).expect("written");
    contexts.save("default", &context, false).expect("written");
    site.provision().await;
    assert!(site.context().socks.contains_key("lab"));
    let current = contexts.current().expect("read");
    assert_eq!(current.as_deref(), Some("mine"));
}

#[tokio::test]
async fn a_running_coordinator_and_a_missing_address_are_named() {
    let mut site = Site::new();
    let mesh = site.start().await;
    if crate::engine::BOOTSTRAP_BESIDE {
        site.provision().await;
        std::fs::remove_dir_all(&site.options.tokens_dir).expect("removes");
    } else {
        let text = site.refused().await;
        assert!(text.contains("in use by another coordinator"), "{text}");
    }
    mesh.stop().await;
    site.config.server.advertise = Vec::new();
    let text = site.refused().await;
    assert!(text.contains("server.advertise"), "{text}");
    assert!(!site.options.tokens_dir.exists());
}

#[tokio::test]
async fn a_configured_master_key_seals_and_is_written_nowhere() {
    let mut site = Site::new();
    site.config.master_key = Secret::new("0123456789abcdef".repeat(4));
    site.provision().await;
    assert!(!site.config.state_dir.join("master.key").exists());
    let app = App::build(site.config.clone(), Handles::default()).await;
    drop(app.expect("opens with the same key"));

    site.config.master_key = Secret::new("fedcba9876543210".repeat(4));
    assert!(site.refused().await.contains("does not open"));
    site.config.master_key = Secret::new("short");
    assert!(site.refused().await.contains("openssl rand -hex 32"));
    site.config.master_key = Secret::default();
    assert!(site.refused().await.contains("master.key is missing"));
}

#[tokio::test]
async fn an_operator_certificate_that_is_lost_or_older_than_the_database_says_is_made_anew() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    let site = Site::new();
    site.provision().await;
    let dir = site.dir.path().join("state/operator");
    let read = |name: &str| std::fs::read(dir.join(name)).expect("a file");
    let (first, key) = (read("operator.crt"), read("operator.key"));
    site.provision().await;
    assert_eq!(read("operator.crt"), first, "good as it is");

    for name in ["operator.crt", "operator.key", "ca.crt", "id"] {
        std::fs::remove_file(dir.join(name)).expect("is lost");
        site.provision().await;
        assert!(dir.join(name).exists(), "{name}");
        assert_eq!(read("operator.key"), key, "the operator's own");
    }

    site.clock.advance(80 * DAY);
    site.provision().await;
    assert_ne!(read("operator.crt"), first, "renewed in good time");
    // A state directory that was put back: the database knows of the renewal, the file does not.
    std::fs::write(dir.join("operator.crt"), &first).expect("puts back");
    site.provision().await;
    assert_ne!(read("operator.crt"), first);
    let mesh = site.start().await;
    mesh.clock.advance(15 * DAY);
    assert!(mesh.nodes().await.is_empty(), "lets the operator in");
    mesh.stop().await;
}
