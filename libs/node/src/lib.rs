//! A mesh node as a library: join, follow the control plane, and dial and listen on the overlay
//! without root, without a device and without touching the machine's routes; or, where that is
//! wanted, put the whole machine on the overlay through a TUN device ([`tun`]).
//!
//! The pieces, from the disk to the wire: [`StateDir`] keeps one identity; [`enrol()`] joins with
//! a token; [`ControlSession`] follows the coordinator (all that a relay needs); [`Node`] adds the
//! data plane: one task owns the tunnel, its UDP sockets and relay connections, and the TCP/IP
//! stack whose streams [`Node::dial`] and [`Node::listen`] give.
//!
//! This crate does not decide who may talk to whom (the netmap does), does not resolve names
//! outside the netmap, and never dials anything but overlay addresses of peers on its callers'
//! behalf.

pub mod advice;
pub mod control;
pub mod counters;
mod credential;
mod directory;
mod driver;
pub mod enrol;
pub mod first_join;
mod grpc;
mod keeper;
pub mod netstack;
pub mod node;
pub mod publish;
mod random;
pub mod state_dir;
pub mod status;
pub mod tun;

pub use control::{ControlConfig, ControlSession, ControlState, ControlStatus, SessionError};
pub use counters::Counters;
pub use credential::CredentialError;
pub use directory::Resolved;
pub use enrol::{EnrolError, EnrolErrorKind, EnrolOptions, enrol};
pub use first_join::{FirstJoinError, JOIN_PATIENCE, first_join, fits_identities};
pub use mesh_api::model::node::NodeReport;
pub use netstack::{DialError, ListenError, OverlayListener, OverlayStream, OverlayUdp};
pub use node::{Node, NodeConfig, NotReady, RelayMode, StartError};
pub use publish::{PublishError, Published, Target};
pub use state_dir::{Enrolled, StateDir, StateDirError};
pub use status::{NodeStatus, PeerPath, PeerStatus, RelayStatus, ShellStatus};
pub use tun::TunError;
