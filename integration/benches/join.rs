//! How fast machines join: from the start of a join to the first page through the gateway, and
//! joins in a row. Writes `target/bench/join.json`; `--quick` takes fewer of each.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::time::{Duration, Instant};

use anyhow::Context as _;
use integration::raw::Applicant;
use integration::{Cli, MeshUp, MeshUpOptions};
use mesh_testkit::{Child, artefact, rest};
use mesh_types::JoinToken;
use serde_json::{Value, json};

/// What is aimed at for a join up to its first page.
const AIM: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(30);
/// How often the page is asked for: also the resolution of the figure.
const POLL: Duration = Duration::from_millis(5);

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (pages, row) = if quick { (5, 100) } else { (15, 500) };
    let cli = Cli::new()?;
    let options = MeshUpOptions {
        demo: false,
        ..MeshUpOptions::default()
    };
    let mut up = MeshUp::start(&cli, options);
    let first_page = first_pages(&cli, &up, pages)?;
    let in_a_row = joins_in_a_row(&cli, row)?;
    up.stop()?;
    let report = json!({
        "schema": "mesh.bench/1",
        "bench": "join",
        "quick": quick,
        "profile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "join_to_first_200": first_page,
        "joins_in_a_row": in_a_row,
    });
    let dir = artefact::target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("join.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    println!("written to {}", path.display());
    Ok(())
}

/// Starts `worker-agent join`, then `run`, as a person or an installer does, and asks the gateway
/// for the console until it answers 200.
fn first_pages(cli: &Cli, up: &MeshUp, count: usize) -> anyhow::Result<Value> {
    let mut totals = Vec::new();
    let mut joins = Vec::new();
    let mut running: Vec<Child> = Vec::new();
    for n in 0..count {
        let name = format!("bench-{n}");
        let token = cli.token(&[]);
        let file = cli.file(&format!("{name}.token"), &token)?;
        let state = cli.work(&format!("state-{name}"));
        let started = Instant::now();
        cli.product("worker-agent")
            .args(["join", "--token-file"])
            .arg(file)
            .args(["--hostname", &name, "--state-dir"])
            .arg(&state)
            .run(LIMIT)?
            .success()?;
        joins.push(started.elapsed());
        let agent = cli
            .product("worker-agent")
            .args(["run", "--state-dir"])
            .arg(&state)
            .args(["--set", "wireguard.listen=127.0.0.1:0"])
            .args([
                "--set",
                "admin.listen=127.0.0.1:0",
                "--set",
                "console.mode=page",
            ])
            .spawn()?;
        running.push(agent);
        loop {
            let reply = up.get(&format!("/{name}/"))?;
            if reply.status == 200 {
                break;
            }
            anyhow::ensure!(started.elapsed() < LIMIT, "{name}: status {}", reply.status);
            rest(POLL);
        }
        totals.push(started.elapsed());
    }
    let median = percentile(&mut totals, 50);
    Ok(json!({
        "count": count,
        "unit": "ms",
        "join_and_run_to_first_200": figures(&mut totals),
        "of_which_join": figures(&mut joins),
        "aim_ms": millis(AIM),
        "median_to_aim": millis(median) / millis(AIM),
    }))
}

/// One join after the other, each with keys and a connection of its own.
fn joins_in_a_row(cli: &Cli, count: usize) -> anyhow::Result<Value> {
    let token: JoinToken = cli.token(&["--reusable"]).parse()?;
    let applicants: Vec<Applicant> = (0..count)
        .map(|n| Applicant::new(&format!("row-{n}")))
        .collect::<anyhow::Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut each = Vec::with_capacity(count);
    let started = Instant::now();
    for applicant in &applicants {
        let one = Instant::now();
        runtime
            .block_on(applicant.enrol(&token))?
            .context("enrol")?;
        each.push(one.elapsed());
    }
    let elapsed = started.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let rate = count as f64 / elapsed.as_secs_f64();
    Ok(json!({
        "count": count,
        "seconds": elapsed.as_secs_f64(),
        "joins_per_second": rate,
        "unit": "ms",
        "each": figures(&mut each),
    }))
}

fn figures(values: &mut [Duration]) -> Value {
    json!({
        "min": millis(percentile(values, 0)),
        "median": millis(percentile(values, 50)),
        "p99": millis(percentile(values, 99)),
        "max": millis(percentile(values, 100)),
    })
}

fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort();
    let last = values.len().saturating_sub(1);
    values
        .get(last * percent / 100)
        .copied()
        .unwrap_or_default()
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}
