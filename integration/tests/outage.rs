//! The database goes away under a running mesh: what exists goes on, changes are refused, and
//! everything heals without a hand.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::time::{Duration, Instant};

use integration::{Field, Layout, Server};
use mesh_testkit::{Curl, CurlReply, Need, Postgres, eventually, needs};

const NEEDED: [Need; 3] = [Need::Root, Need::Program("ip"), Need::Program("curl")];
const WORKERS: [&str; 2] = ["worker-node-1", "worker-node-2"];
const SOON: Duration = Duration::from_secs(30);
/// How long the database is away.
const AWAY: Duration = Duration::from_secs(60);
/// The one line that each outage may write.
const OUTAGE: &str = "the store takes no changes until it heals";

/// What was done while the database was away, and how long the slowest took.
#[derive(Debug, Default)]
struct Figures {
    console: (u32, Duration),
    exec: (u32, Duration),
    socks: (u32, Duration),
    refused: (u32, Duration),
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
}

impl Site {
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

    fn readiness(&self) -> String {
        Curl::new()
            .on(Some(self.field.host("core")))
            .get("http://127.0.0.1:9464/readyz")
            .map(|reply| format!("{} {}", reply.status, reply.body.trim()))
            .unwrap_or_default()
    }

    /// Uses everything for this long, then brings the database back, and waits until it is healed.
    fn outage(&self, what: &str, away: Duration, back: impl FnOnce()) {
        let (mut figures, gone) = (Figures::default(), Instant::now());
        self.token_is_refused(&mut figures);
        let readiness = eventually("readiness names the store", SOON, || {
            let readiness = self.readiness();
            let named = readiness.starts_with("503") && readiness.contains("store");
            anyhow::ensure!(named, "{readiness}");
            Ok(readiness)
        });
        while gone.elapsed() < away {
            self.use_everything(&mut figures);
            self.token_is_refused(&mut figures);
        }
        let online = self.field.operator().mesh_json(&["node", "list"]);
        assert!(
            online.to_string().matches("\"online\"").count() >= WORKERS.len(),
            "presence goes on: {online}"
        );
        back();
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
}

#[test]
fn postgres_goes_away_and_everything_but_changes_goes_on() {
    if !needs(&NEEDED) {
        return;
    }
    let mut postgres = Postgres::start().expect("Postgres");
    let database = postgres.database();
    let database = database.rsplit('/').next().expect("a name").to_owned();
    let url = postgres.socket_url(&database);
    let master_key = "0123456789abcdef".repeat(4);
    let env = [
        ("MESH_COORDINATOR__STORE__URL", url.as_str()),
        ("MESH_COORDINATOR__MASTER_KEY", master_key.as_str()),
    ];
    let mut field = Field::with_env(Layout::Single, None, &env);
    for name in WORKERS {
        field.add_worker(name, "default", &[]);
        field.wait_for_console(&format!("/{name}/"), SOON);
    }
    let host = field.worker(WORKERS[0]).host().clone();
    let server = Server::start(Some(&host), "web", None).expect("server");
    field.worker(WORKERS[0]).publish("web", server.port());
    let mut site = Site { field, server };
    let mut warm = Figures::default();
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
    site.use_everything(&mut warm);
    println!("before: {warm:?}");

    postgres.stop().expect("stops");
    site.outage("stopped", AWAY, || {
        postgres.start_again().expect("starts again");
    });
    postgres.freeze().expect("freezes");
    site.outage("frozen", AWAY / 3, || postgres.thaw().expect("thaws"));

    // What was allowed meanwhile stands in the audit, and nothing is damaged.
    let certificates = "SELECT count(*) FROM audit WHERE action = 'ssh-certificate'";
    eventually("the audit has got what it was owed", SOON, || {
        let count: u32 = postgres.psql(&database, certificates)?.parse()?;
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
