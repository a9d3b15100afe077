//! The vocabulary of Wonder Mesh: ids, keys, addresses, names, nodes, netmaps, tokens.
//!
//! Plain values that are checked when they are made, so that holding one is the proof that it is
//! well-formed. This crate does no IO, reads no clock, and knows neither the wire nor SQL.

pub mod addr;
pub mod filter;
pub mod finding;
pub mod heartbeat;
pub mod id;
pub mod key;
pub mod label;
pub mod name;
pub mod netmap;
pub mod node;
pub mod route;
pub mod service;
pub mod standing;
pub mod time;
pub mod token;

pub use addr::{Endpoint, OverlayAddrs};
pub use filter::{FilterRule, PacketFilter, PortRange, Protocol};
pub use finding::{Finding, OpenFiles, Severity};
pub use id::{NetworkId, NodeId, OperatorId, RelayId, TokenId};
pub use key::{DiscoPublicKey, IdentityPublicKey, WgPublicKey};
pub use label::{Label, Labels, Selector};
pub use name::{NetworkName, NodeName, ServiceName};
pub use netmap::{Cursor, Netmap, NetmapUpdate, Peer, PeerPatch, Relay, SelfNode};
pub use node::{NodeState, Role, UptimeClass};
pub use service::{Service, ServiceKind};
pub use standing::{Standing, Trouble, Troubles};
pub use time::Timestamp;
pub use token::JoinToken;
