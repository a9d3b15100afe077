//! Database, Redis, or both go away under a running mesh: what exists goes on, changes are refused
//! while there is no database, and everything heals without a hand.
//!
//! Two installations at once, each with a laboratory of its own, so that the minutes of the one are
//! those of the other.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::time::{Duration, Instant};

use integration::findings::finding;
use integration::{Field, Layout, Server};
use mesh_testkit::{Curl, CurlReply, Host, Need, Postgres, Redis, RedisOptions, eventually, needs};

const NEEDED: [Need; 3] = [Need::Root, Need::Program("ip"), Need::Program("curl")];
/// Redis on the coordinator's host.
const REDIS_PORT: u16 = 6379;
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
const SOON: Duration = Duration::from_secs(30);
/// How long the database is away.
const AWAY: Duration = Duration::from_secs(60);
/// The one line that each outage may write.
const OUTAGE: &str = "the store takes no changes until it heals";
/// And that of Redis.
const BUS_OUTAGE: &str = "the bus is down; everything goes on without it";

/// What was done while the database was away, and how long the slowest took.
#[derive(Debug, Default)]
struct Figures {
    console: (u32, Duration),
    exec: (u32, Duration),
    socks: (u32, Duration),
    refused: (u32, Duration),
    /// Changes that were made.
    changed: (u32, Duration),
}

fn timed<T>(figure: &mut (u32, Duration), action: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let done = action();
    figure.0 += 1;
    figure.1 = figure.1.max(started.elapsed());
    done
}

struct Site {
    field: Field,
    server: Server,
    postgres: Postgres,
    database: String,
}

impl Site {
    /// An installation on Postgres with two workers, used once.
    fn start(further: &[(&str, &str)]) -> Self {
        let postgres = Postgres::start().expect("Postgres");
        let database = postgres.database();
        let database = database.rsplit('/').next().expect("a name").to_owned();
        let url = postgres.socket_url(&database);
        let master_key = "0123456789abcdef".repeat(4);
        let mut env = vec![
            ("MESH_COORDINATOR__STORE__URL", url.as_str()),
            ("MESH_COORDINATOR__MASTER_KEY", master_key.as_str()),
        ];
        env.extend_from_slice(further);
        let mut field = Field::with_env(Layout::Single, None, &env);
        for name in WORKERS {
            field.add_worker(name, "default", &[]);
            field.wait_for_console(&format!("/{name}/"), SOON);
        }
        let host = field.worker(WORKERS[0]).host().clone();
        let server = Server::start(Some(&host), "web", None).expect("server");
        field.worker(WORKERS[0]).publish("web", server.port());
        let site = Self {
            field,
            server,
            postgres,
            database,
        };
        eventually("SOCKS works", SOON, || {
            let url = format!("http://{}:{}/", WORKERS[0], site.server.port());
            Curl::new()
                .on(Some(site.field.host("edge")))
                .args([
                    "--socks5-hostname",
                    &site.field.socks("default").to_string(),
                ])
                .get(&url)?
                .ok()
        });
        let mut warm = Figures::default();
        site.use_everything(&mut warm);
        println!("before: {warm:?}");
        site
    }

    fn psql(&self, sql: &str) -> anyhow::Result<String> {
        self.postgres.psql(&self.database, sql)
    }

    fn core(&self) -> Host {
        self.field.host("core").clone()
    }

    fn token_is_made(&self, figures: &mut Figures) {
        timed(&mut figures.changed, || {
            self.field
                .operator()
                .mesh(&["token", "create"])
                .expect_code(0)
        });
    }

    fn everybody_is_online(&self) {
        let online = self.field.operator().mesh_json(&["node", "list"]);
        assert!(
            online.to_string().matches("\"online\"").count() >= WORKERS.len(),
            "presence goes on: {online}"
        );
    }

    /// Console, command and SOCKS once each.
    fn use_everything(&self, figures: &mut Figures) {
        for name in WORKERS {
            let reply = timed(&mut figures.console, || {
                self.field.curl(&format!("/{name}/")).expect("curl runs")
            });
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        let ran = timed(&mut figures.exec, || {
            self.field
                .operator()
                .deploy(&["exec", "uname -n", "all"])
                .expect_code(0)
        });
        for name in WORKERS {
            assert!(ran.stdout.contains(name), "{}", ran.all());
        }
        let url = format!("http://{}:{}/", WORKERS[0], self.server.port());
        timed(&mut figures.socks, || {
            Curl::new()
                .on(Some(self.field.host("edge")))
                .args([
                    "--socks5-hostname",
                    &self.field.socks("default").to_string(),
                ])
                .get(&url)
                .and_then(CurlReply::ok)
                .expect("SOCKS goes on")
        });
    }

    fn token_is_refused(&self, figures: &mut Figures) {
        let refused = timed(&mut figures.refused, || {
            self.field.operator().mesh(&["token", "create"])
        });
        assert_eq!(refused.code, Some(1), "{}", refused.all());
        assert!(
            refused.stderr.contains("cannot change anything now")
                && refused.stderr.contains("running connections go on"),
            "{}",
            refused.all()
        );
    }

    /// The status is told, although the events in it lie in the database, and names what is wrong.
    fn status_names_the_store(&self) {
        let status = self.field.operator().mesh(&["--json", "status"]);
        assert_eq!(status.code, Some(1), "{}", status.all());
        for code in ["\"store-down\"", "\"events-unread\""] {
            assert!(status.stdout.contains(code), "{}", status.all());
        }
    }

    /// What `mesh status` says of this.
    fn told(&self, code: &str) -> anyhow::Result<serde_json::Value> {
        finding(&self.field.operator().mesh(&["--json", "status"]), code)
    }

    fn readiness(&self) -> String {
        Curl::new()
            .on(Some(self.field.host("core")))
            .get("http://127.0.0.1:9464/readyz")
            .map(|reply| format!("{} {}", reply.status, reply.body.trim()))
            .unwrap_or_default()
    }

    /// Uses everything for this long, then brings the database back, and waits until it is healed.
    fn outage(&mut self, what: &str, away: Duration, back: impl FnOnce(&mut Postgres)) {
        let (mut figures, gone) = (Figures::default(), Instant::now());
        self.token_is_refused(&mut figures);
        let readiness = eventually("readiness names the store", SOON, || {
            let readiness = self.readiness();
            let named = readiness.starts_with("503") && readiness.contains("store");
            anyhow::ensure!(named, "{readiness}");
            Ok(readiness)
        });
        self.status_names_the_store();
        while gone.elapsed() < away {
            self.use_everything(&mut figures);
            self.token_is_refused(&mut figures);
        }
        self.everybody_is_online();
        back(&mut self.postgres);
        let healing = Instant::now();
        eventually("changes go through again", SOON, || {
            self.field.operator().mesh(&["token", "create"]).success()
        });
        let healed = healing.elapsed();
        eventually("ready again", SOON, || {
            let readiness = self.readiness();
            anyhow::ensure!(readiness.starts_with("200"), "{readiness}");
            Ok(())
        });
        println!(
            "{what} for {:?}: {figures:?}; readiness said {readiness:?}; healed in {healed:?}",
            gone.elapsed() - healed
        );
        self.use_everything(&mut Figures::default());
    }

    /// Waits until as many beginnings as ends of outages of `subject` are events, this many at
    /// least. `mesh events` shows the newest thousand only, and more happen here.
    fn outages_are_events(&self, subject: &str, least: u32) {
        let told = |turn: &str| -> anyhow::Result<u32> {
            let kind = format!("{subject}-{turn}");
            let of = format!("kind = '{kind}' AND subject = '{subject}'");
            Ok(self
                .psql(&format!("SELECT count(*) FROM event WHERE {of}"))?
                .parse()?)
        };
        eventually("the outages are events", SOON, || {
            let (down, up) = (told("down")?, told("up")?);
            anyhow::ensure!(down >= least && down == up, "{down} and {up}");
            Ok(())
        });
    }
}

fn postgres_goes_away_and_everything_but_changes_goes_on() {
    let mut site = Site::start(&[]);
    site.postgres.stop().expect("stops");
    site.outage("Postgres stopped", AWAY, |postgres| {
        postgres.start_again().expect("starts again");
    });
    site.postgres.freeze().expect("freezes");
    site.outage("Postgres frozen", AWAY / 3, |postgres| {
        postgres.thaw().expect("thaws");
    });
    site.outages_are_events("store", 2);

    // What was allowed meanwhile stands in the audit, and nothing is damaged.
    let certificates = "SELECT count(*) FROM audit WHERE action = 'ssh-certificate'";
    eventually("the audit has got what it was owed", SOON, || {
        let count: u32 = site.psql(certificates)?.parse()?;
        anyhow::ensure!(count >= 4, "{count} certificates");
        Ok(())
    });
    let state = site.field.operator().work("state-coordinator");
    let state = state.display().to_string();
    let check = ["db", "check", "--state-dir", &state];
    let refused = site.field.operator().mesh(&check);
    assert_eq!(refused.code, Some(1), "{}", refused.all());
    assert!(
        refused.stderr.contains("in use by another coordinator"),
        "{}",
        refused.all()
    );
    site.field.assert_logs_clean(&[OUTAGE]);
    let log = site.field.service("coordinator").log().clone();
    assert_eq!(log.alarms(&[]).len(), 2, "one line for each outage");

    let mut coordinator = site.field.take_service("coordinator");
    coordinator.terminate().expect("asks it to end");
    coordinator.wait(SOON).expect("ends");
    let checked = site.field.operator().mesh_ok(&check);
    println!("{}", checked.stdout);
    assert!(
        checked.stdout.contains("No damage found."),
        "{}",
        checked.all()
    );
}

/// A Redis on the coordinator's host.
struct Bus {
    host: Host,
    server: Redis,
}

impl Bus {
    fn start(host: Host) -> Self {
        let options = RedisOptions::default().port(REDIS_PORT);
        let server = host.enter(|| Redis::start_with(options)).expect("Redis");
        Self { host, server }
    }

    fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        self.host.enter(|| self.server.ask(words))
    }

    fn start_again(&mut self) {
        let (host, server) = (self.host.clone(), &mut self.server);
        host.enter(|| server.start_again()).expect("starts again");
    }

    /// Waits until the coordinator has written to it who was seen.
    fn knows_who_is_there(&self) -> Duration {
        let asked = Instant::now();
        eventually("Redis knows who was seen", SOON, || {
            let keys = self.ask(&["KEYS", "mesh:*:seen:*"])?;
            let known = keys.lines().count();
            anyhow::ensure!(known > WORKERS.len(), "{keys}");
            Ok(())
        });
        asked.elapsed()
    }
}

/// Waits until `/readyz` says so or not so of Redis; it is ready either way.
fn redis_is_named(site: &Site, is_named: bool) -> Duration {
    let asked = Instant::now();
    eventually("readiness says how Redis does", SOON, || {
        let readiness = site.readiness();
        let right = readiness.starts_with("200") && readiness.contains("Redis") == is_named;
        anyhow::ensure!(right, "{readiness}");
        Ok(())
    });
    asked.elapsed()
}

fn redis_goes_away_and_nobody_notices() {
    let url = format!("redis://127.0.0.1:{REDIS_PORT}/0");
    // The installation starts before its Redis does.
    let mut site = Site::start(&[("MESH_COORDINATOR__BUS__REDIS_URL", &url)]);
    redis_is_named(&site, true);
    let mut bus = Bus::start(site.core());
    println!(
        "Redis came late: found in {:?}",
        redis_is_named(&site, false)
    );
    bus.knows_who_is_there();

    // Stopped: everything goes on, changes too; and a relay that goes with it is not missed by whoever
    // reaches each other directly.
    assert!(site.told("bus-down").is_err(), "Redis is there");
    bus.server.kill().expect("stops");
    let mut relay = site.field.take_service("relay");
    relay.kill().expect("killed");
    relay.assert_log_clean(&[]);
    let (mut figures, gone) = (Figures::default(), Instant::now());
    redis_is_named(&site, true);
    let told = site.told("bus-down").expect("told");
    assert_eq!(told["severity"], "warning", "{told}");
    while gone.elapsed() < AWAY {
        site.use_everything(&mut figures);
        site.token_is_made(&mut figures);
    }
    site.everybody_is_online();
    let away = gone.elapsed();
    // Its last heartbeat counted for 45 s.
    let told = eventually("the relay is missed", SOON, || site.told("relay-down"));
    assert_eq!(told["severity"], "error", "there is no other: {told}");
    site.field.start_relay().expect("the relay starts again");
    bus.start_again();
    let healed = redis_is_named(&site, false);
    let known = bus.knows_who_is_there();
    println!(
        "Redis stopped for {away:?}: {figures:?}; healed in {healed:?}, presence in {known:?}"
    );

    // Flushed: it has forgotten everything, which nobody needs.
    let mut figures = Figures::default();
    assert_eq!(bus.ask(&["FLUSHALL"]).expect("flushes"), "OK");
    site.everybody_is_online();
    site.use_everything(&mut figures);
    site.token_is_made(&mut figures);
    let known = bus.knows_who_is_there();
    assert!(site.readiness().starts_with("200"), "{}", site.readiness());
    println!("Redis flushed: {figures:?}; presence in {known:?}");

    // Both at once.
    bus.server.kill().expect("stops");
    site.postgres.stop().expect("stops");
    site.outage("Postgres and Redis stopped", AWAY, |postgres| {
        postgres.start_again().expect("starts again");
        bus.start_again();
    });
    let healed = redis_is_named(&site, false);
    let known = bus.knows_who_is_there();
    println!("Redis is back {healed:?} after the database, presence after {known:?}");
    site.token_is_made(&mut Figures::default());
    site.outages_are_events("store", 1);
    // The second may have begun within a minute of the first; the third did not.
    site.outages_are_events("bus", 2);
    for code in ["bus-down", "relay-down"] {
        let told = site.told(code);
        assert!(told.is_err(), "{told:?}");
    }

    // The relay goes for good.
    let mut relay = site.field.take_service("relay");
    relay.terminate().expect("signalled");
    relay.finish(SOON).expect("ends").expect_code(0);
    let words = ["node", "remove", "--yes", "relay"];
    site.field.operator().mesh_ok(&words);
    let told = eventually("there is no relay", SOON, || site.told("no-relay"));
    assert_eq!(told["severity"], "warning", "{told}");
    site.use_everything(&mut Figures::default());

    site.field.assert_logs_clean(&[OUTAGE, BUS_OUTAGE]);
    let log = site.field.service("coordinator").log().clone();
    assert_eq!(log.alarms(&[BUS_OUTAGE]).len(), 1, "the database went once");
    assert_eq!(
        log.alarms(&[OUTAGE]).len(),
        3,
        "Redis was missed at the start and went twice"
    );
}

#[test]
fn database_and_bus_go_away_and_everything_but_changes_goes_on() {
    if !needs(&NEEDED) {
        return;
    }
    std::thread::scope(|scope| {
        let other = scope.spawn(redis_goes_away_and_nobody_notices);
        postgres_goes_away_and_everything_but_changes_goes_on();
        if let Err(panic) = other.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
