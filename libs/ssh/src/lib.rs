//! SSH for the mesh: client sessions, the agent's own server, the certificate authority, fan-out.
//!
//! The only place that knows the SSH library; none of its types leave this crate.
//!
//! - [`key`]: public keys, private keys, certificates as text and as values.
//! - [`ca`]: the user certificate authority that the coordinator holds for each network.
//! - [`admission`]: the pure decision whether a certificate lets somebody in.
//! - [`client`]: one session to one node over any stream.
//! - [`server`]: one connection served over any stream, with commands and terminals.
//! - [`work`]: one command on one node, start to end.
//! - [`fanout`], [`report`]: the same work on many nodes, and what came of it.
//!
//! It does not dial, listen, look names up or set time limits: streams and limits are the caller's.

pub mod admission;
pub mod ca;
pub mod client;
pub mod fanout;
pub mod key;
pub mod report;
pub mod server;
mod severable;
pub mod work;

pub use ca::{CertificateRequest, Principal, UserCa};
pub use client::{Credential, Exec, ExecEvent, Exit, Session, Target};
pub use key::{Certificate, PrivateKey, PublicKey};
pub use server::{RunAs, ServerConfig, SshServer};
pub use work::Work;

/// The environment variable that tells the agent's server which span a command belongs to (W3C
/// Trace Context). OpenSSH's server ignores it.
pub(crate) const TRACEPARENT: &str = "TRACEPARENT";
