//! A coordinator with a Redis, and what becomes of it when that Redis goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coordinator::ManualClock;
use mesh_api::pb;
use mesh_testkit::Redis;

use crate::harness::{Mesh, START, config, eventually};
use crate::session::{Stream, body};

async fn mesh_with(server: &Redis) -> Mesh {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let mut config = config(&dir);
    config.bus.redis_url = server.url();
    Mesh::start_with(dir, Arc::new(ManualClock::new(START)), config).await
}

/// Why the bus is worse than it should be, by the endpoint of health.
fn complaint(mesh: &Mesh) -> Option<String> {
    let degraded = mesh.handles.readiness.degraded();
    let bus = degraded.into_iter().find(|part| part.name == "bus");
    bus.map(|part| part.reason)
}

async fn is_whole(mesh: &Mesh) {
    eventually("the bus is up", async || {
        let ready = mesh.handles.readiness.is_ready();
        (ready && complaint(mesh).is_none()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_redis_holds_up_no_call_and_is_named_while_all_is_ready() {
    let server = Redis::start().expect("a Redis");
    let mesh = mesh_with(&server).await;
    is_whole(&mesh).await;
    mesh.joined(pb::Role::Worker, "before").await;

    server.freeze().expect("freezes");
    let started = Instant::now();
    for name in ["one", "two", "three"] {
        mesh.joined(pb::Role::Worker, name).await;
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "three joins took {took:?}");
    let reason = eventually("it is told", async || complaint(&mesh)).await;
    assert!(reason.contains("Redis"), "{reason}");
    assert!(mesh.handles.readiness.is_ready());
    let figures = mesh.handles.metrics.encode();
    assert!(figures.contains("mesh_coordinator_bus_up 0"), "{figures}");

    server.thaw().expect("thaws");
    is_whole(&mesh).await;
    assert_eq!(mesh.nodes().await.len(), 4);
    let figures = mesh.handles.metrics.encode();
    assert!(figures.contains("mesh_coordinator_bus_up 1"), "{figures}");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_crashed_knows_from_redis_who_was_seen() {
    let server = Redis::start().expect("a Redis");
    let mesh = mesh_with(&server).await;
    is_whole(&mesh).await;
    let member = mesh.joined(pb::Role::Worker, "w").await;
    let mut stream = Stream::open(&mesh, &member, None).await;
    let ack = stream.beat(&member, body(&mesh, &member, 1)).await;
    assert_eq!(ack.sequence, 1);
    eventually("Redis knows", async || {
        let keys = server.ask(&["KEYS", "mesh:*:seen:*"]).expect("answers");
        (!keys.is_empty()).then_some(())
    })
    .await;
    drop(stream);
    let (dir, clock) = (Arc::clone(&mesh.dir), Arc::clone(&mesh.clock));
    let mut config = config(&dir);
    config.bus.redis_url = server.url();
    mesh.crash().await;

    clock.advance(Duration::from_secs(20));
    // The crashed one's tasks end by and by, and the last takes the lock with it.
    let lock = dir.path().join("state/coordinator.lock");
    eventually("the lock is free", async || {
        let file = std::fs::File::open(&lock).expect("there");
        file.try_lock().ok()
    })
    .await;
    let mesh = Mesh::start_with(dir, clock, config).await;
    let nodes = mesh.nodes().await;
    assert_eq!(nodes[0].last_seen, START.as_micros());
    assert_eq!(nodes[0].state(), pb::NodeState::Online);
    mesh.stop().await;
}
