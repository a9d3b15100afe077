//! Traces, figures, dashboards and alerts, as somebody sees them who runs the mesh.

#![allow(clippy::print_stdout, reason = "figures are printed")]

mod alerts;
mod collector;
mod prometheus;
mod selectors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration::{Field, Layout};
use mesh_testkit::cockpit::COCKPIT_WS;
use mesh_testkit::{Cockpit, Need, Spec, TestUser, eventually, needs};
use serde_json::Value;

use alerts::{BROUGHT_ABOUT, OF_ABSENCE};
use collector::{Collector, Span};
use prometheus::{Prometheus, deployed, files};
use selectors::{selectors, without_place};

const NEEDED: [Need; 6] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("useradd"),
    Need::Program("setpriv"),
    Need::Program("prometheus"),
];
/// Long enough for a flush, short enough for a test.
const SOON: Duration = Duration::from_secs(20);
/// A trace that an outsider made up.
const FORGED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The spans of one trace, told by its root.
struct Tree(BTreeMap<String, Span>);

impl Tree {
    /// The newest trace with this root, once it has these many spans.
    fn of(collector: &Collector, root: &str, at_least: usize) -> anyhow::Result<Self> {
        let spans = collector.spans();
        let is_root = |span: &&Span| span.name == root && span.parent.is_empty();
        let newest = spans.iter().rev().find(is_root);
        let root = newest.with_context(|| format!("no root {root} among {}", spans.len()))?;
        let tree = spans.iter().filter(|span| span.trace == root.trace);
        let tree: BTreeMap<String, Span> =
            tree.map(|span| (span.id.clone(), span.clone())).collect();
        ensure!(tree.len() >= at_least, "only {tree:#?}");
        Ok(Self(tree))
    }

    fn span(&self, service: &str, name: &str) -> &Span {
        let mut found = self.0.values();
        let found = found.find(|span| span.service == service && span.name == name);
        found.unwrap_or_else(|| panic!("no {name} of {service} in {:#?}", self.0))
    }

    /// `service: name` from a span up to the root.
    fn ancestry(&self, span: &Span) -> Vec<String> {
        let mut line = Vec::new();
        let mut at = Some(span);
        while let Some(span) = at {
            line.push(format!("{}: {}", span.service, span.name));
            at = self.0.get(&span.parent);
        }
        line
    }

    fn services(&self) -> BTreeSet<&str> {
        self.0.values().map(|span| span.service.as_str()).collect()
    }
}

fn traced_field(user: &Arc<TestUser>) -> (Field, Collector) {
    let endpoint = format!("http://127.0.0.1:{}", collector::PORT);
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("MESH_DEPLOY_MANAGER__LOG__FORMAT", "json"),
    ];
    let mut field = Field::with_env(Layout::Single, Some(user), &env);
    let collector = Collector::start(field.host("core")).expect("a collector");
    field.add_worker("worker-node-1", "default", &["console.mode=page"]);
    field.wait_for_console("/worker-node-1/", SOON);
    (field, collector)
}

#[test]
fn one_tree_holds_a_command_from_the_command_line_to_the_worker() {
    if !needs(&NEEDED[..5]) || !needs(&[Need::Program(COCKPIT_WS)]) {
        return;
    }
    let user = Arc::new(TestUser::create().expect("user"));
    let (mut field, collector) = traced_field(&user);
    // Nothing of what is typed or printed may be in a trace.
    let secret = "hunter2-in-a-command";
    let command = format!("echo {secret}; exit 3");
    field
        .operator()
        .deploy(&["--via", "grpc", "exec", &command, "worker-node-1"])
        .expect_code(3);
    let tree = eventually("the whole tree", SOON, || {
        let tree = Tree::of(&collector, "deploy-cli exec", 6)?;
        let all = [
            "coordinator",
            "deploy-cli",
            "deploy-manager",
            "worker-agent",
        ];
        ensure!(tree.services().into_iter().eq(all), "{:?}", tree.services());
        Ok(tree)
    });
    let exec = "deploy-manager: mesh.v1.DeployService/Exec";
    let root = "deploy-cli: deploy-cli exec";
    let ssh = tree.span("worker-agent", "ssh exec");
    assert_eq!(
        tree.ancestry(ssh),
        [
            "worker-agent: ssh exec",
            "deploy-manager: ssh target",
            exec,
            root
        ]
    );
    assert_eq!(ssh.attributes["mesh.node"], "worker-node-1");
    assert_eq!(ssh.attributes["process.exit.code"], "3");
    let issue = tree.span("coordinator", "mesh.v1.SshService/IssueCertificate");
    assert_eq!(
        tree.ancestry(issue)[1..],
        [exec.to_owned(), root.to_owned()]
    );
    let list = tree.span("coordinator", "mesh.v1.AdminService/ListNodes");
    assert_eq!(tree.ancestry(list)[1..], [root.to_owned()]);
    assert_eq!(list.attributes["mesh.caller"], "operator");
    let roots = tree.0.values().filter(|span| span.parent.is_empty());
    assert_eq!(roots.count(), 1, "one tree");

    // The log of that run names the same trace.
    let logged = field.service("deploy-manager").log().lines();
    let run = logged.iter().find(|line| line.text.contains("\"ssh run\""));
    let run: Value = serde_json::from_str(&run.expect("it is logged").text).expect("JSON");
    assert_eq!(run["trace_id"], ssh.trace.as_str());
    assert!(tree.0.contains_key(run["span_id"].as_str().expect("ids")));

    // By SOCKS5 the command line speaks SSH itself: the same tree without the deploy-manager.
    field
        .operator()
        .deploy(&["exec", &command, "worker-node-1"])
        .expect_code(3);
    eventually("the tree by SOCKS5", SOON, || {
        let tree = Tree::of(&collector, "deploy-cli exec", 4)?;
        let all = ["coordinator", "deploy-cli", "worker-agent"];
        ensure!(tree.services().into_iter().eq(all), "{:?}", tree.services());
        let ssh = tree.span("worker-agent", "ssh exec");
        ensure!(tree.ancestry(ssh)[1..] == [root.to_owned()]);
        Ok(())
    });

    // A page goes from the gateway to the worker; what a stranger says of traces is not believed.
    let header = format!("traceparent: {FORGED}");
    let curl = field.client_curl().args(["--header", &header]);
    let page = curl.get(field.url("/worker-node-1/?secret=hunter2-in-a-query"));
    page.and_then(mesh_testkit::CurlReply::ok).expect("a page");
    let tree = eventually("the page's tree", SOON, || {
        let tree = Tree::of(&collector, "gateway request", 2)?;
        ensure!(tree.services().contains("worker-agent"));
        Ok(tree)
    });
    let page = tree.span("worker-agent", "page");
    assert_eq!(
        tree.ancestry(page)[1..],
        ["traffic-gateway: gateway request"]
    );
    assert!(
        !FORGED.contains(&page.trace),
        "a forged trace was taken over"
    );

    the_way_to_cockpit_is_in_the_trace(&mut field, &collector);
    let everything = format!("{:?}", collector.spans());
    assert!(!everything.contains("hunter2"), "a trace tells a secret");
    field.assert_logs_clean(&[]);
}

fn the_way_to_cockpit_is_in_the_trace(field: &mut Field, collector: &Collector) {
    let host = field.host("core").clone();
    let _cockpit = Cockpit::start(&host, "/worker-node-2/").expect("Cockpit");
    field.add_worker("worker-node-2", "default", &[]);
    field.wait_for_cockpit("/worker-node-2/", SOON);
    eventually("the connection to Cockpit", SOON, || {
        let spans = collector.spans();
        let connection = spans.iter().find(|span| span.name == "console connection");
        let connection = connection.context("no span of it")?;
        let request = spans.iter().find(|span| span.id == connection.parent);
        let request = request.context("the request is not there yet")?;
        ensure!(connection.attributes["mesh.node"] == "worker-node-2");
        ensure!(request.service == "traffic-gateway" && request.name == "gateway request");
        ensure!(connection.trace == request.trace, "two traces");
        Ok(())
    });
}

/// Every query of a dashboard, with the panel it is of.
fn queries(value: &Value, panel: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            let title = fields.get("title").and_then(Value::as_str).unwrap_or(panel);
            if let Some(query) = fields.get("expr").and_then(Value::as_str) {
                found.push((panel.to_owned(), query.to_owned()));
            }
            for value in fields.values() {
                queries(value, title, found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, panel, found)),
        _ => {}
    }
}

/// What every installation does some time.
fn traffic(field: &Field) -> anyhow::Result<()> {
    field.curl("/worker-node-1/")?.ok()?;
    field.curl("/no-such-worker/")?;
    let operator = field.operator();
    operator.deploy(&["status", "worker-node-1"]).success()?;
    operator
        .deploy(&["--via", "grpc", "status", "worker-node-1"])
        .success()?;
    Ok(())
}

/// Each selector of a rule, and each series of a rule's test, is one that some process has: no
/// metric, label or value was renamed behind the rules' back.
fn alerts_look_at_what_there_is(prometheus: &Prometheus) {
    let read = |path: &Path| std::fs::read_to_string(path).expect("a file");
    let rules = files(&deployed().join("rules")).expect("rules");
    let of_rules = rules.iter().flat_map(|path| selectors(&read(path)));
    let tests = selectors(&read(&deployed().join("tests/alerts.yml")));
    let of_tests = tests.iter().map(|series| without_place(series));
    let all: BTreeSet<String> = of_rules.chain(of_tests).collect();
    assert!(all.len() > 20, "the selectors were not found: {all:?}");
    let missing: Vec<&String> = all
        .iter()
        .filter(|selector| {
            let samples = prometheus.query(&format!("last_over_time({selector}[5m])"));
            samples.expect("an answer").is_empty()
        })
        .collect();
    assert!(missing.is_empty(), "nobody has {missing:#?}");
}

fn names(alerts: &[Value]) -> BTreeSet<&str> {
    alerts
        .iter()
        .filter_map(|alert| alert["labels"]["alertname"].as_str())
        .collect()
}

/// Opens the page of a worker that is offline: an error that Prometheus sees under its own label.
/// Gives the time of it.
fn ask_for_the_absent(field: &Field, prometheus: &Prometheus, name: &str) -> Instant {
    // What the gateway does not know yet is a failure like any other.
    eventually("the gateway knows", SOON, || {
        let curl = field.client_curl().args(["-H", "Accept: application/json"]);
        let page: Value = serde_json::from_str(&curl.get(field.url("/"))?.ok()?)?;
        let nodes = page["nodes"].as_array().context("nodes")?;
        let node = nodes.iter().find(|node| node["name"] == name);
        let state = &node.context("the worker")?["state"];
        ensure!(state == "offline", "{state}");
        Ok(())
    });
    let asked = Instant::now();
    let reply = field.curl(&format!("/{name}/")).expect("an answer");
    assert_eq!(reply.status, 503, "{reply:?}");
    let sort = "class=\"5xx\",worker_offline=\"true\"";
    let query = format!("mesh_gateway_requests_total{{route=\"{name}\",{sort}}}");
    eventually("it is counted", SOON, || {
        let samples = prometheus.query(&query)?;
        ensure!(samples.iter().any(|(_, count)| *count > 0.0), "{samples:?}");
        Ok(())
    });
    asked
}

/// Two installations at once, so that the minutes until a node counts as gone are those in which
/// everything else happens.
#[test]
fn dashboards_have_data_and_every_alert_fires_and_clears() {
    if !needs(&NEEDED) || !needs(&alerts::NEEDED) {
        return;
    }
    std::thread::scope(|scope| {
        let name = "every_other_alert_fires_and_clears".to_owned();
        let others = std::thread::Builder::new().name(name);
        let others = others.spawn_scoped(scope, alerts::every_alert_that_can_be_brought_about);
        dashboards_have_data_and_only_an_unexpected_absence_alerts();
        if let Err(panic) = others.expect("a thread").join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn dashboards_have_data_and_only_an_unexpected_absence_alerts() {
    let user = Arc::new(TestUser::create().expect("user"));
    let mut field = Field::start(Layout::Single, Some(&user));
    for (name, admin) in [("worker-node-1", 9467), ("worker-node-2", 9469)] {
        let set = format!("admin.listen=127.0.0.1:{admin}");
        field.add_worker(name, "default", &[&set]);
        field.wait_for_console(&format!("/{name}/"), SOON);
    }
    let set = ["node", "set", "worker-node-2", "--uptime", "on-demand"];
    field.operator().mesh_ok(&set);
    let shown = field.operator().node_shown(&["worker-node-2"]);
    assert_eq!(shown["uptime_class"], "on-demand", "{shown}");
    let prometheus = Prometheus::start(
        field.host("core"),
        &[
            ("coordinator:9464", "127.0.0.1:9464"),
            ("traffic-gateway:9465", "127.0.0.1:9465"),
            ("deploy-manager:9466", "127.0.0.1:9466"),
            ("worker-node-1:9467", "127.0.0.1:9467"),
            ("worker-node-2:9467", "127.0.0.1:9469"),
            ("relay:9468", "127.0.0.1:9468"),
        ],
    )
    .expect("Prometheus");
    eventually("every target is up", Duration::from_secs(40), || {
        let up = prometheus.up()?;
        ensure!(up.len() == 6 && up.iter().all(|(_, up)| *up), "{up:?}");
        Ok(())
    });

    for path in files(&deployed().join("grafana/dashboards")).expect("dashboards") {
        let text = std::fs::read_to_string(&path).expect("a dashboard");
        let dashboard = serde_json::from_str(&text).expect("JSON");
        let mut all = Vec::new();
        queries(&dashboard, "", &mut all);
        assert!(all.len() >= 5, "{} has few queries", path.display());
        for (panel, query) in all {
            let query = query.replace("$__rate_interval", "30s");
            let what = format!("{}, {panel}: {query}", path.display());
            eventually(&what, Duration::from_secs(40), || {
                let samples = prometheus.query(&query)?;
                if samples.iter().any(|(_, value)| value.is_finite()) {
                    return Ok(());
                }
                traffic(&field)?;
                anyhow::bail!("{samples:?}")
            });
        }
    }
    let firing = prometheus.firing().expect("alerts");
    assert!(firing.is_empty(), "nothing is wrong: {firing:?}");
    alerts_look_at_what_there_is(&prometheus);

    for name in ["worker-node-1", "worker-node-2"] {
        field.worker_mut(name).take_child().kill().expect("killed");
    }
    field.take_service("relay").kill().expect("killed");
    let offline = |count: usize| {
        let listed = field.operator().mesh(&["node", "list"]).success()?.stdout;
        let lines = listed.lines().filter(|line| line.contains("offline"));
        ensure!(lines.count() >= count, "{listed}");
        Ok(())
    };
    // 45 s of a heartbeat's life, then 60 s of doubt.
    eventually("both are offline", Duration::from_secs(130), || offline(2));
    let asked = ask_for_the_absent(&field, &prometheus, "worker-node-2");
    let firing = eventually("the alerts fire", Duration::from_secs(40), || {
        let firing = prometheus.firing()?;
        ensure!(names(&firing).into_iter().eq(OF_ABSENCE), "{firing:#?}");
        Ok(firing)
    });
    let of = |name: &'static str| {
        firing
            .iter()
            .filter(move |a| a["labels"]["alertname"] == name)
    };
    let down: Vec<&Value> = of("NodeDown").collect();
    assert_eq!(down.len(), 1, "{down:?}");
    assert_eq!(down[0]["labels"]["uptime"], "always-on");
    assert_eq!(down[0]["value"], "1e+00", "the on-demand one is not missed");
    let service: Vec<&Value> = of("ServiceDown").collect();
    assert_eq!(service[0]["labels"]["job"], "mesh-relay");

    field.start_relay().expect("the relay starts again");
    for name in ["worker-node-1", "worker-node-2"] {
        field.worker_mut(name).start();
    }
    eventually("the alerts clear", Duration::from_secs(60), || {
        let firing = prometheus.firing()?;
        ensure!(firing.is_empty(), "{firing:?}");
        Ok(())
    });
    let of_gateway = "ALERTS{alertname=~\"GatewayErrors|RouteFailing\"}";
    let since = asked.elapsed().as_secs().max(1);
    let query = format!("count_over_time({of_gateway}[{since}s])");
    let alerts = prometheus.query(&query).expect("an answer");
    assert!(alerts.is_empty(), "a sleeping worker alerts: {alerts:?}");
    field.assert_logs_clean(&[]);
}

/// The alerts of all rules.
fn alerts() -> Vec<String> {
    let mut names = Vec::new();
    for path in files(&deployed().join("rules")).expect("rules") {
        let text = std::fs::read_to_string(path).expect("a rule file");
        let alert = |line: &str| Some(line.trim().strip_prefix("- alert: ")?.to_owned());
        names.extend(text.lines().filter_map(alert));
    }
    assert!(names.len() > 10, "the rules were not found: {names:?}");
    names
}

#[test]
fn every_alert_names_its_entry_in_the_runbook_and_has_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| {
        std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let runbook = read("docs/runbook.md");
    let tests = read("deploy/observability/tests/alerts.yml");
    let rules: String = files(&deployed().join("rules"))
        .expect("rules")
        .iter()
        .map(|path| std::fs::read_to_string(path).expect("a rule file"))
        .collect();
    let entries: Vec<&str> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .collect();
    let alerts = alerts();
    let fired: BTreeSet<&str> = OF_ABSENCE.into_iter().chain(BROUGHT_ABOUT).collect();
    assert_eq!(
        fired,
        alerts.iter().map(String::as_str).collect(),
        "each alert fires in a journey"
    );
    assert_eq!(
        entries.iter().copied().collect::<BTreeSet<_>>(),
        alerts.iter().map(String::as_str).collect(),
        "one entry for each alert"
    );
    for alert in &alerts {
        let link = format!("runbook: docs/runbook.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&link), "{alert} does not link to its entry");
        assert!(
            tests.contains(&format!("- name: {alert}\n")),
            "{alert} has no test in deploy/observability/tests/alerts.yml"
        );
    }
}

#[test]
fn every_alert_fires_and_clears_in_time() {
    if !needs(&[Need::Program("promtool")]) {
        return;
    }
    let tests = deployed().join("tests");
    let limit = Duration::from_secs(60);
    let run = |spec: Spec| spec.dir(&tests).run(limit).expect("promtool runs");
    let rules = files(&deployed().join("rules")).expect("rules");
    run(Spec::new("promtool").args(["check", "rules"]).args(rules)).expect_code(0);
    run(Spec::new("promtool").args(["test", "rules", "alerts.yml"])).expect_code(0);
    let config = deployed().join("prometheus.yml");
    run(Spec::new("promtool").args(["check", "config"]).arg(config)).expect_code(0);
}
