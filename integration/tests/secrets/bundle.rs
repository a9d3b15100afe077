//! `mesh support-bundle` over an installation that is full of secrets, with more of them planted in
//! a log: none is in what it writes.

use std::path::Path;

use anyhow::{Context as _, ensure};
use mesh_testkit::Spec;
use serde_json::Value;

use crate::stage::{BEARER, COOKIE, MISPLACED, QUERY, SOON, Stage, WORKERS};

/// Secrets that no file of this machine keeps: nothing but what stands around them tells them.
const STRANGERS: [&str; 6] = [
    "a misplaced secret",
    "the cookie",
    "the bearer's token",
    "the query",
    "the permit",
    "the Authorization header",
];

/// Writes a bundle while everything runs, looks through it, and gives what it printed and holds.
pub(crate) fn gather(stage: &mut Stage) -> anyhow::Result<()> {
    let log = planted(stage)?;
    let told = stage.markers.found_in(&log).len();
    let path = stage.cli.file("planted.log", &log)?;
    let output = stage.cli.work("bundle.tar.gz");
    let mut spec = stage.mesh(&["--json", "support-bundle", "--output"]);
    spec = spec.arg(&output).arg("--log").arg(path);
    spec = spec.arg("--state-dir").arg(stage.cli.work(""));
    for admin in stage.admin_endpoints() {
        spec = spec.args(["--admin", &admin.to_string()]);
    }
    let ran = stage.run("mesh support-bundle", spec)?.success()?;
    let printed: Value = serde_json::from_str(&ran.stdout)?;
    let manifest = &printed["bundle"]["manifest"];
    let redacted = manifest["redacted"].as_u64().context("a count")?;
    ensure!(redacted >= told as u64, "{redacted} of {told} lines");

    let dir = stage.cli.work("bundle");
    std::fs::create_dir(&dir)?;
    let unpack = Spec::new("tar").arg("-xzf").arg(&output);
    let unpack = unpack.arg("-C").arg(&dir).arg("--strip-components=1");
    unpack.run(SOON)?.success()?;
    check(&output, &dir, manifest, stage)
}

/// A log with every secret in every form: naked where the machine knows it, with what gives it away
/// where not.
fn planted(stage: &Stage) -> anyhow::Result<String> {
    let line = "2026-01-01T00:00:00.000000Z  INFO coordinator::serve: it happened";
    let mut log = String::new();
    for (name, form) in stage.markers.forms() {
        if !STRANGERS.contains(&name) {
            log.push_str(&format!("{line} detail=\"{form}\" peer=web\n"));
        }
    }
    for text in [
        format!("connecting to postgres://mesh:{MISPLACED}@127.0.0.1:1/mesh failed"),
        format!("redis://:{MISPLACED}@127.0.0.1:1/0"),
        format!("unknown key store.pasword, password={MISPLACED}"),
        format!("{{\"level\":\"INFO\",\"master_key\":\"{MISPLACED}\"}}"),
        format!("headers: Cookie: cockpit={COOKIE}"),
        format!("{{\"set-cookie\": \"cockpit={COOKIE}; Path=/\", \"status\": 200}}"),
        format!("Authorization: Bearer {BEARER}"),
        format!("GET /worker-node-1/?access_token={QUERY}&x=1"),
        format!(
            "worker-agent join --permit {}",
            stage.markers.of("the permit")
        ),
        format!(
            "Proxy-Authorization: Basic {}",
            stage.markers.of("the Authorization header")
        ),
    ] {
        log.push_str(&format!("{line} {text}\n"));
    }
    for role in ["relay", "worker"] {
        let token = std::fs::read_to_string(stage.token_file(role))?;
        log.push_str(&format!("{line} pasted {}\n", token.trim()));
    }
    let key = std::fs::read_to_string(stage.cli.work("ssh-key"))?;
    log.push_str(&format!("{line}\n{key}{line}\n"));
    for (name, form) in stage.markers.forms() {
        let is_there = log.contains(form) || STRANGERS.contains(&name);
        ensure!(is_there, "{name} as {form:?} is not planted");
    }
    Ok(log)
}

fn check(output: &Path, dir: &Path, manifest: &Value, stage: &mut Stage) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    let mode = std::fs::metadata(output)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");
    let worker = format!("status/state-{}.json", WORKERS[0]);
    for name in [
        "README.txt",
        "manifest.json",
        "context.json",
        "versions.txt",
        "coordinator/status.json",
        "coordinator/nodes.json",
        "coordinator/events.jsonl",
        "coordinator/tokens.json",
        "coordinator/audit.jsonl",
        "configuration/coordinator.toml",
        "configuration/deploy-manager.toml",
        "state/1.txt",
        "logs/1-planted.log",
        "system/kernel.txt",
        "system/environment.txt",
        &worker,
    ] {
        ensure!(dir.join(name).is_file(), "{name} is not in the bundle");
    }
    let status: Value = serde_json::from_str(&std::fs::read_to_string(dir.join(worker))?)?;
    ensure!(status["name"] == WORKERS[0], "{status}");
    for admin in stage.admin_endpoints() {
        let page = dir.join(format!("admin/{admin}/metrics.txt"));
        let page = std::fs::read_to_string(page)?;
        ensure!(page.contains("mesh_process_build_info"), "{page}");
    }
    let missing = manifest["missing"].as_array().context("a list")?;
    let is_missing = |what: &str| missing.iter().any(|one| one["what"] == what);
    ensure!(!is_missing("coordinator/tokens.json"), "{missing:?}");
    let audit = std::fs::read_to_string(dir.join("coordinator/audit.jsonl"))?;
    let first: Value = serde_json::from_str(audit.lines().next().context("an entry")?)?;
    ensure!(
        first["seq"] == 1 && first["action"] == "initialise",
        "{first}"
    );
    ensure!(audit.contains("token-create"), "{audit}");
    let mut listed = 2;
    for file in manifest["files"].as_array().context("a list")? {
        let name = file["name"].as_str().context("a name")?;
        let sum = Spec::new("sha256sum").arg(dir.join(name)).run(SOON)?;
        let sum = sum.success()?.stdout;
        let wanted = file["sha256"].as_str().context("a digest")?;
        ensure!(sum.starts_with(wanted), "{name}: {sum}");
        listed += 1;
    }
    let found = Spec::new("find").arg(dir).args(["-type", "f"]);
    let found = found.run(SOON)?.success()?.stdout;
    ensure!(found.lines().count() == listed, "{listed} listed: {found}");
    // The log is there, with its lines and without their secrets: the search at the end is for all.
    let log = std::fs::read_to_string(dir.join("logs/1-planted.log"))?;
    ensure!(log.contains("it happened detail=\"[redacted]\" peer=web"));
    for path in found.lines() {
        let text = std::fs::read_to_string(path)?;
        stage.printed.push((path.to_owned(), text));
    }
    Ok(())
}
