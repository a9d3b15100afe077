//! What is answered, and counted, in place of a worker that does not answer.

use std::sync::atomic::Ordering;

use mesh_types::NodeState;
use tokio::io::AsyncWriteExt;

use crate::stage::{Reply, Stage, Worker, cockpit};

#[tokio::test]
async fn what_cannot_be_had_is_told_in_the_form_that_is_wanted() {
    let worker = Worker::start(cockpit).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    stage.add_nobody("gone", NodeState::Offline);
    for (path, status, word) in [
        ("/nobody/", 404, "unknown-node"),
        ("/n/lab/w/", 404, "unknown-network"),
        ("/w/s/app/", 404, "unknown-service"),
        ("/gone/", 502, "refused"),
    ] {
        let text = stage.get(path).await;
        assert_eq!(text.status, status, "{path}");
        assert!(text.header("content-type").starts_with("text/plain"));
        let json = stage
            .ask("GET", path, &[("Accept", "application/json")])
            .await;
        let value: serde_json::Value = serde_json::from_str(&json.body).expect("JSON");
        assert_eq!(
            (value["status"].as_u64(), value["error"].as_str()),
            (Some(status.into()), Some(word))
        );
        assert_eq!(value["request_id"], json.header("x-request-id"));
        let html = stage
            .ask("GET", path, &[("Accept", "text/html,*/*;q=0.8")])
            .await;
        assert!(html.body.starts_with("<!doctype html>"), "{path}");
        assert_eq!(html.status, status);
    }
}

#[tokio::test]
async fn requests_for_a_worker_that_is_offline_are_counted_apart() {
    let stage = Stage::start(&[]).await;
    // Until the coordinator says that it is gone, its silence is a failure like any other.
    for (state, status) in [
        (NodeState::Online, 504),
        (NodeState::Stale, 503),
        (NodeState::Offline, 503),
    ] {
        stage.add_silent("asleep", state);
        assert_eq!(stage.get("/asleep/").await.status, status, "{state}");
    }
    // This one is there, whatever its heartbeats say.
    stage.add_nobody("closed", NodeState::Offline);
    assert_eq!(stage.get("/closed/").await.status, 502);
    let text = stage.metrics.encode();
    for line in [
        r#"mesh_gateway_answers_total{class="5xx",worker_offline="true"} 1"#,
        r#"mesh_gateway_answers_total{class="5xx",worker_offline="false"} 3"#,
        r#"mesh_gateway_requests_total{route="asleep",class="5xx",worker_offline="true"} 1"#,
        r#"mesh_gateway_requests_total{route="asleep",class="5xx",worker_offline="false"} 2"#,
        r#"mesh_gateway_requests_total{route="closed",class="5xx",worker_offline="true"} 0"#,
        r#"mesh_gateway_requests_total{route="closed",class="5xx",worker_offline="false"} 1"#,
        r#"mesh_gateway_duration_seconds_count{route="asleep"} 2"#,
    ] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[tokio::test]
async fn a_worker_that_does_not_begin_to_answer_is_slow() {
    let worker = Worker::start(|_, _| String::new()).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    let reply = stage
        .ask("GET", "/w/", &[("Accept", "application/json")])
        .await;
    assert_eq!(reply.status, 504);
    assert!(reply.body.contains("\"error\":\"slow\""), "{}", reply.body);
}

#[tokio::test]
async fn requests_to_a_worker_that_vanishes_get_a_page_that_says_so() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let worker = Worker::gated(gate).await;
    let stage = Stage::start(&[("w", &worker)]).await;
    let ask = |method| {
        format!("{method} /w/x HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")
    };
    // Two connections to the worker are kept.
    let mut reading = stage.send(&ask("GET")).await;
    let mut changing = stage.send(&ask("GET")).await;
    worker.wait_for_requests(2).await;
    open.send_replace(true);
    for client in [&mut reading, &mut changing] {
        assert_eq!(Reply::read(client).await.status, 200);
    }
    open.send_replace(false);
    for (client, method) in [(&mut reading, "GET"), (&mut changing, "POST")] {
        client
            .write_all(ask(method).as_bytes())
            .await
            .expect("open");
    }
    worker.wait_for_requests(4).await;
    assert_eq!(worker.connections.load(Ordering::SeqCst), 2);
    stage.vanish(&worker);
    // What changes something may have been done, so it is not tried again.
    let reply = Reply::read(&mut changing).await;
    assert_eq!(reply.status, 502);
    assert!(reply.body.contains("\"broken\""), "{}", reply.body);
    // What only reads is tried once more, and nothing answers.
    for _ in 0..2 {
        let reply = Reply::read(&mut reading).await;
        assert_eq!(reply.status, 504);
        assert!(reply.body.contains("\"slow\""), "{}", reply.body);
        reading = stage.send(&ask("GET")).await;
    }
}
