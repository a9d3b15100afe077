//! Two relays, of which one is lost.

use std::time::{Duration, Instant};

use mesh_node::{Node, PeerPath, RelayMode};
use mesh_types::RelayId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::relay::FakeRelay;
use super::{eventually, lab, path_to, transfer, v4, within};

/// What a worker that moves is given, too.
const BACK: Duration = Duration::from_secs(5);

fn connected(node: &Node) -> usize {
    let status = node.status();
    let connected = status.relays.iter().filter(|relay| relay.connected);
    connected.count()
}

/// The relay between them, in both directions.
fn between(a: &Node, b: &Node) -> Option<RelayId> {
    match (path_to(a, b), path_to(b, a)) {
        (PeerPath::Relay { id }, PeerPath::Relay { id: back }) if id == back => Some(id),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_open_goes_on_over_the_other_relay_when_one_is_killed() {
    let mut lab = lab(RelayMode::Only, true).await;
    let second = FakeRelay::start_as(6, &lab.coordinator.ca, "127.0.0.1:0").await;
    let mut relays = vec![lab.relay.take().expect("a relay"), second];
    let all: Vec<_> = relays.iter().map(|relay| relay.relay.clone()).collect();
    lab.coordinator.change(|facts| facts.relays = all);
    let (a, b) = (&lab.a, &lab.b);
    eventually("both are connected to both", || {
        [a, b].map(connected) == [2, 2]
    })
    .await;
    let mut listener = b.listen(7000).expect("free");
    let (dialled, accepted) = tokio::join!(a.dial(v4(b, 7000)), listener.accept());
    let (mut near, (mut far, _)) = (dialled.expect("connects"), accepted.expect("arrives"));
    near.write_all(b"before").await.expect("is taken");
    let mut got = [0; 6];
    within("what was said before", far.read_exact(&mut got))
        .await
        .expect("arrives");
    eventually("a relay is between them", || between(a, b).is_some()).await;
    let lost = between(a, b).expect("seen just now");
    assert_eq!(b.status().home_relay, Some(lost), "where it is found");

    // It is not back before the end: dropped, and nothing listens where it was.
    let begun = Instant::now();
    relays.retain(|relay| relay.relay.id != lost);
    let other = relays[0].relay.id;
    // Its tasks end a moment later, so that it may still carry something.
    eventually("both lost it", || [a, b].map(connected) == [1, 1]).await;
    near.write_all(b"there").await.expect("is kept");
    far.write_all(b"back!").await.expect("is kept");
    let (mut to, mut fro) = ([0; 5], [0; 5]);
    let both = async {
        far.read_exact(&mut to).await.expect("arrives");
        near.read_exact(&mut fro).await.expect("arrives");
    };
    within("what was said when it was lost", both).await;
    let took = begun.elapsed();
    assert_eq!((&to, &fro), (b"there", b"back!"));
    eprintln!("the open stream went on {took:?} after the relay was killed");
    assert!(took < BACK, "{took:?} after the relay was killed");
    assert_eq!([a, b].map(connected), [1, 1], "it stays lost");
    eventually("the other is home, and between them", || {
        let homes = [a, b].map(|node| node.status().home_relay);
        homes == [Some(other); 2] && between(a, b) == Some(other)
    })
    .await;
    let took = transfer(a, b, v4(b, 7001), 1 << 20).await;
    eprintln!("1 MiB by the other relay in {took:?}");
}
