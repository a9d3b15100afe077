//! Events: in their order, and those of other programs among them.

use super::*;

on_both_engines! {
    events_come_back_in_order_and_by_network,
    events_of_a_newer_program_are_told_by_their_word_and_are_no_damage,
}

async fn events_come_back_in_order_and_by_network(engine: Engine) {
    let (_home, store) = open(engine).await;
    let txn = store.write().await.expect("begins");
    let mut ids = Vec::new();
    for event in [
        happened(EventKind::NodeJoined, Some("a")),
        happened(EventKind::NodeJoined, Some("b")),
        happened(EventKind::OperatorAdded, None),
        happened(EventKind::NodeRemoved, Some("a")),
    ] {
        ids.push(txn.event_create(&event).await.expect("creates"));
    }
    txn.commit().await.expect("commits");
    let of = async |network, after, limit| {
        let events = store
            .event_list(network, after, limit)
            .await
            .expect("lists");
        events.into_iter().map(|event| event.id).collect::<Vec<_>>()
    };
    assert_eq!(of(None, 0, 100).await, ids);
    assert_eq!(of(Some("a"), 0, 100).await, [ids[0], ids[3]]);
    assert_eq!(of(None, 0, 2).await, ids[2..]);
    assert_eq!(of(None, ids[1], 100).await, ids[2..]);
}

async fn events_of_a_newer_program_are_told_by_their_word_and_are_no_damage(engine: Engine) {
    let (home, store) = open(engine).await;
    let txn = store.write().await.expect("begins");
    for kind in [EventKind::NodeJoined, EventKind::NodeSet] {
        let event = happened(kind, Some("a"));
        txn.event_create(&event).await.expect("creates");
    }
    txn.commit().await.expect("commits");
    let newer = "UPDATE event SET kind = 'moon-full' WHERE kind = 'node-set'";
    let writer = store.pools().writer;
    writer.execute_unprepared(newer).await.expect("changes");
    let told = store.event_list(Some("a"), 0, 100).await.expect("lists");
    let words: Vec<_> = told.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(words, ["node-joined", "moon-full"]);
    store.close().await;
    drop(store);
    // As `mesh db check` looks.
    let opened = Store::open_as(&home.config, home.dir.path(), Purpose::Inspect).await;
    let found = opened.expect("opens").damage().await.expect("looks");
    assert_eq!(found, Vec::<String>::new());
}
