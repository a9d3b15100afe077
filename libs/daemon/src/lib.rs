//! What each long-running process of Wonder Mesh needs and no business rule: configuration in
//! layers, logs, metrics, readiness, the admin endpoint, the control socket, shutdown with
//! draining, named tasks, server-side TLS, private files.
//!
//! Nothing here is process-global except the one log subscriber that `main` installs: several
//! services may live in one process, so metrics and readiness are handed around as [`Handles`]
//! and every service gets a [`Shutdown`] of its own.
//!
//! What it does not do: it knows no other crate of the mesh but `mesh-trace`, no identity, no wire
//! format.
//!
//! ```no_run
//! use mesh_daemon::{ConfigArgs, Handles, Overrides, Settings, ShutdownTrigger, config, telemetry};
//! # mesh_daemon::settings! {
//! #     #[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
//! #     struct Config { log: mesh_daemon::LogConfig, shutdown: mesh_daemon::ShutdownConfig }
//! # }
//! # impl Settings for Config {
//! #     fn admin(&self) -> Option<&mesh_daemon::AdminConfig> {
//! #         None
//! #     }
//! # }
//! # async fn build_and_run(_: Config, _: Handles, _: mesh_daemon::Shutdown) {}
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let config: Config = config::load_or_exit("relay", &ConfigArgs::default(), Overrides::new());
//! let _log = telemetry::init(&config.log)?;
//! let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
//! let _signals = mesh_daemon::signals(trigger)?;
//! build_and_run(config, Handles::default(), shutdown).await;
//! # Ok(()) }
//! ```

pub mod build_info;
pub mod config;
pub mod control_socket;
pub mod health;
pub mod report;
pub mod telemetry;
pub mod tls;

mod admin;
mod grpc_calls;
mod handles;
mod latency;
mod metrics;
mod net;
mod per_core;
mod places;
mod private_file;
mod readiness;
mod secret;
mod shutdown;
mod state_dir;
mod systemd;
mod task;
mod verb;
mod vital;

pub use admin::{AdminConfig, AdminServer};
pub use config::{ConfigArgs, ConfigFaults, EXIT_CONFIG, Faults, Overrides, Settings};
pub use control_socket::{AskError, ControlSocket};
pub use grpc_calls::{GrpcCalls, GrpcCallsService, GrpcMethod, WatchedBody};
pub use handles::Handles;
pub use latency::Latency;
pub use metrics::Metrics;
pub use net::{BACKLOG, BindError, accept, bind_tcp, bind_udp};
pub use per_core::{BusyCounter, PerCore};
pub use places::{Place, Places, Turn, UnderWay};
pub use private_file::{
    PrivateFileError, private_dir, read_private, read_private_of_service, write_private,
};
pub use readiness::{Latch, NotReady, Readiness};
pub use secret::{REDACTED, Secret};
pub use shutdown::{
    DEFAULT_GRACE, DrainGuard, Drained, Shutdown, ShutdownConfig, ShutdownTrigger, signals,
};
pub use state_dir::default_state_dir;
pub use task::{Task, TaskEnd, TaskOutput, Tasks};
pub use telemetry::{LogConfig, LogFormat};
pub use verb::{ConfigVerb, ServiceVerb};
pub use vital::open_files;
