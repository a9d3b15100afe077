//! One overlay's pods in a network of their own, as containers.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::databases::{Database, Databases, Images, Server};
use super::logs::Search;
use super::{Pod, names, probe, quiet};
use crate::compose::Engine;
use crate::k8s::api::Api;
use crate::k8s::manifest::{Container, Manifest, Workload, is_account, list, text};
use crate::k8s::publish::TOKENS;
use crate::k8s::settings::secret_content;
use crate::workspace;

const POLL: Duration = Duration::from_millis(200);
/// How long a container may take to be ready, or to end: a fault should not hold a run up for as long
/// as a cluster may wait for its other parts.
const LONGEST: Duration = Duration::from_secs(120);

pub(super) struct Cluster<'a> {
    engine: &'a Engine,
    pub(super) manifest: &'a Manifest,
    /// Volumes, and Secrets that people make.
    dir: PathBuf,
    /// Those that were started, to be searched and removed.
    containers: Vec<Started>,
    search: Search,
    /// Those outside of the cluster; `None`: they are among its pods.
    pub(super) databases: Option<Databases<'a>>,
    /// Kubernetes' own API, which keeps the Secrets that the bootstrap publishes.
    pub(super) api: Api,
    /// Goes last: it is removed when nobody is in it.
    network: Network<'a>,
}

/// A container by its name, and what it is of.
struct Started {
    name: String,
    of: String,
}

/// A network of the engine, for as long as this lives.
struct Network<'a> {
    engine: &'a Engine,
    name: String,
}

impl<'a> Network<'a> {
    fn new(engine: &'a Engine, name: String) -> Result<Self> {
        quiet(engine.docker().args(["network", "create", &name]))?;
        Ok(Self { engine, name })
    }

    /// The address under which containers reach this machine.
    fn gateway(&self) -> Result<IpAddr> {
        let gateway = "{{(index .IPAM.Config 0).Gateway}}";
        let mut docker = self.engine.docker();
        let gateway = quiet(docker.args(["network", "inspect", "--format", gateway, &self.name]))?;
        gateway.parse().context("read the network's gateway")
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        let mut docker = self.engine.docker();
        drop(quiet(docker.args(["network", "rm", &self.name])));
    }
}

/// Where the volumes of one pod are.
pub(super) type Volumes = BTreeMap<String, PathBuf>;

/// How a container does.
pub(super) enum Look {
    /// Every probe passes, and the program says of nothing that it is degraded.
    Ready,
    /// It runs; the text says which probe fails and why.
    NotYet(String),
    /// It ended; the text is what it printed last.
    Ended(String),
}

impl<'a> Cluster<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        overlay: &str,
        manifest: &'a Manifest,
        images: &Images,
    ) -> Result<Self> {
        let name = format!("mesh-k8s-{}-{overlay}", std::process::id());
        let dir = workspace::target_dir().join("k8s").join(&name);
        fs::create_dir_all(&dir)?;
        let network = Network::new(engine, name)?;
        let mut cluster = Self {
            engine,
            manifest,
            dir,
            containers: Vec::new(),
            search: Search::default(),
            databases: None,
            api: Api::serve(network.gateway()?, manifest)?,
            network,
        };
        let (network, dir) = (&cluster.network.name, &cluster.dir);
        cluster.databases = Databases::start(engine, manifest, images, network, dir)?;
        Ok(cluster)
    }

    /// The workload of this kind and name.
    pub(super) fn workload(&self, kind: &str, name: &str) -> Option<Workload<'a>> {
        self.manifest
            .workloads()
            .find(|it| it.object.kind() == kind && it.object.name() == name)
    }

    /// Runs one pod: what ends to its end, the others until their probes pass.
    pub(super) fn run(&mut self, pod: &Pod<'_>) -> Result<()> {
        let volumes = self.volumes(pod, &pod.name)?;
        for container in pod.workload.containers() {
            let ends = container.is_init || !pod.workload.is_service();
            let begun = Instant::now();
            let name = self.start(container, pod, &volumes)?;
            if ends {
                self.wait_for_end(container, &name)?;
            } else {
                self.wait_until_ready(container, &name, startup_limit(container))?;
            }
            println!(
                "k8s: run: {}: {} {} after {:.1} s",
                container.key(),
                pod.name,
                if ends { "done" } else { "ready" },
                begun.elapsed().as_secs_f64()
            );
        }
        // Before others take their places.
        self.search.know_published(&self.api.secrets())
    }

    /// Starts a container of a pod; its name.
    pub(super) fn start(
        &mut self,
        container: Container<'_>,
        pod: &Pod<'_>,
        volumes: &Volumes,
    ) -> Result<String> {
        let name = format!("{}-{}", self.network.name, self.containers.len());
        let mut docker = self.engine.docker();
        docker.args(["run", "--detach", "--name", &name, "--pull", "never"]);
        docker.args(["--network", &self.network.name, "--hostname", &pod.name]);
        for alias in names::of(self.manifest, pod) {
            docker.args(["--network-alias", &alias]);
        }
        rights(&mut docker, container);
        for (path, volume, is_read_only) in container.mounts() {
            let source = volumes
                .get(volume)
                .with_context(|| format!("{}: no volume {volume}", container.key()))?;
            let mode = if is_read_only { ":ro" } else { "" };
            docker.arg("--volume");
            docker.arg(format!("{}:{path}{mode}", source.display()));
        }
        for (key, value) in self.api.environment() {
            docker.arg("--env").arg(format!("{key}={value}"));
        }
        for pair in container.environment_in(self.manifest, &pod.name) {
            let (key, value) = pair.map_err(anyhow::Error::msg)?;
            docker.arg("--env").arg(format!("{key}={value}"));
        }
        let arguments = container
            .arguments_in(self.manifest, &pod.name)
            .map_err(anyhow::Error::msg)?;
        let has_command = list(container.value, "/command").next().is_some();
        let mut words = arguments.iter();
        if let (true, Some(program)) = (has_command, words.as_slice().first()) {
            words.next();
            docker.args(["--entrypoint", program]);
        }
        docker.arg(text(container.value, "/image")).args(words);
        self.containers.push(Started {
            name: name.clone(),
            of: format!("{} in {}", container.key(), pod.name),
        });
        quiet(&mut docker).with_context(|| {
            format!(
                "{}: are the images there? `cargo xtask images --local-images` makes them",
                container.key()
            )
        })?;
        Ok(name)
    }

    /// Directories for the volumes of a pod, with the owners and modes that a kubelet gives them.
    pub(super) fn volumes(&mut self, pod: &Pod<'_>, below: &str) -> Result<Volumes> {
        let workload = pod.workload;
        let group = group(pod)?;
        let below = self.dir.join(below);
        let mut volumes = Volumes::new();
        for volume in list(workload.pod, "/volumes") {
            let name = text(volume, "/name");
            let dir = below.join(name);
            fs::create_dir_all(&dir)?;
            if volume.get("secret").is_some() {
                let namespace = workload.object.namespace();
                self.secret(namespace, &volume["secret"], &dir, group)?;
            } else if volume.get("emptyDir").is_some() {
                own(&dir, group, 0o2777)?;
            } else if is_account(volume) {
                self.account(pod, &dir)?;
            } else if volume.get("hostPath").is_some() {
                own(&dir, None, 0o755)?;
            }
            volumes.insert(name.to_owned(), dir);
        }
        for claim in list(workload.object.value(), "/spec/volumeClaimTemplates") {
            let dir = below.join(text(claim, "/metadata/name"));
            fs::create_dir_all(&dir)?;
            own(&dir, group, 0o2775)?;
            volumes.insert(text(claim, "/metadata/name").to_owned(), dir);
        }
        Ok(volumes)
    }

    /// Writes the files of a pod's account, with the owner and mode that a kubelet gives them.
    fn account(&mut self, pod: &Pod<'_>, dir: &Path) -> Result<()> {
        let name = text(pod.workload.pod, "/serviceAccountName");
        self.api
            .account(dir, pod.workload.object.namespace(), name)?;
        self.search
            .know_account(&fs::read_to_string(dir.join("token"))?)?;
        let group = group(pod)?;
        for file in fs::read_dir(dir)? {
            own(&file?.path(), group, 0o640)?;
        }
        own(dir, group, 0o755)
    }

    /// Files of a Secret: what the bootstrap has published; of the databases, what their maker says;
    /// else made up.
    fn secret(
        &mut self,
        namespace: &str,
        secret: &Value,
        dir: &Path,
        group: Option<u32>,
    ) -> Result<()> {
        let mode = secret["defaultMode"].as_u64().unwrap_or(0o644);
        let name = text(secret, "/secretName");
        for item in list(secret, "/items") {
            let key = text(item, "/key");
            let content = if name.starts_with(TOKENS) {
                let published = self.api.content(namespace, name, key);
                published.with_context(|| {
                    format!("nobody published the Secret {namespace}/{name} with the key {key}")
                })?
            } else {
                let made = self.dir.join("secrets").join(name).join(key);
                fs::read(made).unwrap_or_else(|_| secret_content(key).into_bytes())
            };
            self.search.know_file(namespace, name, key, &content)?;
            let file = dir.join(text(item, "/path"));
            fs::write(&file, content)?;
            own(&file, group, u32::try_from(mode)?)?;
        }
        own(dir, group, 0o755)
    }

    pub(super) fn wait_for_end(&self, container: Container<'_>, name: &str) -> Result<()> {
        let log = self.wait_for(container, name, LONGEST, |look| match look {
            Look::Ended(log) => Some(log.clone()),
            Look::Ready | Look::NotYet(_) => None,
        })?;
        let code = self.exit_code(name)?;
        ensure!(code == "0", "{}: exit code {code}: {log}", container.key());
        Ok(())
    }

    /// With which a container has ended.
    pub(super) fn exit_code(&self, name: &str) -> Result<String> {
        quiet(self.engine.docker().args(["wait", name]))
    }

    pub(super) fn wait_until_ready(
        &self,
        container: Container<'_>,
        name: &str,
        limit: Duration,
    ) -> Result<()> {
        let ready = |look: &Look| match look {
            Look::Ready => Some(Ok(())),
            Look::NotYet(_) => None,
            Look::Ended(log) => Some(Err(format!("it ended: {log}"))),
        };
        let waited = self.wait_for(container, name, limit, ready)?;
        waited.map_err(|text| anyhow::anyhow!("{}: {text}", container.key()))
    }

    /// Looks at a container until `wanted` makes something of it.
    pub(super) fn wait_for<T>(
        &self,
        container: Container<'_>,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Look) -> Option<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            let look = self.look(container, name)?;
            if let Some(found) = wanted(&look) {
                return Ok(found);
            }
            if begun.elapsed() > limit {
                let reason = match look {
                    Look::Ready => "it runs".to_owned(),
                    Look::NotYet(reason) => reason,
                    Look::Ended(_) => "it ended".to_owned(),
                };
                bail!(
                    "{}: {reason} after {} s: {}",
                    container.key(),
                    limit.as_secs(),
                    self.log(name)?
                );
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks a container's probes once.
    pub(super) fn look(&self, container: Container<'_>, name: &str) -> Result<Look> {
        let state = quiet(self.engine.docker().args([
            "inspect",
            "--format",
            "{{.State.Running}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            name,
        ]))?;
        let (running, address) = state.split_once(' ').unwrap_or((&state, ""));
        if running != "true" {
            return Ok(Look::Ended(self.log(name)?));
        }
        Ok(match probe::all(self.engine, container, name, address) {
            Ok(()) => Look::Ready,
            Err(reason) => Look::NotYet(reason),
        })
    }

    /// The last lines that a container printed.
    fn log(&self, name: &str) -> Result<String> {
        let mut docker = self.engine.docker();
        let output = docker.args(["logs", "--tail", "15", name]).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Ends every container, so that others may have their names; fails when one has logged a secret.
    pub(super) fn clear(&mut self) -> Result<()> {
        if self.containers.is_empty() {
            return Ok(());
        }
        // From here on nobody logs anything more.
        let mut stop = self.engine.docker();
        stop.args(["stop", "--time", "0"]);
        quiet(stop.args(self.containers.iter().map(|it| &it.name)))?;
        self.search.know_published(&self.api.secrets())?;
        for it in &self.containers {
            self.search.search(self.engine, &it.name, &it.of)?;
        }
        self.remove()?;
        self.search.verdict()
    }

    fn remove(&mut self) -> Result<()> {
        let mut remove = self.engine.docker();
        remove.args(["rm", "--force", "--volumes"]);
        quiet(remove.args(self.containers.iter().map(|it| &it.name)))?;
        self.containers.clear();
        Ok(())
    }

    /// Puts another server in the place of a database, when all that used the one before have ended.
    pub(super) fn serve(&mut self, database: Database, server: Server) -> Result<()> {
        // Their names and their locks on the database are for the next ones.
        self.clear()?;
        let databases = self.databases.as_ref();
        let databases = databases.context("there are no databases outside")?;
        let of = format!("{database:?} outside");
        self.search
            .search(self.engine, &databases.container(database), &of)?;
        self.search.verdict()?;
        databases.serve(database, server)
    }

    /// Ends every container for good; what was searched for secrets.
    pub(super) fn end(&mut self) -> Result<String> {
        self.clear()?;
        if let Some(databases) = &self.databases {
            for database in Database::ALL {
                let of = format!("{database:?} outside");
                self.search
                    .search(self.engine, &databases.container(database), &of)?;
            }
        }
        self.search.verdict()?;
        self.search.sum()
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if !self.containers.is_empty() {
            drop(self.remove());
        }
        self.databases = None;
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// Who the container is and what it may do.
fn rights(docker: &mut Command, container: Container<'_>) {
    let pod = &container.workload.pod["securityContext"];
    let own = &container.value["securityContext"];
    let number = |name: &str| {
        let value = own.get(name).or_else(|| pod.get(name));
        value.and_then(Value::as_u64)
    };
    if let Some(user) = number("runAsUser") {
        let group = number("runAsGroup").unwrap_or(0);
        docker.args(["--user", &format!("{user}:{group}")]);
    }
    if let Some(group) = number("fsGroup") {
        docker.args(["--group-add", &group.to_string()]);
    }
    if own["readOnlyRootFilesystem"] == Value::Bool(true) {
        docker.arg("--read-only");
    }
    if own["allowPrivilegeEscalation"] == Value::Bool(false) {
        docker.args(["--security-opt", "no-new-privileges"]);
    }
    for capability in list(own, "/capabilities/drop").filter_map(Value::as_str) {
        docker.args(["--cap-drop", capability]);
    }
    for capability in list(own, "/capabilities/add").filter_map(Value::as_str) {
        docker.args(["--cap-add", capability]);
    }
    let memory = text(container.value, "/resources/limits/memory");
    if !memory.is_empty() {
        let memory = memory.trim_end_matches('i').to_lowercase();
        docker.args(["--memory", &memory]);
    }
}

/// How long the container's own startup probe lets it take.
fn startup_limit(container: Container<'_>) -> Duration {
    let probe = &container.value["startupProbe"];
    let number = |name: &str| probe[name].as_u64().unwrap_or(1);
    Duration::from_secs(number("periodSeconds") * number("failureThreshold")).min(LONGEST)
}

/// The group that owns the volumes of a pod.
fn group(pod: &Pod<'_>) -> Result<Option<u32>> {
    let group = pod.workload.pod.pointer("/securityContext/fsGroup");
    let group = group.and_then(Value::as_u64).map(u32::try_from);
    Ok(group.transpose()?)
}

fn own(path: &Path, group: Option<u32>, mode: u32) -> Result<()> {
    chown(path, Some(0), Some(group.unwrap_or(0)))?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(())
}
