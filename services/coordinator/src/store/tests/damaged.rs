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
