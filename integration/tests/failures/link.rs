//! A link that carries nothing, and ends nothing either: both sides keep connections that lead
//! nowhere.

use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Field, Layout, metrics};
use mesh_testkit::{Curl, Need, eventually, needs};

use super::{SOON, wait_for_event, wait_for_state};

const NODE: &str = "worker-node-1";
/// A control stream on which nothing comes is given up after 45 s: longer than that and shorter
/// than the minute after which the coordinator calls the node offline, so that each side finds out
/// by itself and meets the other's old connection.
const LOST: Duration = Duration::from_secs(60);

/// Waits until the coordinator says that the node is stale; on a slow machine it may be offline by
/// the time that somebody looks.
#[track_caller]
fn wait_until_missed(field: &Field) {
    eventually("the node is missed", LOST, || {
        let listed = field.operator().mesh(&["--json", "node", "list"]);
        let listed: serde_json::Value = serde_json::from_str(&listed.success()?.stdout)?;
        let nodes = listed["nodes"].as_array().cloned().unwrap_or_default();
        let node = nodes.iter().find(|node| node["name"] == NODE);
        let state = node.map_or("", |node| node["state"].as_str().unwrap_or_default());
        ensure!(["stale", "offline"].contains(&state), "{listed}");
        Ok(())
    });
}

/// Waits until the agent's own metrics call its connection to the coordinator degraded, or not so.
#[track_caller]
fn wait_for_latch(field: &Field, is_degraded: bool) {
    let name = "mesh_process_latch_degraded{latch=\"coordinator\"}";
    let wanted = format!("{name} {}", u8::from(is_degraded));
    eventually(&wanted, SOON, || {
        let own = Curl::new().on(Some(field.host(NODE)));
        let text = own.get("http://127.0.0.1:9467/metrics")?.ok()?;
        ensure!(text.lines().any(|line| line == wanted), "{text}");
        Ok(())
    });
}

#[test]
fn a_minute_of_total_loss_is_told_by_everybody_and_heals_by_itself() {
    if !needs(&[
        Need::Root,
        Need::Program("ip"),
        Need::Program("nft"),
        Need::Program("curl"),
    ]) {
        return;
    }
    let mut field = Field::start(Layout::Spread, None);
    field.add_worker(NODE, "default", &[]);
    let path = format!("/{NODE}/");
    field.wait_for_console(&path, SOON);
    wait_for_latch(&field, false);
    let failures = || {
        let text = field.metrics("gateway").expect("metrics");
        metrics::count(&text, &["mesh_gateway_upstream_failures_total"])
    };
    let failed = failures();
    // Nothing in or out, and nobody is told: not a reset, not an unreachable.
    let all = "ip saddr 10.90.0.0/16 ip daddr 10.90.0.0/16".to_owned();
    let lost = Instant::now();
    let blocked = field.host(NODE).block(&[all]).expect("cut");
    let page = field.curl(&path).expect("an answer");
    assert!([502, 503, 504].contains(&page.status), "{page:?}");
    assert!(failures() > failed, "the gateway counts it");
    let refused = field.operator().deploy(&["exec", "true", NODE]);
    assert_eq!(refused.code, Some(255), "{}", refused.all());
    let told = format!("[FAIL] {NODE}: ");
    assert!(refused.all().contains(&told), "{}", refused.all());
    wait_until_missed(&field);
    wait_for_event(
        field.operator(),
        "node-stale",
        &format!("{NODE}  was online"),
    );
    eventually(
        "the agent tells that the coordinator is silent",
        LOST,
        || {
            let told = field.worker(NODE).run("status", &[]).all();
            ensure!(
                told.contains("silent") || told.contains("no answer"),
                "{told}"
            );
            Ok(())
        },
    );
    wait_for_latch(&field, true);
    // Whoever else is there does not notice.
    field.operator().mesh_ok(&["token", "create"]);
    eventually("the minute is over", LOST, || {
        ensure!(lost.elapsed() >= LOST, "not yet");
        Ok(())
    });

    blocked.lift().expect("lifted");
    let healed = Instant::now();
    field.wait_for_console(&path, SOON);
    let console = healed.elapsed();
    wait_for_state(field.operator(), &[NODE], "online", SOON);
    let online = healed.elapsed();
    // It was told so of its first start too.
    eventually("the newest word of it is that it is online", SOON, || {
        let events = field.operator().mesh(&["events"]).success()?.stdout;
        let word = format!("  {NODE}  was ");
        let newest = events.lines().rfind(|line| line.contains(&word));
        let is_online = newest.is_some_and(|line| line.contains("  node-online  "));
        ensure!(is_online, "{events}");
        Ok(())
    });
    wait_for_latch(&field, false);
    field
        .operator()
        .deploy(&["exec", "true", NODE])
        .expect_code(0);
    println!("console after {console:?}, online after {online:?}");
    field.assert_logs_clean(&[]);
}
