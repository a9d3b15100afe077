//! Who may write, one after the other or at once, and who may not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_types::TokenId;
use sea_orm::{ConnectionTrait as _, EntityTrait as _};

use super::*;
use crate::store::Purpose;
use crate::store::entity::meta;

on_both_engines! {
    writers_at_once_wait_for_each_other,
    the_trial_write_leaves_no_trace,
    trials_at_once_leave_each_other_alone,
    a_token_for_one_lets_exactly_one_of_fifty_in,
    a_second_coordinator_is_refused_and_told_who_is_there,
    a_bootstrap_writes_beside_a_coordinator_only_on_postgres,
    somebody_elses_change_ends_our_writing,
}

async fn writers_at_once_wait_for_each_other(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let store = std::sync::Arc::new(store);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let store = std::sync::Arc::clone(&store);
        tasks.spawn(async move {
            let txn = store.write().await.expect("begins");
            let version = txn.network_bump(id).await.expect("bumps");
            txn.commit().await.expect("commits");
            version
        });
    }
    let mut versions = tasks.join_all().await;
    versions.sort_unstable();
    assert_eq!(versions, (1..=40).collect::<Vec<_>>());
}

async fn the_trial_write_leaves_no_trace(engine: Engine) {
    let (_home, store) = open(engine).await;
    let rows = async || {
        let all = meta::Entity::find().all(&store.reader()).await;
        all.expect("reads")
    };
    let before = rows().await;
    store.examine().await;
    assert_eq!(store.refusal(), None);
    assert_eq!(rows().await, before);
}

async fn a_token_for_one_lets_exactly_one_of_fifty_in(engine: Engine) {
    let (_home, store) = open(engine).await;
    let id = with_network(&store, 1).await;
    let record = token(1, Some(id));
    let txn = store.write().await.expect("begins");
    txn.token_create(&record).await.expect("creates");
    txn.commit().await.expect("commits");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let store = store.clone();
        tasks.spawn(async move {
            let txn = store.write().await.expect("begins");
            let token = txn.token_show(TokenId::from_bytes([1; 16])).await;
            if token.expect("reads").expect("exists").uses > 0 {
                return false;
            }
            txn.token_use_record(record.id, &identity(), [n; 16], NOW)
                .await
                .expect("records");
            txn.commit().await.expect("commits");
            true
        });
    }
    let let_in = tasks.join_all().await;
    assert_eq!(let_in.iter().filter(|done| **done).count(), 1);
}

async fn a_second_coordinator_is_refused_and_told_who_is_there(engine: Engine) {
    let (home, store) = open(engine).await;
    // On Postgres another machine, with a state directory of its own, is kept out too.
    let other = match engine {
        Engine::Sqlite => home.dir.path().to_owned(),
        Engine::Postgres => {
            let dir = home.dir.path().join("elsewhere");
            std::fs::create_dir(&dir).expect("a directory");
            dir
        }
    };
    let refused = Store::open(&home.config, &other).await.expect_err("locked");
    let text = refused.to_string();
    assert!(text.contains("another coordinator"), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    store.close().await;
    drop(store);
    Store::open(&home.config, &other).await.expect("free again");
}

async fn a_bootstrap_writes_beside_a_coordinator_only_on_postgres(engine: Engine) {
    let (home, store) = open(engine).await;
    let dir = home.dir.path().join("elsewhere");
    std::fs::create_dir(&dir).expect("a directory");
    if engine == Engine::Sqlite {
        let refused = Store::open_beside(&home.config, home.dir.path()).await;
        assert!(matches!(refused, Err(StoreError::Locked { .. })));
        return;
    }
    let beside = Store::open_beside(&home.config, &dir).await.expect("opens");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let store = [&store, &beside][n % 2].clone();
        tasks.spawn(async move {
            let txn = store.write().await.expect("begins");
            let entry = AuditEntry {
                time: NOW,
                actor: "somebody".into(),
                ..AuditEntry::default()
            };
            txn.audit_append(&entry).await.expect("appends");
            txn.event_create(&happened(EventKind::TokenCreated, None))
                .await
                .expect("creates");
            txn.commit().await.expect("commits");
        });
    }
    tasks.join_all().await;
    assert_eq!(store.audit_verify().await.expect("reads"), Ok(20));
    assert_eq!(
        store.event_list(None, 0, 100).await.expect("reads").len(),
        20
    );
    with_network(&store, 1).await;
}

async fn somebody_elses_change_ends_our_writing(engine: Engine) {
    let (_home, store) = open(engine).await;
    with_network(&store, 1).await;
    let foreign = "UPDATE meta SET value = value + 1 WHERE name = 'change'";
    let writer = store.pools().writer;
    writer.execute_unprepared(foreign).await.expect("writes");
    assert!(matches!(store.write().await, Err(StoreError::Stale)));
    assert!(store.end_reason().is_some());
    store.examine().await;
    assert!(
        matches!(store.write().await, Err(StoreError::Stale)),
        "for good"
    );
    assert_eq!(store.network_list().await.expect("reads").len(), 1);
}

async fn trials_at_once_leave_each_other_alone(engine: Engine) {
    let (_home, store) = open(engine).await;
    for round in 1..=3 {
        store.0.health.set_down("planted".to_owned(), true);
        tokio::join!(store.examine(), store.examine(), store.examine());
        assert_eq!(store.refusal(), None, "round {round}");
        assert!(store.network_list().await.is_ok(), "round {round}");
        // The first has healed it; the others leave alone what is in use again.
        let renewals = store.0.renewals.load(Ordering::Relaxed);
        let expected = if engine == Engine::Postgres { round } else { 0 };
        assert_eq!(renewals, expected);
    }
    with_network(&store, 1).await;
}

/// Only Postgres lets somebody write beside one who looks.
#[tokio::test]
async fn who_looks_or_copies_sees_one_moment_whoever_writes_meanwhile() {
    let (home, store) = open(Engine::Postgres).await;
    with_network(&store, 1).await;
    store.close().await;
    drop(store);
    let looking = Store::open_as(&home.config, home.dir.path(), Purpose::Inspect).await;
    let looking = looking.expect("opens");
    let dir = home.dir.path().join("elsewhere");
    std::fs::create_dir(&dir).expect("a directory");
    let beside = Store::open_beside(&home.config, &dir).await.expect("opens");

    let before = looking.sums().await.expect("reads");
    let txn = beside.write().await.expect("begins");
    txn.token_create(&token(1, None)).await.expect("creates");
    txn.commit().await.expect("commits");
    assert_eq!(beside.token_list(None).await.expect("reads").len(), 1);
    assert_eq!(looking.sums().await.expect("reads"), before);
    assert_eq!(looking.token_list(None).await.expect("reads").len(), 0);

    // What is copied is that moment too.
    let target = Home::new(Engine::Sqlite);
    let to = Store::open_as(&target.config, target.dir.path(), Purpose::Serve).await;
    let to = to.expect("opens");
    let read = looking.copy_to(&to, &mut |_, _| {}).await.expect("copies");
    assert_eq!(read, before);
    assert_eq!(to.sums().await.expect("reads"), before);
    let closing = tokio::time::timeout(Duration::from_secs(10), looking.close());
    closing.await.expect("the snapshot ends with its store");
}

#[tokio::test]
async fn the_last_words_of_a_database_that_leaves_are_told_as_its_own() {
    let (_home, store) = open(Engine::Postgres).await;
    let writer = store.pools().writer;
    let leave = "SELECT pg_terminate_backend(pg_backend_pid())";
    let error = writer.execute_unprepared(leave).await;
    let error = StoreError::writing(error.expect_err("the connection has ended"));
    let text = error.to_string();
    assert!(
        text.contains("the database ended the connection: "),
        "{text}"
    );
}
