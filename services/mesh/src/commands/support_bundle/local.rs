//! The services of this machine: where their state is, what is in it (never the contents), what
//! they are set to, and what they answer.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mesh_daemon::{ConfigArgs, Overrides, Settings, config, default_state_dir};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::archive::{Bundle, FILE_MAX};
use super::machine;
use crate::args::SupportBundleArgs;
use crate::text;

/// The programs that run as services.
pub(super) const PROGRAMS: [&str; 5] = [
    "coordinator",
    "relay",
    "traffic-gateway",
    "deploy-manager",
    "worker-agent",
];
/// Where their admin endpoints are unless configured; `mesh up` has the first.
const ADMIN: std::ops::RangeInclusive<u16> = 9464..=9468;
/// How long an endpoint may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How deep a state directory is looked into, and how many entries of it are listed.
const DEEPEST: usize = 5;
const MOST: usize = 5000;

/// What a service is set to, as far as this needs it.
struct Service {
    state_dir: PathBuf,
    admin: Option<SocketAddr>,
    /// As `--print-config` prints it.
    toml: String,
}

/// What there is of us on this machine.
pub(super) struct Local {
    /// Of each program: its settings, or why they are not known.
    services: Vec<(&'static str, Result<Service>)>,
    roots: Vec<PathBuf>,
    admin: BTreeSet<SocketAddr>,
}

impl Local {
    /// Looks for configuration and state.
    pub(super) fn find(args: &SupportBundleArgs) -> Self {
        let dir = &args.config_dir;
        let services = vec![
            find(dir, "coordinator", |c: &coordinator::Config| {
                c.state_dir.clone()
            }),
            find(dir, "relay", |c: &relay::Config| c.state_dir.clone()),
            find(dir, "traffic-gateway", |c: &traffic_gateway::Config| {
                c.state_dir.clone()
            }),
            find(dir, "deploy-manager", |c: &deploy_manager::Config| {
                c.state_dir.clone()
            }),
            find(dir, "worker-agent", worker_agent::Config::state_dir),
        ];
        let mut candidates = args.state_dir.clone();
        let found = || services.iter().filter_map(|(_, found)| found.as_ref().ok());
        candidates.extend(found().map(|service| service.state_dir.clone()));
        candidates.extend(crate::up::state_dir(None));
        let usual = default_state_dir("any");
        candidates.extend(usual.parent().map(Path::to_owned));
        let mut admin: BTreeSet<SocketAddr> = args.admin.iter().copied().collect();
        admin.extend(found().filter_map(|service| service.admin));
        admin.extend(ADMIN.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        Self {
            services,
            roots: roots(candidates),
            admin,
        }
    }

    /// The state directories that are there.
    pub(super) fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    pub(super) async fn gather(self, bundle: &mut Bundle) {
        bundle.add("versions.txt", &versions().await);
        for (program, service) in &self.services {
            let name = format!("configuration/{program}.toml");
            match service {
                Ok(service) => bundle.add(&name, &service.toml),
                Err(error) => bundle.miss(&name, &format!("{error:#}")),
            }
        }
        if self.roots.is_empty() {
            bundle.miss(
                "state",
                "there is no state directory; name one with --state-dir",
            );
        }
        let mut names = BTreeSet::new();
        for (at, root) in self.roots.iter().enumerate() {
            let entries = walk(root);
            bundle.add(&format!("state/{}.txt", at + 1), &listing(root, &entries));
            for (path, _) in &entries {
                of_socket(path, &mut names, bundle).await;
            }
        }
        for addr in &self.admin {
            of_admin(*addr, bundle).await;
        }
    }
}

/// The settings of a program that is set up here, by its file or by this shell's environment.
fn find<T: Settings>(
    dir: &Path,
    program: &'static str,
    state_dir: impl Fn(&T) -> PathBuf,
) -> (&'static str, Result<Service>) {
    let file = dir.join(format!("{program}.toml"));
    let has_file = file.exists();
    let args = ConfigArgs {
        config: has_file.then(|| file.clone()),
        ..ConfigArgs::default()
    };
    let prefix = format!("{}__", config::env_prefix(program));
    let has_env = std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with(&prefix));
    if !has_file && !has_env && !default_state_dir(program).is_dir() {
        let error = anyhow::anyhow!("not set up here: there is no {}", file.display());
        return (program, Err(error));
    }
    let loaded = config::load_unchecked::<T>(program, &args, Overrides::new());
    let service = loaded.context("it cannot be read").map(|settings| {
        let from = if has_file {
            format!("# {} and this shell's environment", file.display())
        } else {
            "# no file: defaults and this shell's environment".to_owned()
        };
        Service {
            state_dir: state_dir(&settings),
            admin: settings.admin().map(|admin| admin.listen),
            toml: format!("{from}\n{}", config::to_toml(&settings)),
        }
    });
    (program, service)
}

/// The directories that are there, without those that are in another.
fn roots(candidates: Vec<PathBuf>) -> Vec<PathBuf> {
    let real = candidates.iter().filter_map(|dir| dir.canonicalize().ok());
    let real: BTreeSet<PathBuf> = real.filter(|dir| dir.is_dir()).collect();
    let is_inside = |dir: &PathBuf| {
        real.iter()
            .any(|other| other != dir && dir.starts_with(other))
    };
    real.iter().filter(|dir| !is_inside(dir)).cloned().collect()
}

/// What is in a directory, in order; links are not followed.
pub(super) fn walk(root: &Path) -> Vec<(PathBuf, Metadata)> {
    let mut found = Vec::new();
    let mut waiting = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = waiting.pop() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if metadata.is_dir() && depth < DEEPEST {
                waiting.push((path.clone(), depth + 1));
            }
            if found.len() < MOST {
                found.push((path, metadata));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

/// As `ls -l` would: mode, owner, size, time of change, name.
fn listing(root: &Path, entries: &[(PathBuf, Metadata)]) -> String {
    let mut lines = format!("{}\n", root.display());
    for (path, found) in entries {
        let kind = match found.file_type() {
            kind if kind.is_dir() => 'd',
            kind if kind.is_symlink() => 'l',
            kind if kind.is_file() => '-',
            _ => 's',
        };
        let changed = text::rfc3339(found.mtime().saturating_mul(1_000_000)).unwrap_or_default();
        let name = path.strip_prefix(root).unwrap_or(path).display();
        lines.push_str(&format!(
            "{kind} {:04o} {}:{} {:>10} {changed} {name}\n",
            found.mode() & 0o7777,
            found.uid(),
            found.gid(),
            found.len(),
        ));
    }
    if entries.len() == MOST {
        lines.push_str("[there is more]\n");
    }
    lines
}

/// The status of a service whose control socket this is, or whose file tells it.
async fn of_socket(path: &Path, names: &mut BTreeSet<String>, bundle: &mut Bundle) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return;
    };
    let of = dir.file_name().unwrap_or_default().to_string_lossy();
    let answer = match name.to_str() {
        Some("agent.sock") => worker_agent::status::ask(dir).await,
        // The gateway's or a relay's.
        Some("control.sock") => mesh_daemon::control_socket::ask(dir, "status")
            .await
            .context("ask by its control socket"),
        Some("running.json") => fs::read_to_string(path).context("read its status"),
        _ => return,
    };
    let name = unused(names, &of);
    bundle.take(&format!("status/{name}.json"), answer);
}

/// What an admin endpoint tells.
async fn of_admin(addr: SocketAddr, bundle: &mut Bundle) {
    for (path, file) in [
        ("/livez", "livez.txt"),
        ("/readyz", "readyz.json"),
        ("/version", "version.json"),
        ("/metrics", "metrics.txt"),
    ] {
        let name = format!("admin/{addr}/{file}");
        match tokio::time::timeout(LIMIT, fetch(addr, path)).await {
            Ok(Ok(body)) => bundle.add(&name, &body),
            Ok(Err(error)) => {
                // Where nobody answers one question, nobody answers the others.
                return bundle.miss(&format!("admin/{addr}"), &format!("{error:#}"));
            }
            Err(_) => bundle.miss(&name, &format!("no answer within {} s", LIMIT.as_secs())),
        }
    }
}

/// The body of a page, whatever its status: "not ready" is an answer too.
async fn fetch(addr: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(addr)
        .await
        .context("no admin endpoint answers there")?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json, */*\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(FILE_MAX as u64)
        .read_to_end(&mut answer)
        .await?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 ") => Ok(body.to_owned()),
        _ => bail!("what answers there is no admin endpoint"),
    }
}

/// The versions of the programs beside this one; they may be of different builds.
async fn versions() -> String {
    let own = std::env::current_exe().ok();
    let beside = match own.as_deref().and_then(Path::parent) {
        Some(dir) => versions_in(dir).await,
        None => String::new(),
    };
    let own = mesh_daemon::build_info::long_version();
    format!("this mesh {own}\n{beside}")
}

async fn versions_in(dir: &Path) -> String {
    let mut lines = String::new();
    for program in PROGRAMS.iter().chain(&["deploy-cli"]) {
        let path = dir.join(program);
        if !path.is_file() {
            lines.push_str(&format!("{}: not there\n", path.display()));
            continue;
        }
        let said = match machine::printed(&path, &["--version"]).await {
            Ok(said) => said.trim().replace('\n', "; "),
            Err(error) => format!("{error:#}"),
        };
        lines.push_str(&format!("{}: {said}\n", path.display()));
    }
    lines
}

/// A name that nothing in the bundle has yet: services of several roots may be called the same.
fn unused(names: &mut BTreeSet<String>, of: &str) -> String {
    let numbered = (2..).map(|at| format!("{of}-{at}"));
    let mut candidates = std::iter::once(of.to_owned()).chain(numbered);
    candidates
        .find(|name| names.insert(name.clone()))
        .expect("there are more numbers than names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_is_listed_without_a_word_of_its_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let inner = dir.path().join("coordinator");
        fs::create_dir(&inner).expect("made");
        mesh_daemon::write_private(inner.join("master.key"), b"Vexing7Ostrich4Lantern9")
            .expect("written");
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).expect("linked");
        let entries = walk(dir.path());
        let listed = listing(dir.path(), &entries);
        assert!(
            listed.contains("- 0600 ") && listed.contains(" 23 "),
            "{listed}"
        );
        assert!(listed.contains("coordinator/master.key\n"), "{listed}");
        assert!(!listed.contains("Vexing7"), "{listed}");
        // A link is listed and not followed.
        assert_eq!(entries.len(), 3, "{listed}");
    }

    #[test]
    fn a_directory_in_another_is_listed_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let inner = dir.path().join("relay");
        fs::create_dir(&inner).expect("made");
        let none = dir.path().join("none");
        let found = roots(vec![inner.clone(), dir.path().to_owned(), none, inner]);
        assert_eq!(found, [dir.path().canonicalize().expect("there")]);
    }

    #[test]
    fn settings_are_shown_as_they_are_in_force_and_faults_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("deploy-manager.toml");
        fs::write(&file, "[socks]\npassword = \"Vexing7Ostrich4Lantern9\"\n").expect("written");
        let state_dir = |c: &deploy_manager::Config| c.state_dir.clone();
        let (_, found) = find(dir.path(), "deploy-manager", state_dir);
        let found = found.expect("read");
        assert!(
            found.toml.contains("password = \"[redacted]\""),
            "{}",
            found.toml
        );
        fs::write(&file, "nonsense = 1\n").expect("written");
        let (_, found) = find(dir.path(), "deploy-manager", state_dir);
        let error = format!("{:#}", found.err().expect("refused"));
        assert!(error.contains("nonsense"), "{error}");
    }

    #[tokio::test]
    async fn services_of_the_same_name_have_a_file_each() {
        let dir = tempfile::tempdir().expect("a folder");
        let redactor = crate::redact::Redactor::new(&crate::redact::Secrets::default());
        let mut bundle = Bundle::new(redactor.expect("none"));
        let mut names = BTreeSet::new();
        for root in ["a", "b"] {
            let state = dir.path().join(root).join("relay");
            fs::create_dir_all(&state).expect("made");
            let path = state.join("running.json");
            fs::write(&path, root).expect("written");
            of_socket(&path, &mut names, &mut bundle).await;
        }
        let packed = bundle.pack("x", text::now()).expect("packs");
        let listed: Vec<&str> = packed
            .listing
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(listed, ["status/relay.json", "status/relay-2.json"]);
    }

    #[tokio::test]
    async fn programs_beside_this_one_are_asked_and_those_that_fail_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        for (program, stands) in [("coordinator", "/bin/echo"), ("relay", "/bin/false")] {
            std::os::unix::fs::symlink(stands, dir.path().join(program)).expect("linked");
        }
        let said = versions_in(dir.path()).await;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 6, "{said}");
        assert!(
            lines[0].contains("coordinator: ") && lines[0].contains("echo"),
            "{said}"
        );
        assert!(
            lines[1].contains("relay: ") && lines[1].contains("exit status"),
            "{said}"
        );
        assert!(lines[2].contains("traffic-gateway: not there"), "{said}");
    }

    #[tokio::test]
    async fn whoever_speaks_no_http_is_no_admin_endpoint() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let addr = listener.local_addr().expect("bound");
        let stranger = async {
            let (mut stream, _) = listener.accept().await.expect("asked");
            let mut asked = [0; 256];
            let _len = stream.read(&mut asked).await.expect("read");
            stream.write_all(b"SSH-2.0-x\r\n").await.expect("written");
        };
        let (fetched, ()) = tokio::join!(fetch(addr, "/livez"), stranger);
        assert!(
            fetched
                .expect_err("a stranger")
                .to_string()
                .contains("no admin")
        );
        drop(listener);
        let error = fetch(addr, "/livez").await.expect_err("nobody");
        assert!(error.to_string().contains("no admin endpoint answers"));
    }
}
