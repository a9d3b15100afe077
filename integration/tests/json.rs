//! What programs read: every verb with `--json` prints one document with a schema and its version.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use integration::{Agent, Cli, MeshUp, MeshUpOptions};
use mesh_testkit::{Finished, Spec, documented};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// `NAME/VERSION`.
#[track_caller]
fn assert_schema(what: &str, text: &str, schema: &str) -> Value {
    let value: Value = serde_json::from_str(text.trim())
        .unwrap_or_else(|error| panic!("{what}: no JSON ({error}): {text}"));
    assert_eq!(value["schema"], schema, "{what}: {text}");
    let (_, version) = schema.rsplit_once('/').expect("a version");
    assert!(version.parse::<u32>().is_ok(), "{what}: {schema}");
    value
}

#[track_caller]
fn ran(spec: Spec) -> Finished {
    spec.run(SOON).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Every verb of a program that does something, from its generated reference.
fn verbs(program: &str) -> BTreeSet<String> {
    let page = documented::root().join(format!("docs/cli/{program}.md"));
    let page = std::fs::read_to_string(&page).expect("the reference");
    let mut sections = page.split("\n## ").skip(1);
    let mut found = BTreeSet::new();
    for section in sections.by_ref() {
        let title = section.lines().next().unwrap_or_default();
        let usage = section.lines().find(|line| line.starts_with("Usage:"));
        if usage.is_some_and(|usage| !usage.contains("<COMMAND>"))
            && let Some(verb) = title.trim().strip_prefix(&format!("{program} "))
        {
            found.insert(verb.to_owned());
        }
    }
    assert!(found.len() > 3, "{program}: {found:?}");
    found
}

/// Verbs of `mesh` whose answer is no document, and why.
const NO_DOCUMENT: [(&str, &str); 5] = [
    ("up", "its ready line is mesh.up/1: every journey reads it"),
    ("completions", "a script for a shell"),
    ("nc", "the bytes of a connection"),
    ("ssh-config", "OpenSSH's own format"),
    (
        "node host-key accept",
        "a node as above, once its key has changed: tests/ssh.rs",
    ),
];

/// Runs every verb of `mesh` once and checks what it prints; gives the verbs that were run.
struct Verbs<'a> {
    cli: &'a Cli,
    seen: BTreeMap<String, &'static str>,
}

impl Verbs<'_> {
    #[track_caller]
    fn check(&mut self, verb: &str, args: &[&str], schema: &'static str) -> Value {
        let words = ["--json"].into_iter().chain(verb.split(' '));
        let words: Vec<&str> = words.chain(args.iter().copied()).collect();
        let ran = ran(self.cli.mesh_spec(&words));
        let ran = ran.expect_code(0);
        self.seen.insert(verb.to_owned(), schema);
        assert_schema(verb, &ran.stdout, schema)
    }
}

#[test]
fn every_verb_of_mesh_prints_a_document_with_a_schema() {
    let cli = Cli::new().expect("folders");
    let mut up = MeshUp::start(&cli, MeshUpOptions::default());
    let mut verbs = Verbs {
        cli: &cli,
        seen: BTreeMap::new(),
    };
    let path = |name: &str| cli.work(name).display().to_string();

    verbs.check("status", &[], "mesh.status/2");
    verbs.check("token create", &[], "mesh.token/1");
    let output = path("written.token");
    verbs.check("token create", &["--output", &output], "mesh.token/1");
    let listed = verbs.check("token list", &[], "mesh.tokens/1");
    let tokens = listed["tokens"].as_array().expect("tokens");
    let id = tokens.iter().find(|token| token["state"] == "usable");
    let id = id.expect("a usable one")["id"].as_str().expect("an id");
    verbs.check("token revoke", &[id], "mesh.done/1");

    verbs.check("node list", &[], "mesh.nodes/1");
    verbs.check("node show", &["worker-node-1"], "mesh.node/1");
    verbs.check(
        "node set",
        &["worker-node-1", "--label", "a=b"],
        "mesh.node/1",
    );
    verbs.check("node permit", &["worker-node-2"], "mesh.permit/1");
    verbs.check("node rename", &["worker-node-2", "garage"], "mesh.node/1");
    verbs.check("node remove", &["garage", "--yes"], "mesh.done/1");

    verbs.check("network create", &["lab"], "mesh.network/1");
    verbs.check("network list", &[], "mesh.networks/1");
    verbs.check("network delete", &["lab", "--force"], "mesh.done/1");

    let (request, credential) = (path("request"), path("credential"));
    let login = ["--name", "second", "--request", &request];
    verbs.check("login", &login, "mesh.done/1");
    let asks = ["dora", "--request", &request];
    verbs.check("operator add", &asks, "mesh.credential/1");
    let request = path("another");
    ran(cli
        .product("mesh")
        .args(["login", "--name", "third", "--request", &request]))
    .expect_code(0);
    let asks = ["emil", "--request", &request, "--output", &credential];
    verbs.check("operator add", &asks, "mesh.done/1");
    verbs.check("login", &[&credential, "--name", "third"], "mesh.done/1");
    verbs.check("context use", &["up"], "mesh.done/1");
    verbs.check("context list", &[], "mesh.contexts/1");
    verbs.check("context set", &["--network", "default"], "mesh.done/1");
    verbs.check("operator list", &[], "mesh.operators/1");
    verbs.check("operator revoke", &["emil"], "mesh.done/1");
    let output = path("support.tar.gz");
    let bundle = ["--output", &output];
    verbs.check("support-bundle", &bundle, "mesh.support-bundle/1");
    let again = ran(cli.product("mesh").arg("support-bundle").args(bundle));
    assert!(again.expect_code(1).stderr.contains("--force"));
    verbs.check("deploy", &["status", "worker-node-1"], "mesh.deploy/1");
    // One document for each event, on a line of its own.
    let events = cli.mesh(&["--json", "events"]).expect_code(0).stdout;
    assert!(events.lines().count() > 3, "{events}");
    for line in events.lines() {
        assert_schema("events", line, "mesh.event/1");
    }
    verbs.seen.insert("events".to_owned(), "mesh.event/1");

    let root = path("image");
    std::fs::create_dir(&root).expect("a folder");
    let image = ["relay", "--root", &root, "--bin-dir", "/usr/bin"];
    let program = cli.work("image/usr/bin/relay");
    std::fs::create_dir_all(program.parent().expect("a folder")).expect("a folder");
    std::fs::copy(integration::binary("relay"), &program).expect("copied");
    verbs.check("service install", &image, "mesh.done/1");
    verbs.check(
        "service uninstall",
        &["relay", "--root", &root],
        "mesh.done/1",
    );
    if Path::new("/run/systemd/system").is_dir() {
        verbs.check("service status", &[], "mesh.services/1");
    } else {
        // Nothing to tell where systemd does not run.
        let ran = cli.mesh(&["--json", "service", "status"]);
        assert_eq!(ran.code, Some(1), "{}", ran.all());
        verbs
            .seen
            .insert("service status".to_owned(), "mesh.services/1");
    }

    // With the coordinator stopped.
    up.stop().expect("stopped");
    let state = cli.work("state/coordinator").display().to_string();
    let here = ["--state-dir", &state];
    verbs.check("db migrate", &here, "mesh.db-migrate/1");
    verbs.check("db check", &here, "mesh.db-check/1");
    let copy = format!("sqlite:{}", path("copy.db"));
    verbs.check(
        "db copy",
        &[&here[..], &["--to", &copy]].concat(),
        "mesh.db-copy/1",
    );

    let mut seen: BTreeSet<String> = verbs.seen.into_keys().collect();
    seen.extend(NO_DOCUMENT.iter().map(|(verb, _)| (*verb).to_owned()));
    let all = super_verbs();
    assert_eq!(
        all, seen,
        "the verbs there are (left), and those checked (right)"
    );
}

/// The verbs of `mesh`; what `deploy` has below it is deploy-cli's.
fn super_verbs() -> BTreeSet<String> {
    let all = verbs("mesh").into_iter();
    all.map(|verb| match verb.split_once(' ') {
        Some(("deploy", _)) => "deploy".to_owned(),
        _ => verb,
    })
    .collect()
}

#[test]
fn deploy_cli_and_the_services_print_documents_with_a_schema() {
    let cli = Cli::new().expect("folders");
    let up = MeshUp::demo(&cli);
    for via in ["socks", "grpc"] {
        for args in [&["status", "all"][..], &["exec", "true", "all"]] {
            let ran = cli.deploy(&[&["--json", "--via", via], args].concat());
            let ran = ran.expect_code(0);
            assert_schema(args[0], &ran.stdout, "mesh.deploy/1");
        }
    }
    let agent = Agent::new(&cli, "shed").joined(&cli, "default");
    let status = agent.run(&["status", "--json"]).expect_code(0);
    assert_schema("worker-agent status", &status.stdout, "mesh.agent-status/1");
    for (program, schema) in [
        ("relay", "mesh.relay/1"),
        ("traffic-gateway", "mesh.traffic-gateway/1"),
        ("deploy-manager", "mesh.deploy-manager/1"),
        ("worker-agent", "mesh.agent-status/1"),
    ] {
        let asked = |dir: &Path, code: i32| {
            let state = format!("state_dir={}", dir.display());
            let status = ran(cli
                .product(program)
                .args(["status", "--json", "--set", &state]));
            assert_eq!(status.code, Some(code), "{program}: {}", status.all());
            assert_schema(program, &status.stdout, schema)["findings"].clone()
        };
        // That of the running mesh, and one that never ran.
        let running = match program {
            "worker-agent" => agent.state_dir().to_path_buf(),
            _ => cli.work(&format!("state/{program}")),
        };
        assert!(asked(&running, 0).is_array(), "{program}");
        let none = asked(&cli.work(&format!("no-{program}")), 1);
        assert_eq!(none[0]["code"], "not-joined", "{program}: {none}");
        let next = none[0]["next"].as_str().expect("a command");
        assert!(next.contains(&format!("{program} join")), "{next}");
    }
    for program in [
        "coordinator",
        "relay",
        "traffic-gateway",
        "deploy-manager",
        "worker-agent",
    ] {
        let keys = ran(cli.product(program).args(["config", "keys", "--json"]));
        assert_schema(program, &keys.expect_code(0).stdout, "mesh.config-keys/1");
    }
    up.child().assert_log_clean(&[]);
}
