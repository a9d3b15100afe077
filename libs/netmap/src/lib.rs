//! Sans-IO control-plane core: who exists, who sees whom, who must be told what.
//!
//! [`Engine`] holds what the coordinator knows of all networks: identity facts, which the caller
//! commits to its database first and hands in afterwards, and volatile facts (endpoints, home
//! relay, presence), which live here only. For each connected node it keeps a *session*: what that
//! node must still be told. A session holds no copies, only which peers changed and how, so that
//! the newest state always wins, and a slow reader costs memory in proportion to its peers and
//! nothing else.
//!
//! Visibility is computed for classes of nodes with the same role and owner, never for pairs of
//! nodes; each peer is encoded once per version and the bytes are shared between all who see it.
//! The cost of a change is that of telling those who see it.
//!
//! # Inputs and outputs
//!
//! Inputs are plain method calls; time is an argument. After each input, drain
//! [`Engine::poll_event`] and [`Engine::poll_ready`], and call [`Engine::handle_timeout`] when
//! [`Engine::poll_timeout`] has passed.
//!
//! # What this crate does not
//!
//! It does not encode (see [`PeerEncoder`]), store, authenticate, read a clock, or spawn anything.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "a test needs one real instant to count virtual time from"
    )
)]

mod addresses;
mod admission;
mod class;
mod engine;
mod error;
mod network;
mod node;
mod outbox;
mod presence;
mod row;
mod rules;
mod session;
mod sources;
mod update;

pub use addresses::{AddressChoice, InvalidRange};
pub use admission::Admission;
pub use engine::{Engine, NodeRef, RelayRef, Settings};
pub use error::{Rejected, ReserveError};
pub use network::Counts;
pub use presence::absence_expected;
pub use row::{NetworkRow, NodeRow, RelayRow, Reservation, Snapshot, Tombstone};
pub use rules::{FixedRules, Party, Rules, ServiceKinds};
pub use update::{
    ClientUpdate, EndReason, Event, Opened, Output, PeerEncoder, RouteUpdate, SessionId, Update,
};
