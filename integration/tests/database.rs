//! `mesh db`: a running installation moves from SQLite to Postgres and its nodes notice nothing, a
//! copy that is not the same is told, and an old database is brought up to date.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::{Cli, Field, Layout, metrics};
use mesh_testkit::{Finished, Need, Postgres, eventually, needs};
use serde_json::{Value, json};

/// It comes with the server.
const POSTGRES: Need = Need::Program("psql");
const NEEDED: [Need; 4] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    POSTGRES,
];
const SOON: Duration = Duration::from_secs(30);
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
/// A worker of the other network.
const OTHER: &str = "worker-lab-1";
/// The newest migration, and what undoes it on Postgres.
const NEWEST: (&str, &str) = (
    "m20261121_000002_node_labels",
    "ALTER TABLE node DROP COLUMN labels",
);

/// The name of a database in its URL.
fn name_of(url: &str) -> String {
    let place = url.split('?').next().expect("a place");
    place.rsplit('/').next().expect("a name").to_owned()
}

/// What must be the same of every node, by its network and name.
fn nodes(cli: &Cli) -> BTreeMap<(String, String), Value> {
    let listed = cli.mesh_json(&["node", "list", "--all-networks"]);
    let nodes = listed["nodes"].as_array().expect("nodes");
    let text = |node: &Value, key: &str| node[key].as_str().expect("a text").to_owned();
    let kept = [
        "id",
        "role",
        "owner",
        "labels",
        "addrs",
        "wg_key",
        "created_at",
    ];
    let of = |node: &Value| {
        let kept = kept.map(|key| (key.to_owned(), node[key].clone()));
        Value::Object(kept.into_iter().collect())
    };
    nodes
        .iter()
        .map(|node| ((text(node, "network"), text(node, "name")), of(node)))
        .collect()
}

/// Waits until every node that there is reports.
#[track_caller]
fn wait_for_all_online(cli: &Cli) {
    eventually("all nodes are online", SOON, || {
        let listed = cli.mesh_json(&["node", "list", "--all-networks"]);
        let nodes = listed["nodes"].as_array().expect("nodes");
        let away: Vec<_> = nodes.iter().filter(|it| it["state"] != "online").collect();
        ensure!(away.is_empty() && nodes.len() == 7, "{away:?} of {nodes:?}");
        Ok(())
    });
}

/// Consoles and commands work on every worker of both networks.
#[track_caller]
fn assert_all_works(field: &Field) {
    let lab = format!("/n/lab/{OTHER}/");
    let default = WORKERS.map(|name| format!("/{name}/"));
    for path in default.iter().chain([&lab]) {
        let reply = field.curl(path).expect("curl runs");
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
    }
    let ran = field.operator().deploy(&["status", "all"]).expect_code(0);
    assert_eq!(
        ran.stdout.matches("[OK] ").count(),
        WORKERS.len(),
        "{}",
        ran.all()
    );
    let lab = ["--network", "lab", "exec", "echo works", OTHER];
    let ran = field.operator().deploy(&lab).expect_code(0);
    assert_eq!(ran.stdout, "works\n");
}

/// Makes `url` a database with the schema and a trigger that changes what is written.
fn spoil(cli: &Cli, server: &Postgres, url: &str, key: &str) {
    let dir = cli.work("state-spoilt");
    let dir = dir.to_str().expect("a plain path");
    let store = format!("store.url={url}");
    let words = [
        "db",
        "migrate",
        "--state-dir",
        dir,
        "--set",
        &store,
        "--set",
        key,
    ];
    cli.mesh_ok(&words);
    let trigger = "
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN NEW.owner = NEW.owner || '!'; RETURN NEW; END $$;
        CREATE TRIGGER spoil BEFORE INSERT ON node FOR EACH ROW
            WHEN (NEW.name = 'worker-node-2') EXECUTE FUNCTION spoil()";
    let name = url
        .split("///")
        .nth(1)
        .and_then(|rest| rest.split('?').next());
    server
        .psql(name.expect("a name"), trigger)
        .expect("a trigger");
}

/// Table by table, what `mesh db copy` says of both sides.
fn verdicts(copy: &Finished) -> BTreeMap<String, String> {
    let rows = copy.stdout.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let verdict = words
            .last()
            .filter(|it| ["same", "DIFFERENT"].contains(it))?;
        Some((words[0].to_owned(), (*verdict).to_owned()))
    });
    rows.collect()
}

#[test]
fn an_installation_moves_to_postgres_and_no_node_joins_again() {
    if !needs(&NEEDED) {
        return;
    }
    let server = Postgres::start().expect("Postgres");
    let [good, bad] = [(); 2].map(|()| server.socket_url(&name_of(&server.database())));
    let mut field = Field::with_networks(Layout::Single, None, &["lab"]);
    let cli = field.operator().clone();
    for name in WORKERS {
        field.add_worker(name, "default", &[]);
        field.wait_for_console(&format!("/{name}/"), SOON);
    }
    field.add_worker(OTHER, "lab", &[]);
    field.wait_for_console(&format!("/n/lab/{OTHER}/"), SOON);
    cli.mesh_ok(&["node", "set", WORKERS[0], "--label", "rack=7"]);
    wait_for_all_online(&cli);
    assert_all_works(&field);
    let before = nodes(&cli);
    let labels = &before[&("default".to_owned(), WORKERS[0].to_owned())]["labels"];
    assert_eq!(*labels, json!({ "rack": "7" }));

    let state = cli.work("state-coordinator").display().to_string();
    let key = format!("master_key_file={state}/master.key");
    let from = ["--state-dir", &state, "--to"];
    let copy = |to: &str| cli.mesh(&[&["db", "copy"], &from[..], &[to]].concat());
    let refused = copy(&good);
    assert_eq!(
        refused.code,
        Some(1),
        "beside a coordinator: {}",
        refused.all()
    );
    assert!(refused.stderr.contains("in use by"), "{}", refused.all());

    let stopped = Instant::now();
    let mut coordinator = field.take_service("coordinator");
    coordinator.terminate().expect("signalled");
    coordinator.finish(SOON).expect("ends").expect_code(0);

    // A target that changes a row is found out.
    spoil(&cli, &server, &bad, &key);
    let spoilt = copy(&bad);
    assert_eq!(spoilt.code, Some(1), "{}", spoilt.all());
    let different: Vec<_> = verdicts(&spoilt)
        .into_iter()
        .filter_map(|(table, verdict)| (verdict == "DIFFERENT").then_some(table))
        .collect();
    assert_eq!(different, ["node"], "{}", spoilt.all());
    assert!(spoilt.stdout.contains("do not use it"), "{}", spoilt.all());

    let copied = copy(&good).expect_code(0);
    println!("{}", copied.stdout);
    let verdicts = verdicts(&copied);
    assert_eq!(verdicts.len(), 12, "{}", copied.all());
    assert!(verdicts.values().all(|verdict| verdict == "same"));
    let told = format!("Both hold the same. Now set store.url to {good} ");
    assert!(copied.stdout.contains(&told), "{}", copied.all());
    let again = copy(&good);
    assert_eq!(again.code, Some(1), "{}", again.all());
    assert!(again.stderr.contains("is not empty"), "{}", again.all());

    // Consoles go on in the meantime; then the same state directory and key, and the other database.
    let console = field.curl(&format!("/{}/", WORKERS[0])).expect("curl runs");
    assert_eq!(console.status, 200, "{console:?}");
    let store = format!("store.url={good}");
    field
        .start_coordinator_with(&[&store, &key])
        .expect("starts on Postgres");
    wait_for_all_online(&cli);
    println!("all online {:?} after the stop", stopped.elapsed());
    assert_eq!(nodes(&cli), before, "the same nodes");
    assert_all_works(&field);
    let figures = field.metrics("coordinator").expect("metrics");
    assert!(
        figures.contains("mesh_coordinator_enrolments_total"),
        "{figures}"
    );
    let joins = metrics::count(&figures, &["mesh_coordinator_enrolments_total"]);
    assert_eq!(joins, 0, "nobody joins again");

    // It is Postgres that they are served from: changes stand there, and reach the gateway.
    cli.mesh_ok(&["node", "rename", WORKERS[1], "worker-moved"]);
    field.wait_for_console("/worker-moved/", SOON);
    let database = name_of(&good);
    let renamed = "SELECT count(*) FROM node WHERE name = 'worker-moved'";
    assert_eq!(server.psql(&database, renamed).expect("reads"), "1");
    field.add_worker("worker-node-3", "default", &[]);
    field.wait_for_console("/worker-node-3/", SOON);
    field.assert_logs_clean(&[]);
}

/// `mesh db VERB` on a store, with a state directory and a master key.
fn db(cli: &Cli, verb: &str, dir: &Path, sets: &[String]) -> Finished {
    let dir = dir.to_str().expect("a plain path");
    let mut words = vec!["db", verb, "--state-dir", dir];
    for set in sets {
        words.extend(["--set", set]);
    }
    cli.mesh(&words)
}

#[test]
fn an_empty_and_an_old_database_are_brought_up_to_date() {
    if !needs(&[POSTGRES]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    // SQLite: the file is made, once.
    let dir = cli.work("state-sqlite");
    let missing = db(&cli, "check", &dir, &[]);
    assert_eq!(missing.code, Some(1), "{}", missing.all());
    for wanted in ["_first_light, m", "is up to date."] {
        let migrated = db(&cli, "migrate", &dir, &[]).expect_code(0);
        assert!(migrated.stdout.contains(wanted), "{}", migrated.all());
        assert!(dir.join("coordinator.db").is_file());
    }

    let server = Postgres::start().expect("Postgres");
    let url = server.database();
    let database = name_of(&url);
    let key = cli.file(
        "master.key",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    );
    let sets = [
        format!("store.url={}", server.socket_url(&database)),
        format!("master_key_file={}", key.expect("written").display()),
    ];
    let dir = cli.work("state-postgres");
    for wanted in [&format!(", {}.", NEWEST.0), "is up to date."] {
        let migrated = db(&cli, "migrate", &dir, &sets).expect_code(0);
        assert!(migrated.stdout.contains(wanted), "{}", migrated.all());
    }

    // One with rows in it, as the version before this one left it.
    let bootstrap = || {
        let mut spec = cli.product("coordinator").arg("bootstrap");
        for set in &sets {
            spec = spec.args(["--set", set]);
        }
        let spec = spec.arg("--state-dir").arg(&dir);
        let spec = spec.arg("--tokens-dir").arg(cli.work("tokens"));
        spec.args(["--advertise", "127.0.0.1:9"])
            .run(SOON)
            .expect("runs")
            .expect_code(0)
            .stdout
    };
    assert!(bootstrap().contains("made "));
    let newest = "SELECT max(version) FROM seaql_migrations";
    assert_eq!(server.psql(&database, newest).expect("reads"), NEWEST.0);
    let undo = format!(
        "{}; DELETE FROM seaql_migrations WHERE version = '{}'",
        NEWEST.1, NEWEST.0
    );
    server.psql(&database, &undo).expect("undone");
    let old = db(&cli, "check", &dir, &sets);
    assert_eq!(old.code, Some(1), "{}", old.all());
    let told = format!("PROBLEM: the schema is not up to date ({})", NEWEST.0);
    assert!(old.stdout.contains(&told), "{}", old.all());
    let migrated = db(&cli, "migrate", &dir, &sets).expect_code(0);
    let told = format!(": ran {}.\n", NEWEST.0);
    assert!(migrated.stdout.ends_with(&told), "{}", migrated.all());
    let checked = db(&cli, "check", &dir, &sets).expect_code(0);
    assert!(
        checked.stdout.contains("No damage found."),
        "{}",
        checked.all()
    );
    assert!(!bootstrap().contains("made "), "everything is still there");
}
