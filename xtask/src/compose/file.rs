//! What `docker-compose.yml` says, as `docker compose` itself reads it: nothing reachable from other
//! machines, no password in it, everything limited and shut in, no registry asked for what is ours,
//! nobody started too early or killed too soon. Faults are planted into it, and each must be found.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Engine, MORE_IMAGES, compose};
use crate::process::output;

/// They do their work and end.
const ONE_SHOTS: [&str; 2] = ["secrets", "bootstrap"];
/// Machines: they have a file system of their own, and root.
const MACHINES: [&str; 3] = ["worker-node-1", "worker-node-2", "worker"];
/// Their images have nothing to ask them with.
const UNASKED: [&str; 1] = ["otel-collector"];
/// Those of [`MORE_IMAGES`]: nobody starts them.
const ONLY_BUILT: [&str; 2] = ["worker-agent", "mesh"];
/// Their check is in the image; whoever owns this name in a public registry need not be us.
const OURS: &str = "wonder-mesh/";
/// As the systemd units have it: longer than a drain, which takes 25 s unless configured.
const STOP_GRACE: &str = "30s";

type Plant = fn(&mut Value);

/// What is planted, and a part of what finds it.
const PLANTED: &[(&str, &str, Plant)] = &[
    (
        "a port on every address",
        "relay: the port 3478 is open",
        |it| {
            it["relay"]["ports"] = json!([{ "published": "3478", "target": 3478 }]);
        },
    ),
    (
        "a password",
        "postgres: POSTGRES_PASSWORD is in the file",
        |it| {
            it["postgres"]["environment"]["POSTGRES_PASSWORD"] = json!("mesh");
        },
    ),
    (
        "a bare major",
        "redis: the image redis:7 has no fixed version",
        |it| {
            it["redis"]["image"] = json!("redis:7");
        },
    ),
    (
        "a service that anybody's registry may deliver",
        "coordinator: a registry is asked for wonder-mesh/coordinator",
        |it| {
            it["coordinator"]["pull_policy"] = Value::Null;
        },
    ),
    (
        "a worker that a registry delivers where it is missing",
        "worker: a registry is asked for wonder-mesh/worker-node",
        |it| {
            it["worker"]["pull_policy"] = json!("missing");
        },
    ),
    (
        "a program that anybody's registry may deliver",
        "mesh: a registry is asked for wonder-mesh/mesh",
        |it| {
            it["mesh"]["pull_policy"] = Value::Null;
        },
    ),
    ("no limit of memory", "grafana: no limit of memory", |it| {
        it["grafana"]["deploy"] = json!({});
    }),
    ("a writable root", "relay: its root can be written", |it| {
        it["relay"]["read_only"] = json!(false);
    }),
    ("capabilities", "coordinator: it keeps capabilities", |it| {
        it["coordinator"]["cap_drop"] = json!([]);
    }),
    ("new privileges", "traces: it can gain privileges", |it| {
        it["traces"]["security_opt"] = json!([]);
    }),
    (
        "nobody asks",
        "prometheus: nothing asks whether it works",
        |it| {
            it["prometheus"]["healthcheck"] = Value::Null;
        },
    ),
    (
        "a start too early",
        "relay: it does not wait until coordinator works",
        |it| {
            it["relay"]["depends_on"]["coordinator"]["condition"] = json!("service_started");
        },
    ),
    (
        "a wait for an end that does not come",
        "bootstrap: it waits for the end of redis",
        |it| {
            it["bootstrap"]["depends_on"]["redis"]["condition"] =
                json!("service_completed_successfully");
        },
    ),
    (
        "no second try",
        "traffic-gateway: nobody starts it again",
        |it| {
            it["traffic-gateway"]["restart"] = json!("no");
        },
    ),
    ("endless logs", "worker: its log has no limit", |it| {
        it["worker"]["logging"] = Value::Null;
    }),
    (
        "the default of 10 s to end",
        "traffic-gateway: it may be killed while it drains",
        |it| {
            it["traffic-gateway"]["stop_grace_period"] = Value::Null;
        },
    ),
    (
        "too little time for a worker",
        "worker-node-1: it may be killed while it drains",
        |it| {
            it["worker-node-1"]["stop_grace_period"] = json!("20s");
        },
    ),
];

/// Looks at the file in `dir`, all profiles included, and at the images that it does not run.
pub(super) fn check(engine: &Engine, dir: &Path) -> Result<()> {
    let mut command = compose(engine, dir);
    command.args(["--file", MORE_IMAGES, "--profile", "observability"]);
    command.args(["config", "--format", "json"]);
    let file: Value = serde_json::from_str(&output(&mut command)?)
        .context("read what docker compose config says")?;
    let services = &file["services"];
    let count = services.as_object().map_or(0, serde_json::Map::len);
    ensure!(count >= 16, "only {count} services");
    let found = faults(services);
    ensure!(found.is_empty(), "{}", found.join("; "));
    for (what, finds, plant) in PLANTED {
        let mut wrong = services.clone();
        plant(&mut wrong);
        let found = faults(&wrong);
        ensure!(
            found.iter().any(|fault| fault.contains(finds)),
            "planted, but not found: {what}; only {found:?}"
        );
    }
    println!(
        "compose: {count} services, 0 faults; {0} of {0} planted faults found",
        PLANTED.len()
    );
    Ok(())
}

fn faults(services: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, service) in services.as_object().into_iter().flatten() {
        let mut say = |fault: String| faults.push(format!("{name}: {fault}"));
        image(service, &mut say);
        if ONLY_BUILT.contains(&name.as_str()) {
            continue;
        }
        shut_in(name, service, &mut say);
        limits(service, &mut say);
        environment(service, &mut say);
        for port in service["ports"].as_array().into_iter().flatten() {
            if port["host_ip"] != "127.0.0.1" {
                let port = port["published"].as_str().unwrap_or("?");
                say(format!("the port {port} is open to other machines"));
            }
        }
        let asks = service["healthcheck"]["test"].is_array() || is_ours(service);
        if !asks && !ONE_SHOTS.contains(&name.as_str()) && !UNASKED.contains(&name.as_str()) {
            say("nothing asks whether it works".to_owned());
        }
        let again = service["restart"] == "unless-stopped";
        if again == ONE_SHOTS.contains(&name.as_str()) {
            say(if again {
                "it never ends"
            } else {
                "nobody starts it again"
            }
            .to_owned());
        }
        if service["stop_grace_period"] != STOP_GRACE {
            say("it may be killed while it drains".to_owned());
        }
        waits(service, &mut say);
    }
    faults
}

fn is_ours(service: &Value) -> bool {
    let image = service["image"].as_str().unwrap_or_default();
    image.starts_with(OURS)
}

fn image(service: &Value, say: &mut impl FnMut(String)) {
    let image = service["image"].as_str().unwrap_or_default();
    let tag = image.rsplit_once('/').map_or(image, |(_, name)| name);
    let tag = tag.split_once(':').map(|(_, tag)| tag);
    if tag.is_none_or(|tag| !tag.contains('.')) {
        say(format!("the image {image} has no fixed version"));
    }
    if is_ours(service) && service["pull_policy"] != "never" {
        say(format!("a registry is asked for {image}"));
    }
}

fn shut_in(name: &str, service: &Value, say: &mut impl FnMut(String)) {
    if service["read_only"] != true && !MACHINES.contains(&name) {
        say("its root can be written".to_owned());
    }
    if service["cap_drop"] != json!(["ALL"]) {
        say("it keeps capabilities".to_owned());
    }
    if service["security_opt"] != json!(["no-new-privileges:true"]) {
        say("it can gain privileges".to_owned());
    }
    if service["privileged"] == true || service["network_mode"] == "host" {
        say("it is not shut in at all".to_owned());
    }
}

fn limits(service: &Value, say: &mut impl FnMut(String)) {
    let limits = &service["deploy"]["resources"]["limits"];
    if limits["memory"].is_null() {
        say("no limit of memory".to_owned());
    }
    if limits["pids"].is_null() {
        say("no limit of processes".to_owned());
    }
    if service["logging"]["options"]["max-size"].is_null() {
        say("its log has no limit".to_owned());
    }
}

/// Secrets are in files; the environment may only name those.
fn environment(service: &Value, say: &mut impl FnMut(String)) {
    for (key, value) in service["environment"].as_object().into_iter().flatten() {
        let is_secret = ["PASSWORD", "SECRET", "TOKEN", "KEY", "AUTH_FILE"]
            .iter()
            .any(|word| key.contains(word));
        let is_path = value.as_str().is_some_and(|value| value.starts_with('/'));
        if is_secret && !is_path {
            say(format!("{key} is in the file"));
        }
    }
}

fn waits(service: &Value, say: &mut impl FnMut(String)) {
    for (other, wait) in service["depends_on"].as_object().into_iter().flatten() {
        let ends = ONE_SHOTS.contains(&other.as_str());
        let wanted = match other.as_str() {
            _ if ends => "service_completed_successfully",
            _ if UNASKED.contains(&other.as_str()) => "service_started",
            _ => "service_healthy",
        };
        match wait["condition"].as_str() {
            Some(condition) if condition == wanted => {}
            Some("service_completed_successfully") => {
                say(format!("it waits for the end of {other}"));
            }
            _ => say(format!("it does not wait until {other} works")),
        }
    }
}
