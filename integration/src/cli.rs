//! Command lines, each person with folders of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mesh_api::context::{Context, Contexts};
use mesh_testkit::{Finished, Host, Spec, TestUser};
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::binary;

/// How long a command may take that is not expected to.
pub const USUAL: Duration = Duration::from_secs(60);

/// The name of the log of `mesh` with these arguments: `mesh-shown` when it is asked to show a secret,
/// since all other logs are searched for secrets.
pub(crate) fn log_name_of_mesh(args: &[&str]) -> &'static str {
    let asks = |verb: [&str; 2]| args.windows(2).any(|words| words == verb);
    if asks(["token", "create"]) || asks(["node", "permit"]) {
        "mesh-shown"
    } else {
        "mesh"
    }
}

/// A person at a machine: folders for configuration and data, a host, a user.
#[derive(Debug, Clone)]
pub struct Cli {
    folder: Arc<TempDir>,
    host: Option<Host>,
    user: Option<Arc<TestUser>>,
    env: Vec<(String, String)>,
}

impl Cli {
    /// The person who runs the test, on this machine, with empty folders.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mesh-person-").tempdir()?;
        for name in ["config", "data", "run", "work"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        Ok(Self {
            folder: Arc::new(folder),
            host: None,
            user: None,
            env: Vec::new(),
        })
    }

    /// On a host of a lab.
    #[must_use]
    pub fn on(mut self, host: &Host) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// As an ordinary user, to whom the folders are handed.
    pub fn run_by(mut self, user: &Arc<TestUser>) -> anyhow::Result<Self> {
        user.own(self.folder.path())?;
        for name in ["config", "data", "run", "work"] {
            user.own(&self.folder.path().join(name))?;
        }
        self.user = Some(Arc::clone(user));
        Ok(self)
    }

    /// With these variables in the environment of everything it runs.
    #[must_use]
    pub fn with_env(mut self, env: &[(&str, &str)]) -> Self {
        let env = env.iter();
        self.env
            .extend(env.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        self
    }

    /// The variables of [`Cli::with_env`] for somebody else too.
    #[must_use]
    pub fn with_env_of(mut self, other: &Self) -> Self {
        self.env.clone_from(&other.env);
        self
    }

    /// The host, when it is not this machine.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// A path in the person's working folder.
    pub fn work(&self, name: &str) -> PathBuf {
        self.folder.path().join("work").join(name)
    }

    /// A file in the working folder, readable by its owner only.
    pub fn file(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.work(name);
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(user) = &self.user {
            user.own(&path)?;
        }
        Ok(path)
    }

    /// Where this person's `mesh` keeps configuration.
    pub fn config_home(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// This person's contexts.
    pub fn contexts(&self) -> Contexts {
        Contexts::in_dir(self.config_home().join("mesh/contexts"))
    }

    /// The current context.
    pub fn context(&self) -> anyhow::Result<Context> {
        let contexts = self.contexts();
        let current = contexts.current()?.context("a context is current")?;
        Ok(contexts.load(Some(&current))?)
    }

    /// Any program, with this person's folders, host and user.
    pub fn spec(&self, program: impl AsRef<std::ffi::OsStr>) -> Spec {
        let mut spec = Spec::new(program).dir(self.folder.path().join("work"));
        if let Some(host) = &self.host {
            spec = spec.host(host);
        }
        if let Some(user) = &self.user {
            spec = spec.user(user);
        }
        for (key, value) in &self.env {
            spec = spec.env(key, value);
        }
        spec.env("HOME", self.folder.path().join("work"))
            .env("XDG_CONFIG_HOME", self.config_home())
            .env("XDG_DATA_HOME", self.folder.path().join("data"))
            .env("XDG_RUNTIME_DIR", self.folder.path().join("run"))
            .env("NO_COLOR", "1")
            .env_remove("MESH_CONTEXT")
            .env_remove("RUST_LOG")
    }

    /// One of the product's binaries.
    pub fn product(&self, name: &str) -> Spec {
        self.spec(reachable(&binary(name)))
    }

    /// `mesh` with these arguments.
    pub fn mesh_spec(&self, args: &[&str]) -> Spec {
        let spec = self.product("mesh").args(args);
        spec.name(log_name_of_mesh(args))
    }

    /// Runs `mesh` with these arguments to its end.
    #[track_caller]
    pub fn mesh(&self, args: &[&str]) -> Finished {
        run(self.mesh_spec(args), USUAL)
    }

    /// Runs `mesh` and expects it to succeed.
    #[track_caller]
    pub fn mesh_ok(&self, args: &[&str]) -> Finished {
        self.mesh(args).expect_code(0)
    }

    /// Runs `mesh --json` and returns what it printed.
    #[track_caller]
    pub fn mesh_json(&self, args: &[&str]) -> Value {
        let ran = self.mesh(&[&["--json"], args].concat()).expect_code(0);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| {
            panic!("mesh {args:?} printed no JSON ({error}): {}", ran.all())
        })
    }

    /// What `mesh node show` tells of a node, whether or not something is wrong with it, which its
    /// exit code says. `node` is its name, and its network where that is another than the default.
    #[track_caller]
    pub fn node_shown(&self, node: &[&str]) -> Value {
        let ran = self.mesh(&[&["--json", "node", "show"][..], node].concat());
        let shown: Value = serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|error| panic!("{node:?} is not shown ({error}): {}", ran.all()));
        shown["node"].clone()
    }

    /// Runs `deploy-cli` with these arguments to its end.
    #[track_caller]
    pub fn deploy(&self, args: &[&str]) -> Finished {
        run(self.product("deploy-cli").args(args), USUAL)
    }

    /// Makes a join token and returns its text.
    #[track_caller]
    pub fn token(&self, args: &[&str]) -> String {
        let mut words = vec!["token", "create"];
        words.extend(args);
        let made = self.mesh_json(&words);
        made["token"]["token"]
            .as_str()
            .unwrap_or_else(|| panic!("no token in {made}"))
            .to_owned()
    }
}

#[track_caller]
fn run(spec: Spec, within: Duration) -> Finished {
    spec.run(within).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The same binary where every user may run it: a checkout may lie in a folder that is not open.
pub(crate) fn reachable(path: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt as _;
    let open = path.ancestors().all(|part| {
        part.metadata()
            .is_ok_and(|metadata| metadata.mode() & 0o005 == 0o005)
    });
    if open {
        return path.to_owned();
    }
    copy_for_all(path).unwrap_or_else(|error| panic!("copy {}: {error:#}", path.display()))
}

fn copy_for_all(path: &Path) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    static FOLDER: std::sync::Mutex<Option<TempDir>> = std::sync::Mutex::new(None);
    let mut folder = FOLDER
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if folder.is_none() {
        let made = tempfile::Builder::new()
            .prefix("mesh-binaries-")
            .tempdir()?;
        std::fs::set_permissions(made.path(), std::fs::Permissions::from_mode(0o755))?;
        *folder = Some(made);
    }
    let folder = folder.as_ref().context("it was just made")?;
    let copy = folder
        .path()
        .join(path.file_name().context("a binary has a name")?);
    if !copy.exists() {
        std::fs::copy(path, &copy)?;
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(copy)
}
