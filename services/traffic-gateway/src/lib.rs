//! One public URL in front of every worker's console and HTTP services, over the mesh.
//!
//! Routes come from the coordinator by watching ([`watch`]) and become a pure table
//! ([`route_table`]); a request is looked up in it ([`proxy`]) and forwarded over the overlay of
//! its network ([`overlay`]). Each core has a thread, a runtime and upstream connections of its
//! own ([`server`]). What the gateway says itself is in [`pages`], [`fleet`] and [`problems`].
//!
//! It dials nothing but addresses of the route table, and never an address that is taken from a
//! request. It does not log in anybody: each console asks for its own user.

mod admission;
pub mod answer;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
mod cookies;
pub mod fleet;
mod grpc;
mod idle_timer;
mod join;
pub mod metrics;
mod networks;
pub mod origin;
pub mod overlay;
pub mod pages;
pub mod problems;
pub mod proxy;
pub mod request_id;
pub mod route_table;
pub mod server;
pub mod watch;

pub use app::App;
pub use config::Config;
pub use join::{JoinError, JoinOptions, join};
pub use networks::{NetworkError, joined as networks};
