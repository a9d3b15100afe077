//! What the coordinator remembers, as plain values: the form between store, use-cases and memory.

use mesh_types::{
    DiscoPublicKey, IdentityPublicKey, Labels, NetworkId, NetworkName, NodeId, NodeName,
    OperatorId, OverlayAddrs, RelayId, Role, Service, Timestamp, TokenId, UptimeClass, WgPublicKey,
};

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkRecord {
    pub(crate) id: NetworkId,
    pub(crate) name: NetworkName,
    /// Rises with each change of the network's identity facts.
    pub(crate) version: u64,
    pub(crate) created_at: Timestamp,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRecord {
    pub(crate) id: TokenId,
    /// `None` for tokens of relays, which belong to the installation.
    pub(crate) network: Option<NetworkId>,
    pub(crate) role: Role,
    pub(crate) owner: String,
    pub(crate) reusable: bool,
    /// SHA-256 of the secret.
    pub(crate) secret_hash: [u8; 32],
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
    pub(crate) uses: u32,
}

/// Whom a token let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenUse {
    /// Id of the node or relay.
    pub(crate) subject: [u8; 16],
}

/// A node and everything durable about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    pub(crate) id: NodeId,
    pub(crate) network: NetworkId,
    pub(crate) name: NodeName,
    pub(crate) role: Role,
    pub(crate) owner: String,
    pub(crate) identity: IdentityPublicKey,
    pub(crate) wg_key: WgPublicKey,
    pub(crate) disco_key: DiscoPublicKey,
    pub(crate) addrs: OverlayAddrs,
    pub(crate) uptime_class: UptimeClass,
    pub(crate) labels: Labels,
    pub(crate) version: String,
    pub(crate) created_at: Timestamp,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) certificate_not_after: Timestamp,
    pub(crate) services: Vec<Service>,
    pub(crate) ssh: SshFacts,
    /// The network's version when this last changed.
    pub(crate) changed_version: u64,
}

/// What a node reported of its SSH, and what of that is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SshFacts {
    pub(crate) user: String,
    pub(crate) via_loopback: bool,
    /// OpenSSH public key lines that are trusted; sorted.
    pub(crate) pinned: Vec<String>,
    /// Reported later and different: waiting for an operator; sorted.
    pub(crate) held: Vec<String>,
}

/// A relay of the installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RelayRecord {
    pub(crate) id: RelayId,
    pub(crate) name: NodeName,
    pub(crate) owner: String,
    pub(crate) identity: IdentityPublicKey,
    pub(crate) derp: Vec<String>,
    pub(crate) stun: Vec<String>,
    pub(crate) version: String,
    pub(crate) created_at: Timestamp,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) certificate_not_after: Timestamp,
}

/// An operator credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OperatorRecord {
    pub(crate) id: OperatorId,
    pub(crate) name: String,
    pub(crate) identity: IdentityPublicKey,
    pub(crate) created_at: Timestamp,
    pub(crate) certificate_not_after: Timestamp,
    pub(crate) revoked_at: Option<Timestamp>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventRecord {
    /// Rising; 0 until it is stored.
    pub(crate) id: i64,
    pub(crate) time: Timestamp,
    /// `None`: of the installation.
    pub(crate) network: Option<NetworkName>,
    pub(crate) kind: EventKind,
    pub(crate) subject: String,
    pub(crate) detail: String,
}

macro_rules! event_kinds {
    ($($name:ident = $word:literal),* $(,)?) => {
        /// What kind of thing happened.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) enum EventKind {
            $($name,)*
            /// A newer program noted it, before this one came back: its word.
            Other(Box<str>),
        }

        impl EventKind {
            /// Its kebab-case word on the wire and in the store.
            pub(crate) fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $word,)*
                    Self::Other(word) => word,
                }
            }

            /// The kind with this word.
            pub(crate) fn from_word(word: &str) -> Self {
                match word { $($word => Self::$name,)* word => Self::Other(word.into()) }
            }
        }
    };
}

event_kinds! {
    CoordinatorInitialised = "coordinator-initialised",
    CoordinatorStarted = "coordinator-started",
    CoordinatorStopped = "coordinator-stopped",
    CoordinatorNotStarted = "coordinator-not-started",
    StoreDown = "store-down",
    StoreUp = "store-up",
    BusDown = "bus-down",
    BusUp = "bus-up",
    NetworkCreated = "network-created",
    NetworkDeleted = "network-deleted",
    TokenCreated = "token-created",
    TokenRevoked = "token-revoked",
    NodeJoined = "node-joined",
    NodeRejoined = "node-rejoined",
    NodeRenamed = "node-renamed",
    NodeSet = "node-set",
    NodeRemoved = "node-removed",
    NodeLeft = "node-left",
    NodeOnline = "node-online",
    NodeStale = "node-stale",
    NodeOffline = "node-offline",
    NodeAbsent = "node-absent",
    NodeTrouble = "node-trouble",
    NodeTroubleOver = "node-trouble-over",
    NodeNetmapStored = "node-netmap-stored",
    RelayJoined = "relay-joined",
    RelayRemoved = "relay-removed",
    RelayOnline = "relay-online",
    RelayStale = "relay-stale",
    RelayOffline = "relay-offline",
    HostKeyPinned = "host-key-pinned",
    HostKeyHeld = "host-key-held",
    HostKeyAccepted = "host-key-accepted",
    RejoinPermitted = "rejoin-permitted",
    HeartbeatRefused = "heartbeat-refused",
    HeartbeatAccepted = "heartbeat-accepted",
    IdentityTwice = "identity-twice",
    CertificateLow = "certificate-low",
    CertificateRenewedLate = "certificate-renewed-late",
    JoinRefused = "join-refused",
    OperatorAdded = "operator-added",
    OperatorRevoked = "operator-revoked",
    SshCertificateIssued = "ssh-certificate-issued",
}

/// Who did what: one link of the audit chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AuditEntry {
    pub(crate) time: Timestamp,
    /// Such as `operator:anna` or `token:018f…`.
    pub(crate) actor: String,
    /// Such as `node-remove`.
    pub(crate) action: String,
    pub(crate) subject: String,
    /// The state before, as short text; empty when there was none.
    pub(crate) before: String,
    /// The state after; empty when there is none.
    pub(crate) after: String,
}
