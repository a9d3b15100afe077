//! Every alert that somebody can bring about in a minute fires and clears, by what the processes
//! really say. Those of absent nodes and relays need the minutes of a heartbeat's life: they are in
//! the journey of the dashboards.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::join_all;
use integration::derp::{DerpClient, relay_of};
use integration::raw::{Applicant, RawNode};
use integration::{Agent, Cli, Field, Layout, binary};
use mesh_api::pb;
use mesh_api::pb::deploy_service_client::DeployServiceClient;
use mesh_testkit::child::Child;
use mesh_testkit::{Curl, Host, Need, Postgres, eventually, rest};
use mesh_types::{JoinToken, WgPublicKey};

use crate::prometheus::Prometheus;

pub(crate) const NEEDED: [Need; 5] = [
    Need::Root,
    Need::Program("ip"),
    Need::Program("curl"),
    Need::Program("faketime"),
    Need::Program("prometheus"),
];
/// What fires in the journey of the dashboards.
pub(crate) const OF_ABSENCE: [&str; 4] = ["NoRelay", "NodeDown", "RelayDown", "ServiceDown"];
/// What fires in this one.
pub(crate) const BROUGHT_ABOUT: [&str; 14] = [
    "ControlErrors",
    "ControlSlow",
    "DeployErrors",
    "DialsFailing",
    "GatewayErrors",
    "GatewaySlow",
    "HeartbeatsRefused",
    "JoinsRefused",
    "RelayDrops",
    "RelayRefuses",
    "RouteFailing",
    "ServiceNotReady",
    "ServiceRestarts",
    "StoreDown",
];
const SOON: Duration = Duration::from_secs(30);
/// Connections with unknown keys at a time.
const STRANGERS: usize = 30;
/// Between two looks at what fires.
const LOOKS: Duration = Duration::from_millis(200);
/// Between two attempts to bring something about: a machine that refuses in no time must not drown
/// the few slow answers that an alert is about.
const PACE: Duration = Duration::from_secs(1);
/// How long one alert may take to fire: window, wait, and what brings it about.
const FIRES: Duration = Duration::from_secs(90);
/// Slower than the alerts of slowness allow.
const SLOW: Duration = Duration::from_secs(3);
/// The line that this trouble must write.
const TOLD: &str = "the store takes no changes until it heals";
/// Lives and answers, slowly at times.
const STEADY: &str = "worker-node-1";
/// A port of it that is not published.
const UNPUBLISHED: u16 = 9;
/// Dials at a time; each fails after ten seconds.
const DIALS: usize = 10;
/// Is gone.
const GONE: &str = "worker-node-2";
/// Is removed by an operator.
const REMOVED: &str = "worker-node-3";
/// Starts again and again.
const RESTLESS: &str = "worker-node-4";
/// Joined by hand; they only talk to the coordinator or the relay.
const RAW: [&str; 4] = ["first", "known", "sender", "deaf"];
/// Their clocks are ahead.
const AHEAD: [&str; 2] = ["ahead-1", "ahead-2"];

fn admin(worker: &str) -> SocketAddr {
    let port = match worker {
        STEADY => 9467,
        GONE => 9471,
        REMOVED => 9472,
        _ => 9473,
    };
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// What has fired so far. It is looked at all the while: an alert is seen although it clears while
/// what causes it is still under way.
struct Watch<'a> {
    prometheus: &'a Prometheus,
    seen: Mutex<BTreeSet<String>>,
    is_over: AtomicBool,
}

impl<'a> Watch<'a> {
    fn new(prometheus: &'a Prometheus) -> Self {
        Self {
            prometheus,
            seen: Mutex::default(),
            is_over: AtomicBool::new(false),
        }
    }

    /// Looks on while `work` is done.
    fn during(&self, work: impl FnOnce()) {
        thread::scope(|scope| {
            scope.spawn(|| self.look());
            // Whether it ends well or not: the scope waits for who looks.
            let ended = panic::catch_unwind(AssertUnwindSafe(work));
            self.is_over.store(true, Ordering::Relaxed);
            if let Err(panic) = ended {
                panic::resume_unwind(panic);
            }
        });
    }

    fn look(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let firing = self.prometheus.firing().expect("alerts");
            let names = crate::names(&firing).into_iter().map(str::to_owned);
            self.seen().extend(names);
            rest(LOOKS);
        }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, alert: &str) -> bool {
        self.seen().contains(alert)
    }

    /// Brings something about again and again until these alerts have fired.
    fn until(&self, wanted: &[&str], mut cause: impl FnMut() -> anyhow::Result<()>) {
        let started = Instant::now();
        loop {
            cause().unwrap_or_else(|error| panic!("{wanted:?}: {error:#}"));
            if wanted.iter().all(|name| self.has(name)) {
                println!("{wanted:?} fired after {:?}", started.elapsed());
                return;
            }
            assert!(
                started.elapsed() < FIRES,
                "{wanted:?} did not fire, only {:?}",
                self.seen()
            );
            rest(PACE);
        }
    }
}

struct Site {
    field: Field,
    postgres: Postgres,
}

impl Site {
    fn start() -> Self {
        let postgres = Postgres::start().expect("Postgres");
        let database = postgres.database();
        let database = database.rsplit('/').next().expect("a name");
        let url = postgres.socket_url(database);
        let master_key = "b1946ac92492d234".repeat(4);
        let env = [
            ("MESH_COORDINATOR__STORE__URL", url.as_str()),
            ("MESH_COORDINATOR__MASTER_KEY", master_key.as_str()),
        ];
        let mut field = Field::with_env(Layout::Single, None, &env);
        for name in [STEADY, GONE, REMOVED, RESTLESS] {
            let set = format!("admin.listen={}", admin(name));
            field.add_worker(name, "default", &[&set]);
            field.wait_for_console(&format!("/{name}/"), SOON);
        }
        Self { field, postgres }
    }

    fn core(&self) -> &Host {
        self.field.host("core")
    }

    /// A page that nobody answers any more.
    fn ask_for_the_gone(&self) -> anyhow::Result<()> {
        let reply = self.field.curl(&format!("/{GONE}/"))?;
        ensure!(reply.status >= 500, "{reply:?}");
        Ok(())
    }

    /// A port that a worker does not publish: what is sent there is not answered.
    fn dial_in_vain(&self) -> anyhow::Result<()> {
        let socks = self.field.socks("default").to_string();
        let dial = || {
            let curl = Curl::new().on(Some(self.core()));
            curl.args(["--socks5-hostname", &socks])
                .get(format!("http://{STEADY}:{UNPUBLISHED}/"))
        };
        thread::scope(|scope| {
            let dials: Vec<_> = (0..DIALS).map(|_| scope.spawn(dial)).collect();
            for dial in dials {
                let reply = dial.join().expect("no panic")?;
                // curl's word for what a proxy could not do.
                ensure!(reply.exit == Some(97), "{reply:?}");
            }
            Ok(())
        })
    }

    /// Pages of a worker that is held for a while.
    fn ask_slowly(&self) -> anyhow::Result<()> {
        let child = self.field.worker(STEADY).child();
        child.freeze()?;
        let asked = Instant::now();
        thread::scope(|scope| {
            let pages: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| self.field.curl(&format!("/{STEADY}/"))))
                .collect();
            rest(SLOW.saturating_sub(asked.elapsed()));
            child.thaw()?;
            for page in pages {
                page.join().expect("no panic")?.ok()?;
            }
            Ok(())
        })
    }

    /// Commands that need a certificate of a coordinator that does not answer.
    fn deploy_in_vain(&self) -> anyhow::Result<()> {
        let context = self.field.operator().context()?;
        self.wire(async {
            let deploy = context.deploy.as_ref().context("a deploy-manager")?;
            let channel = context.deploy_manager(deploy).await?;
            let calls = (0..4).map(|_| {
                let mut client = DeployServiceClient::new(channel.clone());
                let request = pb::ExecRequest {
                    targets: vec![STEADY.to_owned()],
                    command: "true".to_owned(),
                    ..pb::ExecRequest::default()
                };
                async move { client.exec(request).await.map(drop) }
            });
            let answers = join_all(calls).await;
            ensure!(answers.iter().all(Result::is_err), "{answers:?}");
            Ok(())
        })
    }

    /// Changes while the database answers nothing.
    fn change_in_vain(&self) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let calls: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| self.field.operator().mesh(&["token", "create"])))
                .collect();
            for call in calls {
                let ran = call.join().expect("no panic");
                ensure!(ran.code == Some(1), "{}", ran.all());
            }
            Ok(())
        })
    }

    /// Runs something of the wire on the mesh's host.
    fn wire<T: Send>(
        &self,
        future: impl Future<Output = anyhow::Result<T>> + Send,
    ) -> anyhow::Result<T> {
        self.core().enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build()?;
            runtime.block_on(future)
        })
    }

    /// Joins with a token that was used, until the watch has seen it.
    fn join_in_vain(&self, watch: &Watch<'_>) -> anyhow::Result<()> {
        let token: JoinToken = self.field.operator().token(&[]).parse()?;
        self.wire(async {
            Applicant::new(RAW[0])?.join(&token).await?;
            let started = Instant::now();
            while !watch.has("JoinsRefused") {
                ensure!(started.elapsed() < FIRES, "JoinsRefused did not fire");
                let again = Applicant::new("again")?;
                let refused = again.enrol(&token).await?;
                ensure!(refused.is_err(), "a used token let somebody in");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok(())
        })
    }

    /// Connects to the relay with a key that no node has, until the watch has seen it.
    fn relay_refuses(&self, watch: &Watch<'_>) -> anyhow::Result<()> {
        let (token, context) = self.stranger()?;
        self.wire(async {
            let node = Applicant::new(RAW[1])?.join(&token).await?;
            let unknown = RawNode {
                enrolled: node.enrolled,
                applicant: Applicant::new("unknown")?,
            };
            let relay = relay_of(&context).await?;
            let started = Instant::now();
            while !watch.has("RelayRefuses") {
                ensure!(started.elapsed() < FIRES, "RelayRefuses did not fire");
                // Each is kept waiting for a while, since its key may be on its way.
                let tries =
                    (0..STRANGERS).map(|_| DerpClient::connect(&unknown, &relay, Duration::ZERO));
                let let_in = join_all(tries).await;
                ensure!(
                    let_in.iter().all(Result::is_err),
                    "an unknown key was let in"
                );
            }
            Ok(())
        })
    }

    /// Sends packets to somebody who takes none, until the watch has seen it.
    fn relay_drops(&self, watch: &Watch<'_>) -> anyhow::Result<()> {
        let (token, context) = self.stranger()?;
        let (other, _) = self.stranger()?;
        self.wire(async {
            let node = Applicant::new(RAW[2])?.join(&token).await?;
            let deaf = Applicant::new(RAW[3])?.join(&other).await?;
            let relay = relay_of(&context).await?;
            let mut sender = DerpClient::connect(&node, &relay, SOON).await?;
            let _deaf = DerpClient::connect(&deaf, &relay, SOON).await?;
            let to = WgPublicKey::from_bytes(deaf.applicant.wg_public());
            let packet = [7; 1200];
            let started = Instant::now();
            while !watch.has("RelayDrops") {
                ensure!(started.elapsed() < FIRES, "RelayDrops did not fire");
                for _ in 0..500 {
                    sender.send(&to, &packet).await?;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        })
    }

    fn stranger(&self) -> anyhow::Result<(JoinToken, mesh_api::context::Context)> {
        let operator = self.field.operator();
        Ok((operator.token(&[]).parse()?, operator.context()?))
    }
}

/// An agent that joined with the right clock, and its run with one that is ahead.
fn clock_ahead(site: &Site, name: &str) -> (Agent, Child) {
    let cli = Cli::new().expect("folders").on(site.core());
    let token = site.field.operator().token(&[]);
    let agent = Agent::new(&cli, name);
    agent.join(&token).expect_code(0);
    let program = cli.spec("faketime").args(["-f", "+10m"]);
    let program = program.arg(binary("worker-agent"));
    let child = agent.verb_of(program, &["run"]).spawn().expect("starts");
    (agent, child)
}

/// Starts a worker again and again, each time once Prometheus has seen it.
fn restart(field: &mut Field, prometheus: &Prometheus) {
    let query = format!(
        "mesh_process_start_seconds{{instance=\"{}\"}}",
        admin(RESTLESS)
    );
    let started = || -> anyhow::Result<f64> {
        let samples = prometheus.query(&query)?;
        Ok(samples.first().context("not scraped yet")?.1)
    };
    for _ in 0..4 {
        let before = eventually("it is scraped", SOON, started);
        let mut child = field.worker_mut(RESTLESS).take_child();
        child.kill().expect("killed");
        field.worker_mut(RESTLESS).start();
        eventually("the new one is scraped", SOON, || {
            let after = started()?;
            ensure!(after > before, "still the old one");
            Ok(())
        });
    }
}

fn prometheus_of(field: &Field) -> Prometheus {
    let workers = [STEADY, REMOVED]
        .map(|name| admin(name).to_string())
        .join(", ");
    let others = [GONE, RESTLESS]
        .map(|name| admin(name).to_string())
        .join(", ");
    let prometheus = Prometheus::start(
        field.host("core"),
        &[
            ("coordinator:9464", "127.0.0.1:9464"),
            ("traffic-gateway:9465", "127.0.0.1:9465"),
            ("deploy-manager:9466", "127.0.0.1:9466"),
            ("worker-node-1:9467", &workers),
            ("worker-node-2:9467", &others),
            ("relay:9468", "127.0.0.1:9468"),
        ],
    )
    .expect("Prometheus");
    eventually("every target is up", SOON, || {
        let up = prometheus.up()?;
        ensure!(up.len() == 8 && up.iter().all(|(_, up)| *up), "{up:?}");
        Ok(())
    });
    prometheus
}

/// Brings all of it about, much of it at the same time.
fn trouble(site: &mut Site, watch: &Watch<'_>) {
    restart(&mut site.field, watch.prometheus);
    watch.until(&["ServiceRestarts"], || Ok(()));
    // One answer of before, so that there is something to compare with.
    site.field
        .curl(&format!("/{GONE}/"))
        .and_then(mesh_testkit::CurlReply::ok)
        .expect("a page");
    site.field
        .worker_mut(GONE)
        .take_child()
        .kill()
        .expect("killed");
    site.field
        .operator()
        .mesh_ok(&["node", "remove", "--yes", REMOVED]);
    let site = &*site;
    thread::scope(|scope| {
        scope.spawn(|| watch.until(&["ServiceNotReady"], || Ok(())));
        scope.spawn(|| watch.until(&["DialsFailing"], || site.dial_in_vain()));
        scope.spawn(|| watch.until(&["HeartbeatsRefused"], || Ok(())));
        scope.spawn(|| {
            watch.until(&["RouteFailing", "GatewayErrors"], || {
                site.ask_for_the_gone()
            });
            watch.until(&["GatewaySlow"], || site.ask_slowly());
        });
        scope.spawn(|| site.join_in_vain(watch).expect("JoinsRefused"));
        scope.spawn(|| site.relay_refuses(watch).expect("RelayRefuses"));
        scope.spawn(|| site.relay_drops(watch).expect("RelayDrops"));
        // Those on the wire only look at what was seen.
        watch.until(&["JoinsRefused", "RelayRefuses", "RelayDrops"], || Ok(()));
    });
    let coordinator = site.field.service("coordinator");
    coordinator.freeze().expect("frozen");
    watch.until(&["DeployErrors"], || site.deploy_in_vain());
    coordinator.thaw().expect("thawed");
    site.postgres.freeze().expect("frozen");
    let wanted = ["StoreDown", "ControlErrors", "ControlSlow"];
    watch.until(&wanted, || site.change_in_vain());
    site.postgres.thaw().expect("thawed");
}

pub(crate) fn every_alert_that_can_be_brought_about() {
    let started = Instant::now();
    let mut site = Site::start();
    let ahead = AHEAD.map(|name| clock_ahead(&site, name));
    let prometheus = prometheus_of(&site.field);
    let watch = Watch::new(&prometheus);
    watch.during(|| trouble(&mut site, &watch));
    println!("all fired after {:?}", started.elapsed());
    let seen = watch.seen();
    let wanted: BTreeSet<String> = BROUGHT_ABOUT
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    // What is frozen is absent too.
    let further: Vec<&String> = seen
        .difference(&wanted)
        .filter(|name| !OF_ABSENCE.contains(&name.as_str()))
        .collect();
    assert!(further.is_empty(), "nobody brought about {further:?}");

    eventually("changes go through again", SOON, || {
        site.field.operator().mesh(&["token", "create"]).success()
    });
    // They never were more than a name.
    for name in RAW {
        let operator = site.field.operator();
        operator.mesh_ok(&["node", "remove", "--yes", name]);
    }
    // The whole group ends with its value: faketime stays beside the agent.
    let _right = ahead.map(|(mut agent, child)| {
        drop(child);
        agent.start();
        agent
    });
    site.field.worker_mut(GONE).start();
    let set = format!("admin.listen={}", admin(REMOVED));
    drop(site.field.worker_mut(REMOVED).take_child());
    site.field.add_worker(REMOVED, "default", &[&set]);
    eventually("all clear", Duration::from_secs(120), || {
        let firing = prometheus.firing()?;
        if firing.is_empty() {
            return Ok(());
        }
        bail!("{:?}", crate::names(&firing))
    });
    println!("all clear after {:?}", started.elapsed());
    site.field.assert_logs_clean(&[TOLD]);
}
