//! Many connections, long transfers, and nothing at all.

use super::*;

/// Answers every connection to the port with what it sent, until it is dropped.
fn echo(node: &Node, port: u16) -> tokio::task::JoinHandle<()> {
    let mut listener = node.listen(port).expect("free");
    tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Some((mut stream, _)) = listener.accept().await {
            open.spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(&mut stream);
                let _copied = tokio::io::copy(&mut reader, &mut writer).await;
                let _ended = writer.shutdown().await;
            });
        }
    })
}

async fn ask(node: &Node, addr: SocketAddr) {
    let mut stream = node.dial(addr).await.expect("connects");
    stream.write_all(b"a question").await.expect("taken");
    stream.shutdown().await.expect("ends");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.expect("clean");
    assert_eq!(got, b"a question");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_come_and_go_by_the_hundred() {
    let lab = lab(RelayMode::Off, false).await;
    let echo = echo(&lab.b, 7000);
    let addr = v4(&lab.b, 7000);
    within("the first", ask(&lab.a, addr)).await;
    let start = Instant::now();
    within("one after the other", async {
        for _ in 0..500 {
            ask(&lab.a, addr).await;
        }
    })
    .await;
    eprintln!("500 connections one after the other: {:?}", start.elapsed());
    let start = Instant::now();
    let all = (0..200).map(|_| {
        let node = lab.a.clone();
        tokio::spawn(async move { ask(&node, addr).await })
    });
    within("side by side", async {
        for one in all.collect::<Vec<_>>() {
            one.await.expect("answered");
        }
    })
    .await;
    eprintln!("200 connections side by side: {:?}", start.elapsed());
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_questions_are_answered_quickly() {
    let lab = lab(RelayMode::Off, false).await;
    let echo = echo(&lab.b, 7000);
    let mut stream = lab.a.dial(v4(&lab.b, 7000)).await.expect("connects");
    let start = Instant::now();
    within("a thousand rounds", async {
        let mut buf = [0; 64];
        for _ in 0..1000 {
            stream.write_all(&buf).await.expect("taken");
            stream.read_exact(&mut buf).await.expect("answered");
        }
    })
    .await;
    eprintln!("1000 rounds of 64 bytes: {:?}", start.elapsed());
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_transfer_by_relay_is_whole() {
    let lab = lab(RelayMode::Only, true).await;
    transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 1000).await;
    let took = transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 32 << 20).await;
    eprintln!("32 MiB by relay in {took:?}");
}

#[tokio::test]
async fn one_thread_is_enough() {
    let lab = lab(RelayMode::Off, false).await;
    let took = transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 16 << 20).await;
    eprintln!("16 MiB on one thread in {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_at_rest_rests() {
    let lab = lab(RelayMode::Auto, true).await;
    transfer(&lab.a, &lab.b, v4(&lab.b, 7000), 100_000).await;
    let turns = || lab.a.status().counters["driver_turns"];
    // The path settles, connections end.
    eventually("the path turns direct", || {
        matches!(path_to(&lab.a, &lab.b), PeerPath::Direct { .. })
    })
    .await;
    let window = Duration::from_secs(2);
    let calm = async {
        loop {
            let before = turns();
            tokio::time::sleep(window).await;
            let made = turns() - before;
            eprintln!("{made} turns in {window:?}");
            // One a second for housekeeping, ten for its figures, the tunnel's timers.
            if made < 60 {
                return;
            }
        }
    };
    within("rest", calm).await;
}
