//! `coordinator::database`: a filled SQLite installation moves to Postgres, and its nodes stay.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use coordinator::{App, ManualClock, StoreConfig, database};
use mesh_api::pb;
use mesh_daemon::{Handles, Secret};
use mesh_testkit::{POSTGRES_PASSWORD, Postgres};

use crate::harness::{Mesh, START, config, eventually};

fn postgres() -> StoreConfig {
    StoreConfig {
        url: Postgres::shared().database(),
        password: Secret::new(POSTGRES_PASSWORD),
        ..StoreConfig::default()
    }
}

/// From now on the coordinator of this directory uses this database; empty: SQLite.
fn choose(dir: &Path, url: &str) {
    std::fs::write(dir.join("database-url"), url).expect("notes the database");
}

async fn names(mesh: &Mesh) -> BTreeMap<String, Vec<u8>> {
    let nodes = mesh.nodes().await.into_iter();
    nodes.map(|node| (node.name, node.id)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filled_sqlite_installation_moves_to_postgres_with_its_nodes() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    choose(dir.path(), "");
    let mesh = Mesh::start_in(Arc::clone(&dir), Arc::new(ManualClock::new(START))).await;
    mesh.network("lab").await;
    let mut members = Vec::new();
    for n in 0..30 {
        let network = if n % 3 == 0 { "lab" } else { "default" };
        let host = format!("worker-{n}");
        members.push(mesh.joined_in(network, pb::Role::Worker, &host).await);
    }
    mesh.remove("default", "worker-1").await;
    let before = names(&mesh).await;
    // What happens of itself is stored a little later; nothing else of it is to come.
    let events = eventually("that it was started is told", async || {
        let events = mesh.events().await;
        let started = |event: &pb::Event| event.kind == "coordinator-started";
        events.iter().any(started).then_some(events.len())
    })
    .await;

    // Nothing of this is done beside a coordinator that runs.
    let refused = database::check(&config(&dir)).await.expect_err("it runs");
    assert!(
        format!("{refused:#}").contains("in use by another coordinator"),
        "{refused:#}"
    );
    let to = postgres();
    let refused = database::copy(&config(&dir), &to, &mut |_, _| {}).await;
    assert!(format!("{:#}", refused.expect_err("it runs")).contains("in use"));
    mesh.stop().await;

    let checked = database::check(&config(&dir)).await.expect("checks");
    assert_eq!(checked.problems, Vec::<String>::new());
    assert!(checked.secrets >= 3, "CA, two SSH authorities: {checked:?}");
    let mut heard = Vec::new();
    let copied = database::copy(&config(&dir), &to, &mut |table, rows| {
        heard.push((table, rows))
    })
    .await
    .expect("copies");
    for table in &copied.tables {
        println!("{} {} {}", table.table, table.rows, &table.checksum[..16]);
        assert!(table.same, "{table:?}");
        assert_eq!(table.rows, table.rows_copied);
    }
    let rows = |name: &str| {
        let found = copied.tables.iter().find(|table| table.table == name);
        found.expect(name).rows
    };
    assert_eq!(
        (rows("node"), rows("network"), rows("tombstone")),
        (29, 2, 1)
    );
    // That it was stopped is one more.
    assert_eq!(rows("event"), u64::try_from(events).expect("few") + 1);
    assert!(heard.contains(&("node", 29)), "{heard:?}");

    // A second copy finds a database that is not empty, and leaves it alone.
    let refused = database::copy(&config(&dir), &to, &mut |_, _| {}).await;
    let text = format!("{:#}", refused.expect_err("not empty"));
    assert!(text.contains("is not empty"), "{text}");

    choose(dir.path(), &to.url);
    let checked = database::check(&config(&dir)).await.expect("checks");
    assert_eq!(checked.problems, Vec::<String>::new());
    let mesh = Mesh::start_in(Arc::clone(&dir), Arc::new(ManualClock::new(START))).await;
    assert_eq!(names(&mesh).await, before, "the same nodes by the same ids");
    // Their certificates count as they are, and are renewed by their keys: nobody joins again.
    for member in members.iter().skip(2) {
        member.channel(&mesh).await;
        member.renew(&mesh).await.expect("renews");
    }
    mesh.joined(pb::Role::Worker, "newcomer").await;
    let after = mesh.events().await;
    assert!(after.len() > events);
    let newest = after.last().expect("events");
    assert!(newest.kind.starts_with("node-"), "ids go on: {newest:?}");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_and_a_wrong_master_key_are_found() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let mesh = Mesh::start_in(Arc::clone(&dir), Arc::new(ManualClock::new(START))).await;
    mesh.joined(pb::Role::Worker, "worker").await;
    mesh.stop().await;
    let url = std::fs::read_to_string(dir.path().join("database-url")).expect("noted");
    let name = url.rsplit('/').next().expect("a name");
    Postgres::shared()
        .psql(
            name,
            "UPDATE audit SET actor = 'nobody' WHERE seq = 1; UPDATE node SET services = '{'",
        )
        .expect("damages");
    let mut config = config(&dir);
    let problems = database::check(&config).await.expect("checks").problems;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("table node"), "{problems:?}");
    assert!(problems[1].contains("audit chain"), "{problems:?}");

    config.master_key = Secret::new("0123456789abcdef".repeat(4));
    let checked = database::check(&config).await.expect("checks");
    assert_eq!(checked.secrets, 0);
    assert!(
        checked
            .problems
            .iter()
            .any(|problem| problem.contains("does not open"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_whose_database_was_emptied_is_not_begun_anew() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let mesh = Mesh::start_in(Arc::clone(&dir), Arc::new(ManualClock::new(START))).await;
    mesh.stop().await;
    let url = std::fs::read_to_string(dir.path().join("database-url")).expect("noted");
    let name = url.rsplit('/').next().expect("a name");
    for empty in [
        "DELETE FROM secret",
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    ] {
        Postgres::shared().psql(name, empty).expect("empties");
        let clock = Arc::new(ManualClock::new(START));
        let refused = App::build_with_clock(config(&dir), Handles::default(), clock as _).await;
        let text = format!("{:#}", refused.expect_err("refused"));
        assert!(text.contains("holds a coordinator's keys"), "{text}");
        assert!(
            text.contains("begin anew with another --state-dir"),
            "{text}"
        );
        let refused = database::migrate(&config(&dir)).await;
        // Its tables are there, or it is refused as well.
        assert_eq!(refused.is_err(), empty.starts_with("DROP"), "{refused:?}");
    }
    // With a directory of its own it begins; nobody's keys are lost by that.
    let anew = Arc::new(tempfile::tempdir().expect("a directory"));
    choose(anew.path(), &url);
    let mesh = Mesh::start_in(anew, Arc::new(ManualClock::new(START))).await;
    mesh.stop().await;
}
