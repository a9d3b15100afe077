//! The store's suite, on SQLite and on a real Postgres.

use mesh_api::identity::Identity;
use mesh_testkit::{POSTGRES_PASSWORD, Postgres};
use mesh_types::{
    DiscoPublicKey, IdentityPublicKey, Labels, NetworkId, NetworkName, NodeId, OperatorId,
    OverlayAddrs, RelayId, Role, Service, ServiceKind, Timestamp, TokenId, UptimeClass,
    WgPublicKey,
};
use sea_orm::ConnectionTrait as _;
use tempfile::TempDir;

use super::meta::{STATE_VERSION, STATE_VERSION_KEY, set_meta};
use super::secret::SealedSecret;
use super::{Purpose, Store, StoreError};
use crate::config::StoreConfig;
use crate::record::{
    AuditEntry, EventKind, EventRecord, NetworkRecord, NodeRecord, OperatorRecord, RelayRecord,
    SshFacts, TokenRecord,
};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What the store runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

/// A state directory, and an empty database for it.
struct Home {
    dir: TempDir,
    config: StoreConfig,
}

impl Home {
    fn new(engine: Engine) -> Self {
        let config = match engine {
            Engine::Sqlite => StoreConfig::default(),
            Engine::Postgres => StoreConfig {
                url: Postgres::shared().database(),
                password: mesh_daemon::Secret::new(POSTGRES_PASSWORD),
                ..StoreConfig::default()
            },
        };
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir, config }
    }

    async fn open(&self) -> Result<Store, StoreError> {
        Store::open(&self.config, self.dir.path()).await
    }
}

async fn open(engine: Engine) -> (Home, Store) {
    let home = Home::new(engine);
    let store = home.open().await.expect("opens");
    (home, store)
}

/// Each of these runs on both engines.
macro_rules! on_both_engines {
    ($($test:ident,)*) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Engine::Sqlite).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::Engine::Postgres).await;
            })*
        }
    };
}

mod damaged;
mod events;
mod keeping;
mod looking;
mod writers;

on_both_engines! {
    everything_survives_a_restart,
    a_dropped_transaction_changes_nothing,
    keys_names_and_addresses_are_unique,
    a_removed_node_leaves_a_tombstone_and_frees_its_keys,
    an_update_replaces_host_keys_and_leaves_the_permit,
    a_token_remembers_whom_it_let_in,
    a_deleted_network_takes_its_nodes_and_tokens_along,
    a_directory_of_a_newer_version_is_refused_untouched,
    a_migration_of_a_newer_version_is_refused_by_its_name,
}

fn identity() -> IdentityPublicKey {
    Identity::generate().expect("a key").public_key().clone()
}

fn network(n: u8) -> NetworkRecord {
    NetworkRecord {
        id: NetworkId::from_bytes([n; 16]),
        name: format!("net-{n}").parse::<NetworkName>().expect("a name"),
        version: 0,
        created_at: NOW,
    }
}

fn labels() -> Labels {
    let mut labels = Labels::default();
    labels.set("env=prod".parse().unwrap()).unwrap();
    labels
}

fn node(n: u8, network: NetworkId) -> NodeRecord {
    let name = |text: &str| text.parse().expect("a name");
    NodeRecord {
        id: NodeId::from_bytes([n; 16]),
        network,
        name: format!("node-{n}").parse().expect("a name"),
        role: Role::Worker,
        owner: "anna".into(),
        identity: identity(),
        wg_key: WgPublicKey::from_bytes([n; 32]),
        disco_key: DiscoPublicKey::from_bytes([n; 32]),
        addrs: OverlayAddrs {
            v4: [100, 127, 255, n].into(),
            v6: [0xfd7a, 0, 0, 0, 0, 0, 0, u16::from(n)].into(),
        },
        uptime_class: UptimeClass::WorkHours,
        version: "0.1.0".into(),
        created_at: NOW,
        labels: labels(),
        last_seen: None,
        certificate_not_after: NOW,
        services: vec![
            Service {
                name: name("console"),
                kind: ServiceKind::Console,
                port: 9090,
            },
            Service {
                name: name("db"),
                kind: ServiceKind::Tcp,
                port: 5432,
            },
        ],
        ssh: SshFacts {
            user: "root".into(),
            via_loopback: true,
            pinned: vec!["ssh-ed25519 AAAA".into(), "ssh-ed25519 BBBB".into()],
            held: vec!["ssh-ed25519 CCCC".into()],
        },
        changed_version: 3,
    }
}

fn token(n: u8, network: Option<NetworkId>) -> TokenRecord {
    TokenRecord {
        id: TokenId::from_bytes([n; 16]),
        network,
        role: if network.is_some() {
            Role::Worker
        } else {
            Role::Relay
        },
        owner: "anna".into(),
        reusable: false,
        secret_hash: [n; 32],
        created_at: NOW,
        expires_at: NOW,
        revoked_at: None,
        uses: 0,
    }
}

async fn with_network(store: &Store, n: u8) -> NetworkId {
    let record = network(n);
    let txn = store.write().await.expect("begins");
    txn.network_create(&record).await.expect("creates");
    txn.commit().await.expect("commits");
    record.id
}

async fn everything_survives_a_restart(engine: Engine) {
    let (home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let relay = RelayRecord {
        id: RelayId::from_bytes([5; 16]),
        name: "relay".parse().expect("a name"),
        owner: "anna".into(),
        identity: identity(),
        derp: vec!["relay.example.org:8443".into()],
        stun: vec![],
        version: "0.1.0".into(),
        created_at: NOW,
        last_seen: Some(NOW),
        certificate_not_after: NOW,
    };
    let operator = OperatorRecord {
        id: OperatorId::from_bytes([6; 16]),
        name: "anna".into(),
        identity: identity(),
        created_at: NOW,
        certificate_not_after: NOW,
        revoked_at: None,
    };
    let sealed = SealedSecret {
        sealed: vec![1, 2, 3],
        public: vec![4],
    };
    let txn = store.write().await.expect("begins");
    let worker = node(1, id);
    txn.node_create(&worker).await.expect("creates");
    txn.relay_create(&relay).await.expect("creates");
    txn.operator_create(&operator).await.expect("creates");
    txn.token_create(&token(1, Some(id)))
        .await
        .expect("creates");
    txn.token_create(&token(2, None)).await.expect("creates");
    txn.secret_create("ca", &sealed, NOW)
        .await
        .expect("creates");
    txn.commit().await.expect("commits");
    store.close().await;
    drop(store);

    let store = home.open().await.expect("opens again");
    assert_eq!(store.network_list().await.expect("lists"), [network(1)]);
    assert_eq!(store.node_list().await.expect("lists"), [worker]);
    assert_eq!(store.relay_list().await.expect("lists"), [relay]);
    assert_eq!(store.operator_list().await.expect("lists"), [operator]);
    assert_eq!(
        store.token_list(None).await.expect("lists"),
        [token(1, Some(id)), token(2, None)]
    );
    assert_eq!(
        store.token_list(Some(id)).await.expect("lists"),
        [token(1, Some(id))]
    );
    assert_eq!(store.secret_show("ca").await.expect("reads"), Some(sealed));
}

async fn a_dropped_transaction_changes_nothing(engine: Engine) {
    let (_home, store) = open(engine).await;
    let txn = store.write().await.expect("begins");
    txn.network_create(&network(1)).await.expect("creates");
    drop(txn);
    assert!(store.network_list().await.expect("lists").is_empty());
    with_network(&store, 2).await;
}

async fn keys_names_and_addresses_are_unique(engine: Engine) {
    let (_home, store) = open(engine).await;
    let (one, two) = (with_network(&store, 1).await, with_network(&store, 2).await);
    let first = node(1, one);
    let txn = store.write().await.expect("begins");
    txn.node_create(&first).await.expect("creates");
    txn.commit().await.expect("commits");

    let clash = |change: &dyn Fn(&mut NodeRecord)| {
        let mut second = node(2, two);
        change(&mut second);
        second
    };
    let clashes = [
        clash(&|node| node.identity = first.identity.clone()),
        clash(&|node| node.wg_key = first.wg_key),
        clash(&|node| node.disco_key = first.disco_key),
        clash(&|node| node.addrs.v4 = first.addrs.v4),
        clash(&|node| node.addrs.v6 = first.addrs.v6),
        clash(&|node| (node.network, node.name) = (one, first.name.clone())),
    ];
    for second in clashes {
        let txn = store.write().await.expect("begins");
        let refused = txn.node_create(&second).await;
        assert!(
            matches!(refused, Err(StoreError::Exists)),
            "{second:?}: {refused:?}"
        );
        txn.rollback().await.expect("rolls back");
    }
    let txn = store.write().await.expect("begins");
    let same_name_elsewhere = clash(&|node| node.name = first.name.clone());
    txn.node_create(&same_name_elsewhere)
        .await
        .expect("another network");
}

async fn a_removed_node_leaves_a_tombstone_and_frees_its_keys(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let txn = store.write().await.expect("begins");
    txn.node_create(&node(1, id)).await.expect("creates");
    let version = txn.network_bump(id).await.expect("bumps");
    assert_eq!(version, 1);
    txn.node_remove(NodeId::from_bytes([1; 16]), id, version, NOW)
        .await
        .expect("removes");
    let again = NodeRecord {
        id: NodeId::from_bytes([9; 16]),
        ..node(1, id)
    };
    txn.node_create(&again).await.expect("the keys are free");
    txn.commit().await.expect("commits");
    let tombstones = store.tombstone_list().await.expect("lists");
    assert_eq!(tombstones.len(), 1);
    assert_eq!(
        (tombstones[0].id, tombstones[0].network),
        ([1; 16], Some(id))
    );
    assert_eq!(tombstones[0].version, 1);
}

async fn an_update_replaces_host_keys_and_leaves_the_permit(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let mut record = node(1, id);
    let txn = store.write().await.expect("begins");
    txn.node_create(&record).await.expect("creates");
    let later = Timestamp::from_secs(NOW.as_secs() + 60);
    txn.node_set_permit(record.id, Some(([8; 32], later)))
        .await
        .expect("sets");
    record.ssh.held.clear();
    record.ssh.pinned = vec!["ssh-ed25519 DDDD".into()];
    txn.node_update(&record).await.expect("updates");
    assert_eq!(
        txn.node_show(record.id).await.expect("reads"),
        Some(record.clone())
    );
    assert_eq!(
        txn.node_by_permit(&[8; 32], NOW).await.expect("reads"),
        Some(record.clone())
    );
    assert_eq!(
        txn.node_by_permit(&[8; 32], later).await.expect("reads"),
        None
    );
    txn.node_set_permit(record.id, None)
        .await
        .expect("takes back");
    assert_eq!(
        txn.node_by_permit(&[8; 32], NOW).await.expect("reads"),
        None
    );
}

async fn a_token_remembers_whom_it_let_in(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let record = token(1, Some(id));
    let (who, other) = (identity(), identity());
    let txn = store.write().await.expect("begins");
    txn.token_create(&record).await.expect("creates");
    txn.token_use_record(record.id, &who, [3; 16], NOW)
        .await
        .expect("records");
    let used = txn.token_use_show(record.id, &who).await.expect("reads");
    assert_eq!(used.map(|used| used.subject), Some([3; 16]));
    assert_eq!(
        txn.token_use_show(record.id, &other).await.expect("reads"),
        None
    );
    txn.token_revoke(record.id, NOW).await.expect("revokes");
    let shown = txn
        .token_show(record.id)
        .await
        .expect("reads")
        .expect("exists");
    assert_eq!((shown.uses, shown.revoked_at), (1, Some(NOW)));
    let missing = txn.token_revoke(TokenId::from_bytes([9; 16]), NOW).await;
    assert!(matches!(missing, Err(StoreError::Missing)));
}

async fn a_deleted_network_takes_its_nodes_and_tokens_along(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let txn = store.write().await.expect("begins");
    txn.node_create(&node(1, id)).await.expect("creates");
    txn.token_create(&token(1, Some(id)))
        .await
        .expect("creates");
    txn.network_delete(id).await.expect("deletes");
    txn.commit().await.expect("commits");
    assert!(store.node_list().await.expect("lists").is_empty());
    assert!(store.token_list(None).await.expect("lists").is_empty());
}

fn happened(kind: EventKind, network: Option<&str>) -> EventRecord {
    EventRecord {
        id: 0,
        time: NOW,
        network: network.map(|name| name.parse().expect("a name")),
        kind,
        subject: "node-1".into(),
        detail: String::new(),
    }
}

#[tokio::test]
async fn a_second_process_is_told_who_holds_the_directory() {
    let (home, store) = open(Engine::Sqlite).await;
    let refused = home.open().await.expect_err("locked");
    let text = refused.to_string();
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert!(text.contains("--state-dir"), "{text}");
    drop(store);
    home.open().await.expect("free again");
}

async fn a_directory_of_a_newer_version_is_refused_untouched(engine: Engine) {
    let (home, store) = open(engine).await;
    set_meta(&store.pools().writer, STATE_VERSION_KEY, STATE_VERSION + 1)
        .await
        .expect("sets");
    store.close().await;
    drop(store);
    let refused = home.open().await.expect_err("newer");
    let state = format!("state {}", STATE_VERSION + 1);
    assert!(matches!(&refused, StoreError::Newer { found, .. } if *found == state));
    assert!(refused.to_string().contains("upgrade"), "{refused}");
}

async fn a_migration_of_a_newer_version_is_refused_by_its_name(engine: Engine) {
    const NAME: &str = "m20991231_000001_not_written_yet";
    let (home, store) = open(engine).await;
    let writer = store.pools().writer;
    let row = format!("INSERT INTO seaql_migrations (version, applied_at) VALUES ('{NAME}', 1)");
    writer.execute_unprepared(&row).await.expect("inserts");
    store.close().await;
    drop((store, writer));
    let refused = home.open().await.expect_err("newer");
    let name = format!("migration {NAME}");
    assert!(
        matches!(&refused, StoreError::Newer { found, .. } if *found == name),
        "{refused:?}"
    );
    let text = format!("{:#}", anyhow::Error::new(refused));
    assert_eq!(text.matches(NAME).count(), 1, "{text}");
    assert!(text.contains("upgrade this program"), "{text}");
}

#[test]
fn what_the_database_said_is_told_once() {
    let cause = sea_orm::DbErr::Migration("no such thing".into());
    // As a start prints it.
    let text = format!("{:#}", anyhow::Error::new(StoreError::reading(cause)));
    assert_eq!(text.matches("no such thing").count(), 1, "{text}");
}

#[tokio::test]
async fn the_files_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;

    let (home, _store) = open(Engine::Sqlite).await;
    for name in ["coordinator.db", "coordinator.db-wal", "coordinator.lock"] {
        let mode = std::fs::metadata(home.dir.path().join(name))
            .expect(name)
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{name}");
    }
}

#[tokio::test]
async fn a_guarded_or_failing_store_refuses_changes_and_still_reads() {
    let (_home, store) = open(Engine::Sqlite).await;
    with_network(&store, 1).await;
    store.examine().await;
    assert_eq!(store.refusal(), None);

    store.guard_writes(Some("restoring a snapshot".into()));
    assert!(matches!(store.write().await, Err(StoreError::ReadOnly(_))));
    assert_eq!(store.refusal().as_deref(), Some("restoring a snapshot"));
    store.guard_writes(None);

    let pragma = async |text: &str| {
        let writer = store.pools().writer;
        writer.execute_unprepared(text).await.expect("sets");
    };
    pragma("PRAGMA query_only = ON").await;
    let refused = store.write().await;
    assert!(
        matches!(refused, Err(StoreError::Unavailable { .. })),
        "{refused:?}"
    );
    assert!(store.refusal().is_some(), "known from the first failure on");
    assert!(matches!(store.write().await, Err(StoreError::ReadOnly(_))));
    store.examine().await;
    assert!(store.refusal().is_some());
    assert_eq!(store.network_list().await.expect("reads").len(), 1);
    pragma("PRAGMA query_only = OFF").await;
    store.examine().await;
    assert_eq!(store.refusal(), None, "healed");
    with_network(&store, 2).await;
}
