//! A service that never finishes draining, for tests/signals.rs: it says `ready`, and `draining`
//! when told to end.

#![allow(clippy::print_stdout, reason = "the test reads it")]

use std::time::Duration;

use mesh_daemon::{Drained, ShutdownTrigger, signals};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let grace = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(60_000);
    let (trigger, shutdown) = ShutdownTrigger::new(Duration::from_millis(grace));
    let _signals = signals(trigger)?;
    let _never_done = shutdown.guard();
    println!("ready");
    shutdown.draining().await;
    println!("draining");
    if shutdown.drained().await == (Drained::TimedOut { left: 1 }) {
        println!("gave up");
    }
    Ok(())
}
