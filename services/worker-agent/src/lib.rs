//! The worker-agent joins a machine to a network: it brings up the node, publishes the machine's
//! console, SSH and services on the overlay, and answers questions on a local socket.
//!
//! [`App`] is the running agent, [`join()`] makes a machine part of a network, [`cli`] is the
//! command line. Several agents may live in one process, each with its own state directory.
//!
//! What it does not do: it decides nothing about who may reach what (the netmap does), touches no
//! interface and route of the machine unless asked for a device (`run --net tun`) and never a DNS
//! setting, and changes Cockpit's and sshd's settings only when a person asks for it (`console
//! configure`, `ssh trust`).

mod advice;
mod app;
pub mod cli;
pub mod config;
mod console;
mod ini;
mod join;
mod local;
mod metrics;
mod page;
mod services;
mod ssh;
pub mod status;

pub use app::App;
pub use config::Config;
pub use join::{JoinError, JoinOptions, join};
