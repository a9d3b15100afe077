//! What is forgotten when it is old, and what is known of it afterwards.

use mesh_types::TokenId;
use sea_orm::{ConnectionTrait as _, EntityTrait as _};

use super::*;
use crate::store::entity::audit;
use crate::store::{Cutoffs, Pruned};

on_both_engines! {
    what_is_old_is_forgotten_and_cursors_before_it_are_known,
    the_oldest_audit_goes_and_the_rest_is_still_a_chain,
    a_changed_or_missing_audit_row_breaks_the_chain,
    when_many_were_seen_is_kept_of_each_and_of_nobody_else,
}

async fn when_many_were_seen_is_kept_of_each_and_of_nobody_else(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let seen = |n: u8| Timestamp::from_secs(NOW.as_secs() + i64::from(n));
    let txn = store.write().await.expect("begins");
    for n in 0..=115 {
        txn.node_create(&node(n, id)).await.expect("creates");
    }
    txn.commit().await.expect("commits");
    // More than one statement's worth, and some that are gone.
    let many: Vec<_> = (5..=127)
        .map(|n| (NodeId::from_bytes([n; 16]), seen(n)))
        .collect();
    let txn = store.write().await.expect("begins");
    txn.node_set_last_seen(&many).await.expect("writes");
    txn.node_set_last_seen(&[]).await.expect("nothing to write");
    txn.commit().await.expect("commits");
    let nodes = store.node_list().await.expect("reads");
    assert_eq!(nodes.len(), 116);
    for node in nodes {
        let n = node.id.as_bytes()[0];
        assert_eq!(node.last_seen, (n >= 5).then(|| seen(n)), "{n}");
    }
}

async fn what_is_old_is_forgotten_and_cursors_before_it_are_known(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let later = |secs| Timestamp::from_secs(NOW.as_secs() + secs);
    let txn = store.write().await.expect("begins");
    for (n, at) in [(1, NOW), (2, later(10)), (3, later(20))] {
        txn.node_create(&node(n, id)).await.expect("creates");
        let version = txn.network_bump(id).await.expect("bumps");
        let node = NodeId::from_bytes([n; 16]);
        txn.node_remove(node, id, version, at)
            .await
            .expect("removes");
        let event = EventRecord {
            time: at,
            ..happened(EventKind::NodeRemoved, Some("a"))
        };
        txn.event_create(&event).await.expect("creates");
        let token = TokenRecord {
            expires_at: at,
            ..token(n, Some(id))
        };
        txn.token_create(&token).await.expect("creates");
        txn.token_use_record(token.id, &identity(), [n; 16], NOW)
            .await
            .expect("records");
    }
    txn.token_revoke(TokenId::from_bytes([3; 16]), NOW)
        .await
        .expect("revokes");
    let cutoffs = |at| Cutoffs {
        events: at,
        tokens: at,
        tombstones: at,
        audit: None,
    };
    let nothing = txn.prune(&cutoffs(NOW)).await.expect("prunes");
    assert_eq!(nothing, Pruned::default(), "nothing is older than that");
    let pruned = txn.prune(&cutoffs(later(15))).await.expect("prunes");
    let expected = Pruned {
        events: 2,
        tokens: 3,
        tombstones: 2,
        audit: 0,
    };
    assert_eq!(pruned, expected);
    txn.commit().await.expect("commits");
    let left = store.tombstone_list().await.expect("lists");
    assert_eq!(left.iter().map(|row| row.version).collect::<Vec<_>>(), [3]);
    let trimmed = store.network_trimmed().await.expect("reads");
    assert_eq!(trimmed.get(&id), Some(&2), "cursors from 2 on can resume");
    assert!(store.token_list(None).await.expect("lists").is_empty());
}

async fn the_oldest_audit_goes_and_the_rest_is_still_a_chain(engine: Engine) {
    let (home, store) = open(engine).await;
    let later = |secs| Timestamp::from_secs(NOW.as_secs() + secs);
    let append = async |store: &Store, secs| {
        let txn = store.write().await.expect("begins");
        let entry = AuditEntry {
            time: later(secs),
            actor: "somebody".into(),
            ..AuditEntry::default()
        };
        txn.audit_append(&entry).await.expect("appends");
        txn.commit().await.expect("commits");
    };
    for secs in [0, 10, 20, 30] {
        append(&store, secs).await;
    }
    let trim = async |store: &Store, secs: i64| {
        let cutoffs = Cutoffs {
            events: NOW,
            tokens: NOW,
            tombstones: NOW,
            audit: Some(Timestamp::from_micros(NOW.as_micros() + secs * 1_000_000)),
        };
        let txn = store.write().await.expect("begins");
        let pruned = txn.prune(&cutoffs).await.expect("prunes");
        txn.commit().await.expect("commits");
        pruned.audit
    };
    assert_eq!(trim(&store, 0).await, 0, "nothing is older than that");
    assert_eq!(trim(&store, 15).await, 2);
    // A walk that began before this sees a gap, and only the walk over again does not.
    assert_eq!(store.audit_walk(0).await.expect("reads"), Err(1));
    assert_eq!(store.audit_verify().await.expect("reads"), Ok(4));
    append(&store, 40).await;
    store.close().await;
    drop(store);
    let store = home.open().await.expect("opens");
    assert_eq!(store.audit_verify().await.expect("reads"), Ok(5));
    assert_eq!(
        trim(&store, 1_000).await,
        2,
        "the newest stays, to be added to"
    );
    append(&store, 50).await;
    assert_eq!(store.audit_verify().await.expect("reads"), Ok(6));
    // Who takes a row away from the front shows as before.
    audit::Entity::delete_by_id(5)
        .exec(&store.pools().writer)
        .await
        .expect("deletes");
    assert_eq!(store.audit_verify().await.expect("reads"), Err(5));
}

async fn a_changed_or_missing_audit_row_breaks_the_chain(engine: Engine) {
    let (_home, store) = open(engine).await;
    let txn = store.write().await.expect("begins");
    for subject in ["a", "b", "c"] {
        let entry = AuditEntry {
            time: NOW,
            actor: "operator:anna".into(),
            action: "node-remove".into(),
            subject: subject.into(),
            ..AuditEntry::default()
        };
        txn.audit_append(&entry).await.expect("appends");
    }
    txn.commit().await.expect("commits");
    assert_eq!(store.audit_verify().await.expect("reads"), Ok(3));
    let change = "UPDATE audit SET subject = 'x' WHERE seq = 2";
    store
        .pools()
        .writer
        .execute_unprepared(change)
        .await
        .expect("writes");
    assert_eq!(store.audit_verify().await.expect("reads"), Err(2));
    audit::Entity::delete_by_id(1)
        .exec(&store.pools().writer)
        .await
        .expect("deletes");
    assert_eq!(store.audit_verify().await.expect("reads"), Err(1));
}
