//! The control plane.

mod app;
mod ca;
mod caller;
mod clock;
mod config;
mod error;
mod members;
mod metrics;
mod netmap;
mod rate;
mod record;
mod seal;
mod store;
