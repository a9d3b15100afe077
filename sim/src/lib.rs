//! The whole system under one virtual clock and one seed.
//!
//! A [`World`](world::World) holds a coordinator, relays and a few nodes in two networks, all made
//! of the product's own cores: the netmap engine, the heartbeat check, the control session's state
//! machine, the tunnel device, the relay's registry and both ends of DERP. They talk in the bytes
//! that travel in earnest: protobuf messages, UDP datagrams, DERP frames, and the stored netmap's
//! file. What is simulated is what lies between them: time, sockets, NATs, disks, the database, and
//! everything that goes wrong with those.
//!
//! A [`Model`](model::Model) is told what was committed, and from that alone says what each node
//! must end with. [`run::seed`] lets a world live through a seed's troubles and compares.
//!
//! What is not in it: TLS and HTTP/2, enrolment's proofs, the shells around the cores (tokio, SQL,
//! the TCP/IP stack): journeys test those. docs/simulation.md tells more.

mod coordinator;
mod cores;
mod dice;
#[path = "../../libs/testkit/src/flat.rs"]
pub mod flat;
mod grpc;
pub mod model;
mod node;
mod packet;
mod pipe;
pub mod planted;
mod relay;
pub mod run;
pub mod soak;
pub mod trace;
mod underlay;
pub mod world;

pub use planted::{Bug, Life};
pub use run::{Options, Outcome};
