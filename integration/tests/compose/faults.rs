//! Containers are killed, and databases stopped; what has nothing to do with them goes on meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mesh_testkit::{Child, Curl, Finished, Spec, eventually, holds_for};

use crate::project::Project;
use crate::{HEALED, SOCKS, fetch};

/// Long enough for everything that has a time to live to run out.
const OUTAGE: Duration = Duration::from_secs(60);
/// What carries [`Traffic`]; everything else may be killed under it.
const CARRIERS: [&str; 2] = ["deploy-manager", "worker-node-2"];
const TICKS: usize = 100;
/// A service of a worker that answers for ten seconds, one line after the other.
const TICKER: &str = r#"
use IO::Socket::INET;
$SIG{CHLD} = "IGNORE";
my $server = IO::Socket::INET->new(LocalAddr => "127.0.0.1:8000", Listen => 9, ReuseAddr => 1)
    or die "cannot listen: $!";
while (my $client = $server->accept) {
    next if fork;
    while (<$client>) { last if /^\r?\n/ }
    $client->autoflush(1);
    print $client "HTTP/1.0 200 OK\r\n\r\n";
    for (1 .. 100) { print $client "tick $_\n"; select undef, undef, undef, 0.1 }
    exit;
}
"#;

/// Offers the ticker on the mesh.
pub(crate) fn publish_ticker(project: &Project, socks_user: &str) {
    let start = ["exec", "--detach", CARRIERS[1], "perl", "-e", TICKER];
    project.ok(start).expect("perl starts");
    let publish = "worker-agent --state-dir /var/lib/mesh/worker-agent publish ticker 8000 --tcp";
    project
        .ok(["exec", "-T", CARRIERS[1], "sh", "-c", publish])
        .expect("published");
    eventually("the ticker answers", HEALED, || {
        let url = format!("http://{}:8000/", CARRIERS[1]);
        let page = by_socks(socks_user).get(&url)?.ok()?;
        ensure!(page.lines().count() == TICKS, "{page}");
        Ok(())
    });
}

fn by_socks(user: &str) -> Curl {
    Curl::new().args(["--socks5-hostname", SOCKS, "--proxy-user", user])
}

/// A download by SOCKS5 and a command by SSH, both under way for ten seconds.
struct Traffic {
    download: Child,
    command: Child,
}

impl Traffic {
    fn begin(project: &Project, socks_user: &str) -> Self {
        let download = by_socks(socks_user)
            .into_spec()
            .arg("--no-buffer")
            .arg(format!("http://{}:8000/", CARRIERS[1]));
        let command = Spec::new("docker")
            .args(["compose", "--file"])
            .arg(project.file())
            .args(["exec", "-T", "deploy-manager", "deploy-cli", "exec"])
            .args([
                "for i in $(seq 10); do echo $i; sleep 1; done; echo over",
                CARRIERS[1],
            ]);
        let traffic = Self {
            download: download.spawn().expect("curl starts"),
            command: command.spawn().expect("docker starts"),
        };
        eventually("both are under way", Duration::from_secs(10), || {
            for child in [&traffic.download, &traffic.command] {
                let lines = child.log().lines();
                ensure!(!lines.is_empty(), "{} says nothing yet", child.name());
            }
            Ok(())
        });
        traffic
    }

    fn expect_whole(self) {
        let ends = |mut child: Child| -> Finished {
            child
                .finish(Duration::from_secs(30))
                .expect("it comes to its end")
        };
        let download = ends(self.download);
        assert!(
            download.code == Some(0) && download.stdout.contains(&format!("tick {TICKS}\n")),
            "the download broke: {}",
            download.all()
        );
        let command = ends(self.command);
        assert!(
            command.code == Some(0) && command.stdout.contains("over"),
            "the command broke: {}",
            command.all()
        );
    }
}

/// Kills a container; everything works again by itself, and what it does not carry never stopped.
pub(crate) fn kill(project: &mut Project, service: &str, workers: &[&str], socks_user: &str) {
    let traffic = (!CARRIERS.contains(&service)).then(|| Traffic::begin(project, socks_user));
    project.kill(service);
    eventually("everything works again", HEALED, || {
        project.is_healthy(service)?;
        works(project, workers)
    });
    let during = if let Some(traffic) = traffic {
        traffic.expect_whole();
        "; download and command went on"
    } else {
        ""
    };
    project.lap(&format!("{service} killed, healed{during}"));
}

/// Consoles, commands and changes.
pub(crate) fn works(project: &Project, workers: &[&str]) -> anyhow::Result<()> {
    project.consoles(workers)?;
    project.status_all(workers)?;
    project.change()
}

/// Stops databases for a while: what runs goes on, and changes work again afterwards.
pub(crate) fn outage(
    project: &mut Project,
    databases: &[&str],
    workers: &[&str],
    socks_user: &str,
) {
    for database in databases {
        project.ok(["stop", database]).expect("stopped");
    }
    let mut rounds = 0;
    holds_for("the data plane", OUTAGE, || {
        rounds += 1;
        project.consoles(workers)?;
        project.status_all(workers)?;
        let page = fetch(Some(socks_user))?;
        ensure!(page.contains("cockpit"), "another answer by SOCKS5: {page}");
        Ok(())
    });
    if databases.contains(&"postgres") {
        let refused = project.change().err().map(|error| error.to_string());
        let refused = refused.expect("changed without a database");
        assert!(refused.contains("cannot change anything now"), "{refused}");
    } else {
        project.change().expect("changes need no Redis");
    }
    for database in databases {
        project.ok(["start", database]).expect("started");
    }
    let begun = Instant::now();
    eventually("changes work again", HEALED, || project.change());
    eventually("everything is ready again", HEALED, || {
        project.is_healthy("coordinator")
    });
    println!(
        "  consoles, commands and SOCKS5 asked {rounds} times, none failed; healed after {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    project.lap(&format!(
        "{} away for {} s",
        databases.join(" and "),
        OUTAGE.as_secs()
    ));
}

/// Takes away what Redis holds; it is written again by those who need it.
pub(crate) fn flush(project: &mut Project, workers: &[&str]) {
    let flush = r#"REDISCLI_AUTH="$(cat /run/mesh/redis/password)" \
        redis-cli --tls --cacert /run/mesh/redis/ca.crt -h redis flushall"#;
    let flushed = project
        .ok(["exec", "-T", "redis", "sh", "-c", flush])
        .context("redis-cli");
    assert_eq!(flushed.expect("flushed").trim(), "OK");
    eventually("everything works again", HEALED, || works(project, workers));
    project.lap("redis flushed");
}
