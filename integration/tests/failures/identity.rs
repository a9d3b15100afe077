//! What a node shows of itself: a certificate that is nearly over, and one that two machines show.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use integration::findings::finding;
use integration::{Agent, Cli, binary, metrics};
use mesh_testkit::{Curl, CurlReply, Need, eventually, free_tcp_port, needs};

use super::{SOON, wait_for_event, wait_for_state, without_workers};

const DAY: f64 = 86_400.0;

/// A certificate lasts 30 days from when it is made, by the coordinator's clock: whoever's clock is
/// 26 days ahead has 4 left of a fresh one.
#[test]
fn a_certificate_that_is_nearly_over_is_renewed_and_told() {
    if !needs(&[Need::Program("faketime"), Need::Program("curl")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_tcp_port()));
    let mut agent = Agent::new(&cli, "attic")
        .set(format!("admin.listen={admin}"))
        .joined(&cli, "default");
    agent.stop();
    let renewals = || -> anyhow::Result<u64> {
        let figures = up.metrics()?;
        let name = "mesh_coordinator_renewals_total";
        ensure!(figures.contains(name), "{figures}");
        Ok(metrics::count(&figures, &[name]))
    };
    assert_eq!(renewals().expect("metrics"), 0);

    let faked = cli.spec("faketime").args(["-f", "+26d"]);
    let running = agent.verb_of(faked.arg(binary("worker-agent")), &["run"]);
    let running = running.spawn().expect("starts");
    eventually("it is renewed", SOON, || {
        let renewals = renewals()?;
        ensure!(renewals > 0, "{renewals} renewals");
        Ok(())
    });
    let told = eventually("and still told, for its clock", SOON, || {
        let told = agent.run(&["status", "--json"]);
        finding(&told, "clock-skew")?;
        finding(&told, "certificate-low")
    });
    assert_eq!(told["severity"], "warning", "{told}");
    assert!(told["what"].to_string().contains("ends in"), "{told}");
    let figures = Curl::new().get(format!("http://{admin}/metrics"));
    let figures = figures.and_then(CurlReply::ok).expect("metrics");
    let ends = metrics::sum(&figures, &["mesh_agent_certificate_end_seconds"]);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    let left = (ends - now.as_secs_f64()) / DAY;
    assert!((29.0..31.0).contains(&left), "{left} days: {figures}");
    drop(running);

    agent.start();
    eventually("all is well with the right clock", SOON, || {
        let told = agent.run(&["status", "--json"]).success()?;
        for code in ["clock-skew", "certificate-low"] {
            ensure!(finding(&told, code).is_err(), "{}", told.all());
        }
        Ok(())
    });
    agent.child().assert_log_clean(&[]);
    up.child().assert_log_clean(&[]);
}

#[test]
fn an_identity_on_two_machines_is_told_by_both_and_to_the_operator() {
    let cli = Cli::new().expect("folders");
    let up = without_workers(&cli);
    let mut agent = Agent::new(&cli, "attic").joined(&cli, "default");
    wait_for_state(&cli, &["attic"], "online", SOON);
    agent.stop();
    let mut twin = Agent::new(&cli, "twin");
    let copy = cli.spec("cp").arg("-a").arg(agent.state_dir());
    let copied = copy.arg(twin.state_dir()).run(SOON);
    copied.expect("runs").expect_code(0);
    agent.start();
    twin.start();
    // Each ends the other's stream, and waits a little longer each time.
    for one in [&agent, &twin] {
        eventually("it says so", 2 * SOON, || {
            finding(&one.run(&["status", "--json"]), "identity-twice")
        });
    }
    let shown = eventually("the operator is told", 2 * SOON, || {
        finding(&cli.mesh(&["--json", "status"]), "identity-twice")?;
        finding(
            &cli.mesh(&["--json", "node", "show", "attic"]),
            "identity-twice",
        )
    });
    assert_eq!(shown["severity"], "error", "{shown}");
    wait_for_event(&cli, "identity-twice", "attic  ");

    twin.stop();
    eventually("the one that is left is content", SOON, || {
        let told = agent.run(&["status", "--json"]).success()?;
        let state: serde_json::Value = serde_json::from_str(&told.stdout).context("JSON")?;
        ensure!(state["control"]["state"] == "connected", "{state}");
        Ok(())
    });
    wait_for_state(&cli, &["attic"], "online", SOON);
    let twice = "two machines seem to use one identity";
    up.child().assert_log_clean(&[twice]);
}
