//! A database that somebody only looks at: nothing is changed, and nothing can be.

use std::collections::BTreeMap;

use super::damaged::killed;
use super::*;

on_both_engines! {
    whoever_only_looks_can_write_nothing,
}

/// The files of a state directory with what is in them, but for the lock.
fn files(dir: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("reads");
    let files = entries.map(|entry| entry.expect("reads").path());
    files
        .filter(|path| path.is_file() && !path.ends_with("coordinator.lock"))
        .map(|path| {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(&path).expect("reads"))
        })
        .collect()
}

/// What `mesh db check` does.
async fn look(home: &Home) -> usize {
    let opened = Store::open_as(&home.config, home.dir.path(), Purpose::Inspect).await;
    let store = opened.expect("opens");
    let (_, waiting) = store.schema().await.expect("reads");
    assert_eq!(waiting, Vec::<String>::new());
    assert_eq!(store.damage().await.expect("looks"), Vec::<String>::new());
    let networks = store.network_list().await.expect("reads").len();
    store.close().await;
    networks
}

#[tokio::test]
async fn whoever_only_looks_leaves_every_file_as_it_is() {
    let (stopped, store) = open(Engine::Sqlite).await;
    with_network(&store, 1).await;
    store.close().await;
    drop(store);
    let before = files(stopped.dir.path());
    assert_eq!(look(&stopped).await, 1);
    assert_eq!(files(stopped.dir.path()), before, "and makes none");

    // With a log, in which the second network is.
    let (home, _) = killed().await;
    let before = files(home.dir.path());
    assert_eq!(look(&home).await, 2);
    let mut after = files(home.dir.path());
    // SQLite's index of the log: it is made of the log whenever it is missing.
    after.remove("coordinator.db-shm");
    assert_eq!(after, before);
    let store = home.open().await.expect("opens");
    assert_eq!(store.network_list().await.expect("reads").len(), 2);
}

async fn whoever_only_looks_can_write_nothing(engine: Engine) {
    let (home, store) = open(engine).await;
    with_network(&store, 1).await;
    store.close().await;
    drop(store);
    assert_eq!(look(&home).await, 1);
    let opened = Store::open_as(&home.config, home.dir.path(), Purpose::Inspect).await;
    let store = opened.expect("opens");
    let on = store.pools().writer;
    let refused = on.execute_unprepared("DELETE FROM network").await;
    let text = refused.expect_err("refused").to_string();
    assert!(
        text.contains("readonly") || text.contains("read-only"),
        "{text}"
    );
    store.close().await;
}

#[tokio::test]
async fn a_first_start_that_was_cut_off_is_named_and_left_to_the_coordinator() {
    let home = Home::new(Engine::Sqlite);
    let path = home.dir.path().join("coordinator.db");
    std::fs::write(&path, vec![0; 4096]).expect("makes");
    std::fs::write(path.with_extension("db-journal"), damaged::journal()).expect("makes");
    let before = files(home.dir.path());
    let refused = Store::open_as(&home.config, home.dir.path(), Purpose::Inspect).await;
    let refused = refused.expect_err("cut off");
    assert!(matches!(refused, StoreError::CutOff { .. }), "{refused:?}");
    assert_eq!(files(home.dir.path()), before);
}
