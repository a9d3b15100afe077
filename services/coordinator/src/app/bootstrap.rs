//! The first start makes CA, default network and first operator; every start loads all state.

mod credential;
mod not_started;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use mesh_api::identity::Identity;
use mesh_daemon::{Metrics, private_dir};
use mesh_netmap::{AddressChoice, Engine, NetworkRow, PeerEncoder, Settings, Snapshot, Tombstone};
use mesh_ssh::ca::UserCa;
use mesh_types::{NetworkId, NetworkName, OperatorId, Timestamp};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::{broadcast, mpsc};

pub(crate) use self::credential::operator_dir;
pub(super) use self::credential::write_addresses;
use self::credential::{keep_operator_files, operator_secret};
use super::genuine::{self, GenuineTokens};
use super::happening;
use super::{Core, node_row, relay_row};
use crate::app::challenge::Challenges;
use crate::app::heartbeat::RefusalEvents;
use crate::bus::{self, Bus, InvalidTarget};
use crate::ca::{Ca, CaError, CaParts};
use crate::clock::Clock;
use crate::config::{Config, OverlayConfig};
use crate::members::{Members, NetworkInfo};
use crate::metrics::Figures;
use crate::netmap::{EVENTS, Netmap};
use crate::record::{AuditEntry, EventKind, EventRecord, NetworkRecord, OperatorRecord};
use crate::seal::{SealError, Sealer};
use crate::store::{SealedSecret, Store, StoreError, had_database};

const CA_SECRET: &str = "ca";
/// Where the master key is when none is configured.
pub(crate) const MASTER_KEY_FILE: &str = "master.key";
/// What the first operator is called.
pub(super) const FIRST_OPERATOR: &str = "first";
/// How many events wait for a slow watcher before it reads them from the store instead.
const FEED: usize = 1024;

/// Why the coordinator's state cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    /// The state directory or a file in it.
    #[error("the state directory cannot be used")]
    Dir(#[source] mesh_daemon::PrivateFileError),
    /// It is some other program's.
    #[error("{} is a node's state directory: choose another --state-dir", .0.display())]
    NodeDir(PathBuf),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Bus(#[from] InvalidTarget),
    /// A network's SSH authority does not open.
    #[error("the SSH authority of network {0} is missing or damaged")]
    SshCa(NetworkName),
    /// The first operator's sealed key is no key.
    #[error("the first operator's key in the database is damaged")]
    OperatorKey,
    /// The system gave no randomness.
    #[error("the system gives no randomness")]
    Random,
    /// The overlay ranges cannot be used.
    #[error("overlay.v4 or overlay.v6 is too small")]
    Range(#[source] mesh_netmap::InvalidRange),
    /// Stored rows contradict each other.
    #[error("the stored nodes and networks contradict each other")]
    Load(#[source] mesh_netmap::Rejected),
}

/// The core, and what must be spawned for it.
pub(crate) struct Opened<F> {
    pub(crate) core: Arc<Core>,
    /// The task that owns the engine.
    pub(crate) owner: F,
    pub(crate) events: mpsc::Receiver<mesh_netmap::Event>,
    /// What happened of itself, to be stored.
    pub(crate) happened: mpsc::Receiver<EventRecord>,
}

impl Core {
    /// Takes over the addresses that join tokens and the first operator's context carry, once the
    /// port is bound.
    pub(crate) fn advertise(
        &self,
        addresses: Vec<String>,
        state_dir: &Path,
    ) -> Result<(), BootstrapError> {
        write_addresses(state_dir, &addresses)?;
        // Set once, by `App::build`; a second call would change nothing.
        drop(self.advertised.set(addresses));
        Ok(())
    }
}

/// The name under which a network's SSH authority is sealed.
pub(super) fn ssh_secret(network: NetworkId) -> String {
    format!("ssh-ca/{network}")
}

/// What the store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// To serve: nobody else may.
    Serving,
    /// To add to it, also beside a coordinator that serves (Postgres only).
    Beside,
}

/// The open store and the authorities in it.
#[derive(Debug)]
pub(super) struct Foundation {
    pub(super) store: Store,
    pub(super) sealer: Sealer,
    pub(super) ca: Ca,
    /// The authorities were made just now.
    pub(super) is_new: bool,
}

/// Opens the store and its authorities, and makes CA, default network and first operator when they
/// are not there yet.
pub(super) async fn found(
    config: &Config,
    opening: Opening,
    now: Timestamp,
) -> Result<Foundation, BootstrapError> {
    let dir = config.state_dir.as_path();
    private_dir(dir).map_err(BootstrapError::Dir)?;
    if dir.join("node.key").exists() {
        return Err(BootstrapError::NodeDir(dir.to_path_buf()));
    }
    // Asked first: another process may be making both now, the authorities before the directory.
    let had_one = had_database(dir);
    let store = match opening {
        Opening::Serving => Box::pin(Store::open(&config.store, dir)).await?,
        Opening::Beside => Box::pin(Store::open_beside(&config.store, dir)).await?,
    };
    match Box::pin(furnish(&store, config, had_one, now)).await {
        Ok((sealer, ca, is_new)) => Ok(Foundation {
            store,
            sealer,
            ca,
            is_new,
        }),
        Err(error) => {
            if opening == Opening::Serving {
                Box::pin(not_started::note(&store, dir, &error, now)).await;
            }
            Err(error)
        }
    }
}

/// The master key, the authorities that it opens, and whether they were made just now.
async fn furnish(
    store: &Store,
    config: &Config,
    had_one: bool,
    now: Timestamp,
) -> Result<(Sealer, Ca, bool), BootstrapError> {
    let dir = config.state_dir.as_path();
    if had_one && store.secret_show(CA_SECRET).await?.is_none() {
        return Err(BootstrapError::Store(store.emptied(dir)));
    }
    let sealer = if config.master_key.is_empty() {
        Sealer::load(&dir.join(MASTER_KEY_FILE), !store.secret_any().await?)?
    } else {
        Sealer::from_text(config.master_key.expose())?
    };
    let mut is_new = store.secret_show(CA_SECRET).await?.is_none();
    if is_new {
        match first_start(store, &sealer, now).await {
            // Another process made everything meanwhile.
            Err(BootstrapError::Store(StoreError::Exists)) => is_new = false,
            made => made?,
        }
    }
    let ca = open_ca(store, &sealer).await?;
    // INVARIANT: where there is this directory, the authorities are in the database for good.
    if !operator_dir(dir).exists() {
        store.flush().await?;
    }
    keep_operator_files(store, &sealer, &ca, dir, now).await?;
    Ok((sealer, ca, is_new))
}

/// Opens everything in the state directory, and makes what is not there yet.
pub(crate) async fn open(
    config: &Config,
    clock: Arc<dyn Clock>,
    encoder: Box<dyn PeerEncoder>,
    metrics: &Metrics,
) -> Result<Opened<impl Future<Output = ()> + Send + use<>>, BootstrapError> {
    let now = clock.now();
    let Foundation {
        store,
        sealer,
        ca,
        is_new,
    } = found(config, Opening::Serving, now).await?;
    let epoch = u64::from_be_bytes(random()?);
    let bus = bus::open(config, ca.fingerprint(), epoch, metrics)?;
    let mut engine = engine(&config.overlay, epoch, encoder)?;
    let started = tokio::time::Instant::now().into_std();
    let members = match load(&store, bus.as_ref(), now).await {
        Ok((members, snapshot)) => engine
            .load(snapshot, started)
            .map(|()| members)
            .map_err(BootstrapError::Load),
        Err(error) => Err(error),
    };
    let members = match members {
        Ok(members) => members,
        Err(error) => {
            Box::pin(not_started::note(&store, &config.state_dir, &error, now)).await;
            return Err(error);
        }
    };
    let (events_in, events) = mpsc::channel(EVENTS);
    let (netmap, owner) = Netmap::new(engine, events_in);
    let mut genuine = GenuineTokens::default();
    let live = store.token_live(now, genuine::CAPACITY).await?;
    live.into_iter().rev().for_each(|id| genuine.insert(id));
    let (happened_in, happened) = mpsc::channel(happening::WAITING);
    let core = Core {
        clock,
        ca: Arc::new(ca),
        members,
        netmap,
        figures: Figures::register(metrics),
        store,
        sealer,
        random: SystemRandom::new(),
        turn: tokio::sync::Mutex::new(()),
        challenges: Mutex::new(Challenges::new(&random()?)),
        bus,
        genuine: Mutex::new(genuine),
        refusals: Mutex::new(RefusalEvents::default()),
        take_overs: Mutex::default(),
        standings: Mutex::default(),
        happened: happened_in,
        feed: broadcast::Sender::new(FEED),
        writers: Mutex::new(mesh_daemon::Tasks::new()),
        deferred: super::deferred::Deferred::default(),
        key_changes: Mutex::default(),
        advertised: OnceLock::new(),
        started_at: now,
        is_new,
    };
    Ok(Opened {
        core: Arc::new(core),
        owner,
        events,
        happened,
    })
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], BootstrapError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| BootstrapError::Random)?;
    Ok(bytes)
}

fn engine(
    overlay: &OverlayConfig,
    epoch: u64,
    encoder: Box<dyn PeerEncoder>,
) -> Result<Engine, BootstrapError> {
    let settings = Settings {
        overlay_v4: overlay.v4,
        overlay_v6: overlay.v6,
        addresses: AddressChoice::Random,
        ..Settings::new(epoch, random()?)
    };
    Engine::new(settings, encoder).map_err(BootstrapError::Range)
}

/// A new SSH authority for a network: its public line, and what is stored of it.
pub(super) fn new_ssh_ca(
    sealer: &Sealer,
    network: NetworkId,
) -> Result<(String, SealedSecret), SealError> {
    let ca = UserCa::generate();
    let line = ca.public_line();
    let key = ca.to_openssh().map_err(|_| SealError::Random)?;
    let sealed = sealer.seal(&ssh_secret(network), key.as_bytes())?;
    Ok((
        line.clone(),
        SealedSecret {
            sealed,
            public: line.into_bytes(),
        },
    ))
}

async fn first_start(store: &Store, sealer: &Sealer, now: Timestamp) -> Result<(), BootstrapError> {
    let parts = CaParts::generate(now)?;
    let millis = now.as_unix_millis();
    let network = NetworkRecord {
        id: NetworkId::from_parts(millis, random()?),
        name: NetworkName::default_network(),
        version: 0,
        created_at: now,
    };
    let (_, ssh_ca) = new_ssh_ca(sealer, network.id)?;
    let identity = Identity::generate().map_err(CaError::Key)?;
    let operator = OperatorRecord {
        id: OperatorId::from_parts(millis, random()?),
        name: FIRST_OPERATOR.to_owned(),
        identity: identity.public_key().clone(),
        created_at: now,
        certificate_not_after: now,
        revoked_at: None,
    };
    // Sealed in the store, so that a start with an empty state directory has it too.
    let key_name = operator_secret(operator.id);
    let operator_key = SealedSecret {
        sealed: sealer.seal(&key_name, identity.pkcs8())?,
        public: identity.public_key().as_spki_der().to_vec(),
    };
    let sealed = SealedSecret {
        sealed: sealer.seal(CA_SECRET, &parts.key_pkcs8)?,
        public: parts.certificate.clone(),
    };
    let txn = store.write().await?;
    txn.secret_create(CA_SECRET, &sealed, now).await?;
    txn.network_create(&network).await?;
    txn.secret_create(&ssh_secret(network.id), &ssh_ca, now)
        .await?;
    txn.operator_create(&operator).await?;
    txn.secret_create(&key_name, &operator_key, now).await?;
    let event = EventRecord {
        id: 0,
        time: now,
        network: None,
        kind: EventKind::CoordinatorInitialised,
        subject: "coordinator".to_owned(),
        detail: String::new(),
    };
    txn.event_create(&event).await?;
    let entry = AuditEntry {
        time: now,
        actor: "coordinator".to_owned(),
        action: "initialise".to_owned(),
        subject: format!("operator:{}", operator.name),
        ..AuditEntry::default()
    };
    txn.audit_append(&entry).await?;
    txn.commit().await?;
    tracing::info!(operator = %operator.id, "first start: made the certificate authority, the default network and the first operator");
    Ok(())
}

async fn open_ca(store: &Store, sealer: &Sealer) -> Result<Ca, BootstrapError> {
    let secret = store
        .secret_show(CA_SECRET)
        .await?
        .ok_or(CaError::Damaged)?;
    let key_pkcs8 = sealer.open(CA_SECRET, &secret.sealed)?;
    Ok(Ca::open(&CaParts {
        certificate: secret.public,
        key_pkcs8,
    })?)
}

async fn load(
    store: &Store,
    bus: &dyn Bus,
    now: Timestamp,
) -> Result<(Members, Snapshot), BootstrapError> {
    let members = Members::default();
    let mut snapshot = Snapshot::default();
    let trimmed = store.network_trimmed().await?;
    for record in store.network_list().await? {
        let secret = store.secret_show(&ssh_secret(record.id)).await?;
        let missing = || BootstrapError::SshCa(record.name.clone());
        let SealedSecret { sealed, public } = secret.ok_or_else(missing)?;
        let ssh_ca = String::from_utf8(public).map_err(|_| missing())?;
        snapshot.networks.push(NetworkRow {
            id: record.id,
            name: record.name.clone(),
            version: record.version,
            trimmed: trimmed.get(&record.id).copied().unwrap_or_default(),
            ssh_ca: ssh_ca.clone(),
        });
        members.put_network(NetworkInfo {
            record,
            ssh_ca,
            ssh_ca_sealed: sealed,
        });
    }
    let networks: BTreeSet<NetworkId> = snapshot.networks.iter().map(|row| row.id).collect();
    let (nodes, relays) = (store.node_list().await?, store.relay_list().await?);
    // The store knows to a minute who was seen last, the bus more exactly.
    let ids: Vec<[u8; 16]> = nodes
        .iter()
        .map(|node| node.id.to_bytes())
        .chain(relays.iter().map(|relay| relay.id.to_bytes()))
        .collect();
    let seen = bus.seen(&ids, now).await;
    let newest = |last: Option<Timestamp>, id: &[u8; 16]| last.max(seen.get(id).copied());
    for mut record in nodes {
        record.last_seen = newest(record.last_seen, &record.id.to_bytes());
        snapshot.nodes.push(node_row(&record, Some(now)));
        members.put_node(record);
    }
    for mut record in relays {
        record.last_seen = newest(record.last_seen, &record.id.to_bytes());
        snapshot.relays.push(relay_row(&record, Some(now)));
        members.put_relay(record);
    }
    for record in store.operator_list().await? {
        members.put_operator(record);
    }
    for record in store.tombstone_list().await? {
        members.put_removed(record.id);
        if let Some(network) = record.network.filter(|id| networks.contains(id)) {
            let node = mesh_types::NodeId::from_bytes(record.id);
            snapshot.tombstones.push(Tombstone {
                network,
                node,
                version: record.version,
            });
        }
    }
    Ok((members, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StoreConfig;

    #[tokio::test]
    async fn a_sqlite_file_that_has_lost_its_authorities_is_spoken_of_as_a_file() {
        let home = tempfile::tempdir().expect("a directory");
        let dir = home.path().join("state");
        private_dir(&dir).expect("makes");
        // Its tables are there, and nothing is in them.
        let store = Store::open(&StoreConfig::default(), &dir).await;
        store.expect("opens").close().await;
        private_dir(operator_dir(&dir)).expect("makes");
        let config = Config {
            state_dir: dir,
            ..Config::default()
        };
        let now = Timestamp::from_secs(1_800_000_000);
        let refused = found(&config, Opening::Serving, now).await;
        let text = mesh_daemon::report::chain(&refused.expect_err("emptied"));
        assert!(text.contains("move coordinator.db, "), "{text}");
        assert!(text.contains("--state-dir"), "{text}");
        for of_postgres in ["store.url", "mesh db copy"] {
            assert!(!text.contains(of_postgres), "{text}");
        }
    }
}
