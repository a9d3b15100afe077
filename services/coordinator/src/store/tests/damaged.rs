//! A database file that is not what SQLite wrote.

use super::*;

/// What a disk or a person may do to the file.
type Damage = fn(&mut Vec<u8>);

const DAMAGES: [(&str, Damage); 3] = [
    ("another file", |bytes| bytes[..100].fill(b'x')),
    ("a page of zeros", |bytes| bytes[4096..8192].fill(0)),
    ("the end cut off", |bytes| bytes.truncate(3 * 4096)),
];

#[tokio::test]
async fn a_damaged_file_is_refused_as_it_is_and_a_copy_heals() {
    let (home, store) = open(Engine::Sqlite).await;
    for n in 1..20 {
        with_network(&store, n).await;
    }
    let networks = store.network_list().await.expect("reads");
    store.close().await;
    drop(store);
    let path = home.dir.path().join("coordinator.db");
    let whole = std::fs::read(&path).expect("a file");
    for (what, damage) in DAMAGES {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        assert_ne!(bytes, whole, "{what}");
        std::fs::write(&path, &bytes).expect("writes");
        let refused = home.open().await.expect_err(what);
        assert!(
            matches!(&refused, StoreError::Damaged { reason, .. } if !reason.is_empty()),
            "{what}: {refused:?}"
        );
        let text = mesh_daemon::report::chain(&refused);
        assert!(text.contains("coordinator.db"), "{text}");
        assert!(text.contains("mesh db check"), "{text}");
        assert_eq!(std::fs::read(&path).expect("still there"), bytes, "{what}");
    }
    std::fs::write(&path, &whole).expect("writes");
    let store = home.open().await.expect("opens again");
    assert_eq!(store.network_list().await.expect("reads"), networks);
}

#[tokio::test]
async fn damage_under_a_running_store_is_told_until_its_end() {
    use std::io::{Seek as _, Write as _};

    let (home, store) = open(Engine::Sqlite).await;
    for n in 1..20 {
        with_network(&store, n).await;
    }
    store.close().await;
    drop(store);
    let store = home.open().await.expect("opens again");
    let path = home.dir.path().join("coordinator.db");
    // A connection goes by what it remembers of the file: this one has read nothing of the networks.
    let fresh = crate::store::sqlite::connect(&path, 1).await;
    let pools = crate::store::Pools {
        writer: store.pools().writer,
        reader: crate::store::snapshot::Reader::Pool(fresh.expect("connects")),
    };
    drop(store.replace_pools(pools));
    let length = std::fs::metadata(&path).expect("a file").len();
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("opens");
    file.seek(std::io::SeekFrom::Start(4096)).expect("seeks");
    let rest = usize::try_from(length - 4096).expect("fits");
    file.write_all(&vec![0xa5; rest]).expect("writes");
    store.network_list().await.expect_err("damaged");
    let told = store.refusal().expect("it is told");
    assert!(told.contains("malformed"), "{told}");
    // A trial write touches few pages, which may be whole, or remembered.
    for _ in 0..2 {
        store.examine().await;
        assert_eq!(store.refusal(), Some(told.clone()));
    }
}

#[tokio::test]
async fn a_lost_database_is_not_replaced_by_an_empty_one() {
    let (home, store) = open(Engine::Sqlite).await;
    store.close().await;
    drop(store);
    let path = home.dir.path().join("coordinator.db");
    std::fs::create_dir(home.dir.path().join("operator")).expect("makes");
    for lose in [
        |path: &std::path::Path| std::fs::write(path, "").expect("empties"),
        |path: &std::path::Path| std::fs::remove_file(path).expect("removes"),
    ] {
        lose(&path);
        let refused = home.open().await.expect_err("lost");
        assert!(
            matches!(&refused, StoreError::Vanished { .. }),
            "{refused:?}"
        );
    }
    // A directory in which nobody has become an operator is new.
    std::fs::remove_dir(home.dir.path().join("operator")).expect("removes");
    home.open().await.expect("begins anew");
}

#[tokio::test]
async fn an_empty_postgres_is_not_begun_anew_for_a_directory_that_had_one() {
    let home = Home::new(Engine::Postgres);
    std::fs::create_dir(home.dir.path().join("operator")).expect("makes");
    for purpose in [Purpose::Serve, Purpose::Beside] {
        let refused = Store::open_as(&home.config, home.dir.path(), purpose).await;
        let refused = refused.expect_err("empty");
        let text = mesh_daemon::report::chain(&refused);
        assert!(matches!(&refused, StoreError::Emptied { .. }), "{text}");
        assert!(
            text.contains("store.url") && text.contains("--state-dir"),
            "{text}"
        );
    }
    let name = home.config.url.rsplit('/').next().expect("a name");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    let tables = Postgres::shared().psql(name, tables).expect("asks");
    assert_eq!(tables, "0", "it is as it was");
    // A copy of a full one may be brought there.
    let target = Store::open_as(&home.config, home.dir.path(), Purpose::Target).await;
    target.expect("opens").close().await;
}

/// A state directory as a killed coordinator leaves it, after a start that ended well: what was
/// written last is in the log alone. The database and its log.
pub(super) async fn killed() -> (Home, [std::path::PathBuf; 2]) {
    let (running, store) = open(Engine::Sqlite).await;
    with_network(&store, 1).await;
    store.close().await;
    drop(store);
    let store = running.open().await.expect("opens again");
    with_network(&store, 2).await;
    let home = Home::new(Engine::Sqlite);
    let files = ["coordinator.db", "coordinator.db-wal"].map(|name| {
        let to = home.dir.path().join(name);
        std::fs::copy(running.dir.path().join(name), &to).expect("copies");
        to
    });
    std::fs::create_dir(home.dir.path().join("operator")).expect("makes");
    store.close().await;
    let log = std::fs::metadata(&files[1]).expect("a log");
    assert!(log.len() > 0, "nothing is in the log");
    (home, files)
}

#[tokio::test]
async fn a_killed_coordinator_starts_with_all_that_was_written() {
    let (home, _) = killed().await;
    let store = home.open().await.expect("opens");
    assert_eq!(store.network_list().await.expect("reads").len(), 2);
}

#[tokio::test]
async fn a_database_lost_after_a_kill_is_not_replaced_and_its_log_is_kept() {
    for lose in [
        |path: &std::path::Path| std::fs::write(path, "").expect("empties"),
        |path: &std::path::Path| std::fs::remove_file(path).expect("removes"),
    ] {
        let (home, [path, log]) = killed().await;
        let kept = std::fs::read(&log).expect("a log");
        lose(&path);
        let refused = home.open().await.expect_err("lost");
        let text = mesh_daemon::report::chain(&refused);
        assert!(matches!(&refused, StoreError::Vanished { .. }), "{text}");
        assert!(text.contains("coordinator.db-wal"), "{text}");
        assert_eq!(std::fs::read(&log).expect("still there"), kept);
    }
}

#[tokio::test]
async fn a_database_whose_log_was_lost_before_anything_was_moved_from_it_is_not_begun_anew() {
    let (running, store) = open(Engine::Sqlite).await;
    with_network(&store, 1).await;
    let home = Home::new(Engine::Sqlite);
    let path = home.dir.path().join("coordinator.db");
    std::fs::copy(running.dir.path().join("coordinator.db"), &path).expect("copies");
    store.close().await;
    let alone = std::fs::read(&path).expect("a file");
    assert!(!alone.is_empty());
    std::fs::create_dir(home.dir.path().join("operator")).expect("makes");
    let refused = home.open().await.expect_err("lost");
    let text = mesh_daemon::report::chain(&refused);
    assert!(matches!(&refused, StoreError::Vanished { .. }), "{text}");
    assert_eq!(std::fs::read(&path).expect("still there"), alone);
}

/// What is promised to be whole once the operator's files are written.
#[tokio::test]
async fn what_is_flushed_is_in_the_file_without_its_log() {
    let (running, store) = open(Engine::Sqlite).await;
    with_network(&store, 1).await;
    store.flush().await.expect("flushes");
    let home = Home::new(Engine::Sqlite);
    let path = home.dir.path().join("coordinator.db");
    std::fs::copy(running.dir.path().join("coordinator.db"), &path).expect("copies");
    let copy = home.open().await.expect("opens");
    assert_eq!(copy.network_list().await.expect("reads").len(), 1);
}

/// The head of a rollback journal (SQLite's file format, 3): there was no page before.
pub(super) fn journal() -> Vec<u8> {
    let mut bytes = vec![0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    for number in [0_u32, 0, 0, 512, 4096] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.resize(512, 0);
    bytes
}

#[tokio::test]
async fn a_first_start_that_was_killed_begins_again() {
    // Made and not written to; and while SQLite put page 1 into it.
    for (file, journal) in [(0, None), (0, Some(journal())), (4096, Some(journal()))] {
        let home = Home::new(Engine::Sqlite);
        let path = home.dir.path().join("coordinator.db");
        std::fs::write(&path, vec![0; file]).expect("makes");
        if let Some(bytes) = &journal {
            std::fs::write(path.with_extension("db-journal"), bytes).expect("makes");
        }
        let store = home.open().await;
        let store = store.unwrap_or_else(|error| panic!("{file} {journal:?}: {error}"));
        with_network(&store, 1).await;
    }
}

#[tokio::test]
async fn a_damaged_file_and_its_log_are_left_as_they_are() {
    let (home, [path, log]) = killed().await;
    let mut bytes = std::fs::read(&path).expect("a file");
    bytes[4096..].fill(0);
    std::fs::write(&path, &bytes).expect("writes");
    let kept = std::fs::read(&log).expect("a log");
    let refused = home.open().await.expect_err("damaged");
    let text = mesh_daemon::report::chain(&refused);
    assert!(matches!(&refused, StoreError::Damaged { .. }), "{text}");
    assert!(text.contains("coordinator.db-wal"), "{text}");
    assert_eq!(std::fs::read(&path).expect("still there"), bytes);
    assert_eq!(std::fs::read(&log).expect("still there"), kept);
}
