//! The harness of the journeys: real binaries, started as a person would start them.
//!
//! Black box: the only things shared with the product are its wire contract (`mesh-api`), its
//! vocabulary (`mesh-types`) and, for raw packets, its relay frames (`mesh-tunnel`). The tests
//! are one file per user journey in `tests/`; what more than one of them goes through is in
//! [`journeys`]; the kit that knows nothing of the product is `mesh-testkit`.
//!
//! The binaries are those beside the running test: `cargo build --workspace` makes them.

pub mod agent;
pub mod binaries;
pub mod cli;
pub mod console;
pub mod derp;
pub mod field;
pub mod findings;
pub mod grpc;
pub mod hostile;
pub mod journeys;
pub mod mesh_up;
pub mod metrics;
pub mod overlay_echo;
pub mod raw;
pub mod server;
pub mod soak;
pub mod socks;
pub mod terminal;
pub mod websocket;
pub mod wireguard;

pub use agent::Agent;
pub use binaries::binary;
pub use cli::Cli;
pub use console::Console;
pub use field::{Field, Layout, Worker};
pub use mesh_up::{MeshUp, MeshUpOptions, NodeReady, Ready};
pub use overlay_echo::OverlayEcho;
pub use server::Server;
pub use terminal::{Names, Terminal};
pub use websocket::WebSocket;
