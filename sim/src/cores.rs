//! Cores that live inside services, compiled from the services' own files. Linking the services
//! would build their databases and web servers a second time under virtual time.

#[allow(
    dead_code,
    reason = "the simulation needs no limit on events about refusals"
)]
#[path = "../../services/coordinator/src/app/heartbeat.rs"]
pub(crate) mod heartbeat;

#[allow(unreachable_pub, reason = "public where it comes from")]
#[path = "../../services/coordinator/src/grpc_message.rs"]
pub(crate) mod grpc_message;

#[allow(
    dead_code,
    unreachable_pub,
    reason = "the shell around the queue is not simulated; public where it comes from"
)]
#[path = "../../services/relay/src/mailbox.rs"]
pub(crate) mod mailbox;

#[allow(
    dead_code,
    unreachable_pub,
    reason = "figures are not simulated; public where it comes from"
)]
#[path = "../../services/relay/src/registry.rs"]
pub(crate) mod registry;

// Used by those files only.
use thiserror as _;
