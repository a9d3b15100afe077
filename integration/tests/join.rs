//! Joining: who gets in, who does not, and what each is told.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use integration::raw::{Applicant, RawNode, server_csr, word};
use integration::{Cli, MeshUp, MeshUpOptions};
use mesh_testkit::eventually;
use mesh_types::JoinToken;
use tokio::runtime::Runtime;

fn coordinator(cli: &Cli) -> MeshUp {
    MeshUp::start(
        cli,
        MeshUpOptions {
            demo: false,
            ..MeshUpOptions::default()
        },
    )
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn token(cli: &Cli, args: &[&str]) -> JoinToken {
    cli.token(args).parse().expect("a join token")
}

/// Runs `worker-agent join` with that text and returns what it complained about.
fn refused_join(cli: &Cli, name: &str, token: &str) -> String {
    let file = cli
        .file(&format!("{name}.token"), token)
        .expect("token file");
    let ran = cli
        .product("worker-agent")
        .args(["join", "--token-file"])
        .arg(file)
        .arg("--set")
        .arg(format!("state_dir={}", cli.work(name).display()))
        .run(Duration::from_secs(60))
        .expect("runs");
    assert_eq!(ran.code, Some(1), "{}", ran.all());
    assert!(!ran.all().contains("panicked"), "{}", ran.all());
    ran.stderr
}

#[test]
fn of_fifty_joins_at_once_with_a_one_use_token_exactly_one_succeeds() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let token = token(&cli, &[]);
    let outcomes: Vec<String> = runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..50 {
            let applicant = Applicant::new(&format!("runner-{n}")).expect("keys");
            let token = token.clone();
            tasks.spawn(async move { applicant.enrol(&token).await.expect("reached") });
        }
        let answers = tasks.join_all().await;
        answers
            .iter()
            .map(|answer| {
                answer
                    .as_ref()
                    .err()
                    .map_or("joined", |status| word(status))
                    .to_owned()
            })
            .collect()
    });
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for outcome in &outcomes {
        *counts.entry(outcome.as_str()).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([("joined", 1), ("token-used", 49)]));
    let listed = cli.mesh_ok(&["node", "list"]).stdout;
    assert_eq!(listed.matches("runner-").count(), 1, "{listed}");
    up.child().assert_log_clean(&[]);
}

#[test]
fn every_unusable_token_has_its_own_message() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let other_cli = Cli::new().expect("folders");
    let other = coordinator(&other_cli);

    let short = cli.token(&["--expires", "1m"]);
    let short_until = std::time::Instant::now() + Duration::from_secs(61);

    let made = cli.mesh_json(&["token", "create"]);
    let revoked = made["token"]["token"].as_str().expect("a token").to_owned();
    let id = revoked
        .parse::<JoinToken>()
        .expect("a token")
        .id
        .to_string();
    cli.mesh_ok(&["token", "revoke", &id]);

    let good = token(&cli, &[]);
    let mut wrong_secret = good.clone();
    wrong_secret.secret[0] ^= 1;
    let mut elsewhere = token(&other_cli, &[]);
    elsewhere.coordinators.clone_from(&good.coordinators);
    let mut nowhere = good.clone();
    nowhere.coordinators = vec!["127.0.0.1:1".to_owned()];
    let mut damaged = good.reveal();
    let swapped = if &damaged[40..41] == "A" { "B" } else { "A" };
    damaged.replace_range(40..41, swapped);

    let mut messages: Vec<(&str, &str, String)> = vec![
        (
            "revoked",
            "was revoked",
            refused_join(&cli, "revoked", &revoked),
        ),
        (
            "altered",
            "was altered",
            refused_join(&cli, "altered", &wrong_secret.reveal()),
        ),
        (
            "damaged",
            "damaged",
            refused_join(&cli, "damaged", &damaged),
        ),
        (
            "elsewhere",
            "certificate authority",
            refused_join(&cli, "elsewhere", &elsewhere.reveal()),
        ),
        (
            "nowhere",
            "127.0.0.1:1",
            refused_join(&cli, "nowhere", &nowhere.reveal()),
        ),
        (
            "no token",
            "mesh token create",
            refused_join(&cli, "none", "tskey-123"),
        ),
    ];
    // The good one still works after all that, once.
    runtime()
        .block_on(Applicant::new("late").expect("keys").join(&good))
        .expect("joins");
    messages.push((
        "used",
        "has been used",
        refused_join(&cli, "used", &good.reveal()),
    ));
    // A token lives a minute at least, so this one is waited for while the others are tried.
    eventually("the short token's minute", Duration::from_secs(70), || {
        ensure!(std::time::Instant::now() >= short_until, "it still lives");
        Ok(())
    });
    messages.push((
        "expired",
        "has expired",
        refused_join(&cli, "expired", &short),
    ));

    for (what, part, message) in &messages {
        assert!(
            message.contains(part),
            "{what}: {part:?} is not in: {message}"
        );
    }
    for (at, (what, _, message)) in messages.iter().enumerate() {
        let same = messages[at + 1..]
            .iter()
            .find(|(_, _, other)| other == message);
        assert!(same.is_none(), "{what} and {same:?} read the same");
    }
    for secret in [&good, &wrong_secret] {
        let text = secret.reveal();
        for log in [up.child().log(), other.child().log()] {
            assert!(
                log.lines()
                    .iter()
                    .all(|line| !line.text.contains(&text[20..]))
            );
        }
    }
    up.child().assert_log_clean(&[]);
    other.child().assert_log_clean(&[]);
}

#[test]
fn a_retry_after_a_lost_answer_gets_the_same_identity() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let token = token(&cli, &[]);
    let applicant = Applicant::new("retry").expect("keys");
    let (first, second) = runtime().block_on(async {
        let first = applicant
            .enrol(&token)
            .await
            .expect("reached")
            .expect("joins");
        let second = applicant
            .enrol(&token)
            .await
            .expect("reached")
            .expect("joins again");
        (first, second)
    });
    assert_eq!(first.node_id, second.node_id);
    assert_eq!((first.name, first.addrs), (second.name, second.addrs));
    let listed = cli.mesh_ok(&["node", "list"]).stdout;
    assert_eq!(listed.matches("retry").count(), 1, "{listed}");
    up.child().assert_log_clean(&[]);
}

#[test]
fn the_same_hostname_twice_gets_a_number() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let token = token(&cli, &["--reusable"]);
    let names: Vec<String> = runtime().block_on(async {
        let mut names = Vec::new();
        for _ in 0..3 {
            let node = Applicant::new("twin")
                .expect("keys")
                .join(&token)
                .await
                .expect("joins");
            names.push(node.enrolled.name);
        }
        names
    });
    assert_eq!(names, ["twin", "twin-1", "twin-2"]);
    up.child().assert_log_clean(&[]);
}

/// What an attacker with a fresh token tries against a node that is already there.
#[test]
fn nobody_takes_over_a_node_or_a_key() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let (first, fresh) = (token(&cli, &["--reusable"]), token(&cli, &["--reusable"]));
    let words = runtime().block_on(async {
        let victim: RawNode = Applicant::new("victim")
            .expect("keys")
            .join(&first)
            .await
            .expect("joins");
        let csr = victim.applicant.identity.csr_der().expect("request");

        let mut same_identity = Applicant::new("victim").expect("keys");
        same_identity.csr = Some(csr);
        let mut same_key = Applicant::new("thief").expect("keys");
        same_key.claimed_wg = Some(victim.applicant.wg_public());
        let mut server = Applicant::new("server").expect("keys");
        server.csr = Some(server_csr(&server.identity).expect("request"));
        let mut permit = Applicant::new("victim").expect("keys");
        permit.permit = vec![7; 32];

        let mut words = Vec::new();
        for (applicant, token) in [
            (&same_identity, &fresh),
            // The token of the first time is no excuse either.
            (&same_identity, &first),
            (&same_key, &fresh),
            (&server, &fresh),
            (&permit, &fresh),
        ] {
            let refused = applicant
                .enrol(token)
                .await
                .expect("reached")
                .expect_err("refused");
            assert!(
                refused.message().len() > 20,
                "a sentence for people: {refused:?}"
            );
            words.push(word(&refused).to_owned());
        }
        words
    });
    assert_eq!(
        words,
        [
            "takeover",
            "takeover",
            "bad-proof",
            "csr-server-rights",
            "permit-invalid"
        ]
    );
    let listed = cli.mesh_ok(&["node", "list"]).stdout;
    for name in ["thief", "server", "victim-1"] {
        assert!(!listed.contains(name), "{name} got in:\n{listed}");
    }
    up.child().assert_log_clean(&[]);
}

#[test]
fn an_operators_permit_lets_a_machine_that_lost_its_keys_back_in() {
    let cli = Cli::new().expect("folders");
    let up = coordinator(&cli);
    let (first, second) = (token(&cli, &[]), token(&cli, &[]));
    let made = runtime().block_on(Applicant::new("phoenix").expect("keys").join(&first));
    let before = made.expect("joins").enrolled;
    let permit = cli.mesh_ok(&["node", "permit", "phoenix"]).stdout;
    let permit = permit.trim().to_owned();
    let file = cli
        .file("permit.token", &second.reveal())
        .expect("token file");
    let ran = cli
        .product("worker-agent")
        .args(["join", "--token-file"])
        .arg(file)
        .args(["--permit", &permit, "--set"])
        .arg(format!("state_dir={}", cli.work("phoenix").display()))
        .run(Duration::from_secs(60))
        .expect("runs")
        .expect_code(0);
    assert!(ran.stdout.contains("phoenix"), "{}", ran.all());
    let shown = cli.node_shown(&["phoenix"]);
    let id = mesh_types::NodeId::try_from(before.node_id.as_slice()).expect("an id");
    assert_eq!(shown["id"], id.to_string(), "{shown}");
    up.child().assert_log_clean(&[]);
}
