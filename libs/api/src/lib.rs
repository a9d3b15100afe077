//! The wire border: generated gRPC code, conversions to the vocabulary, TLS pins and connections.
//!
//! Messages are checked once, by the receiver, in `TryFrom<pb::X>`; after that the type itself is
//! the proof. Generated types are used here and in modules named `grpc`, nowhere else.
//!
//! This crate does not decide anything: authorisation, storage and retries belong to its callers.

pub mod client;
pub mod context;
pub mod csr;
pub mod error;
pub mod identity;
pub mod model;
mod redacted;
pub mod tls;
pub mod uri;

/// Generated from `proto/mesh/v1` by `cargo xtask codegen`; never edited.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::large_futures,
    clippy::too_many_lines,
    reason = "generated code"
)]
#[path = "gen/mesh.v1.rs"]
pub mod pb;

pub use error::ProtocolError;
