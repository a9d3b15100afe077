//! The pods of the overlay `dev`, run by a container engine as the manifests say: the same image,
//! command, environment, user, groups, capabilities, limits, read-only root and volumes, until each
//! container's own probe passes.
//!
//! What a cluster does besides is done by hand here: names of Services are aliases in the engine's
//! network, volumes are directories, Secrets are made up, and what the bootstrap's second container
//! would tell Kubernetes is read from its kustomization and put into Secrets.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::manifest::{self, Container, Manifest, Workload, list, text};
use super::settings::secret_content;
use crate::compose::Engine;
use crate::{process, workspace};

mod probe;

/// In this order, since nobody restarts here what comes too early.
const ORDER: &[(&str, &str)] = &[
    ("StatefulSet", "postgres"),
    ("Deployment", "redis"),
    ("Job", "mesh-bootstrap"),
    ("Deployment", "coordinator"),
    ("StatefulSet", "relay"),
    ("StatefulSet", "traffic-gateway"),
    ("StatefulSet", "deploy-manager"),
    ("DaemonSet", "worker-agent"),
];

/// How long a container that does not become ready is watched when it is meant not to.
const PLANTED_LIMIT: Duration = Duration::from_secs(15);

/// Runs every pod, and then two that must not work.
pub(super) fn run(manifest: &Manifest) -> Result<()> {
    ensure!(
        process::is_root(),
        "volumes get other owners here: run `cargo xtask k8s --run` as root"
    );
    let artefacts = workspace::target_dir().join("ci");
    fs::create_dir_all(&artefacts)?;
    let engine = Engine::open(&artefacts)?;
    let mut cluster = Cluster::new(&engine, manifest)?;
    for (kind, name) in ORDER {
        let workload = manifest
            .workloads()
            .find(|it| it.object.kind() == *kind && it.object.name() == *name)
            .with_context(|| format!("there is no {kind} {name}"))?;
        cluster.pod(workload)?;
    }
    for workload in manifest.workloads() {
        let known = ORDER
            .iter()
            .any(|(kind, name)| workload.object.kind() == *kind && workload.object.name() == *name);
        // The CronJob's pod is the Job's.
        ensure!(
            known || workload.object.kind() == "CronJob",
            "{} is new: say in xtask's k8s/containers.rs when it starts",
            workload.object.key()
        );
    }
    cluster.planted()
}

struct Cluster<'a> {
    engine: &'a Engine,
    manifest: &'a Manifest,
    network: String,
    /// Volumes and Secrets.
    dir: PathBuf,
    /// Names of containers, to be removed.
    containers: Vec<String>,
}

/// Where the volumes of one pod are.
type Volumes = BTreeMap<String, PathBuf>;

impl<'a> Cluster<'a> {
    fn new(engine: &'a Engine, manifest: &'a Manifest) -> Result<Self> {
        let network = format!("mesh-k8s-{}", std::process::id());
        let dir = workspace::target_dir().join("k8s").join(&network);
        fs::create_dir_all(&dir)?;
        quiet(engine.docker().args(["network", "create", &network]))?;
        Ok(Self {
            engine,
            manifest,
            network,
            dir,
            containers: Vec::new(),
        })
    }

    /// Runs one pod: its init containers to their end, the others until their probes pass.
    fn pod(&mut self, workload: Workload<'_>) -> Result<()> {
        let volumes = self.volumes(workload, workload.object.name())?;
        for container in workload.containers() {
            let is_ours = container.program().is_some();
            if !container.is_init && !workload.is_service() {
                ensure!(!is_ours, "{}: nothing runs it here", container.key());
                self.publish(&volumes)?;
                continue;
            }
            let begun = Instant::now();
            let name = self.start(container, &volumes)?;
            if container.is_init {
                self.wait_for_end(&name)?;
            } else {
                self.wait_until_ready(container, &name, startup_limit(container))?;
            }
            println!(
                "k8s: run: {}: {} after {:.1} s",
                container.key(),
                if container.is_init { "done" } else { "ready" },
                begun.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }

    fn start(&mut self, container: Container<'_>, volumes: &Volumes) -> Result<String> {
        let workload = container.workload;
        let pod = match workload.object.kind() {
            "StatefulSet" => format!("{}-0", workload.object.name()),
            _ => workload.object.name().to_owned(),
        };
        let name = format!("{}-{}", self.network, self.containers.len());
        let mut docker = self.engine.docker();
        docker.args(["run", "--detach", "--name", &name, "--pull", "never"]);
        docker.args(["--network", &self.network, "--hostname", &pod]);
        for alias in self.aliases(workload, &pod) {
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
        for pair in container.environment(self.manifest) {
            let (key, value) = pair.map_err(anyhow::Error::msg)?;
            docker.arg("--env").arg(format!("{key}={value}"));
        }
        let arguments = container
            .arguments(self.manifest)
            .map_err(anyhow::Error::msg)?;
        let has_command = list(container.value, "/command").next().is_some();
        let mut words = arguments.iter();
        if let (true, Some(program)) = (has_command, words.as_slice().first()) {
            words.next();
            docker.args(["--entrypoint", program]);
        }
        docker.arg(text(container.value, "/image")).args(words);
        quiet(&mut docker).with_context(|| {
            format!(
                "{}: are the images there? `cargo xtask images --local-images` makes them",
                container.key()
            )
        })?;
        self.containers.push(name.clone());
        Ok(name)
    }

    /// The names under which Services lead to a pod.
    fn aliases(&self, workload: Workload<'_>, pod: &str) -> Vec<String> {
        let namespace = workload.object.namespace();
        let mut aliases = Vec::new();
        for service in self.manifest.of_kind("Service") {
            let wanted = manifest::labels(service.value(), "/spec/selector");
            if service.namespace() != namespace || !manifest::selects(&wanted, &workload.labels()) {
                continue;
            }
            let host = format!("{}.{namespace}.svc.cluster.local", service.name());
            if service.value()["spec"]["clusterIP"] == "None" {
                aliases.push(format!("{pod}.{host}"));
            }
            aliases.push(host);
        }
        aliases
    }

    /// Directories for the volumes of a pod, with the owners and modes that a kubelet gives them.
    fn volumes(&self, workload: Workload<'_>, pod: &str) -> Result<Volumes> {
        let group = workload.pod.pointer("/securityContext/fsGroup");
        let group = group
            .and_then(Value::as_u64)
            .map(u32::try_from)
            .transpose()?;
        let below = self.dir.join(pod);
        let mut volumes = Volumes::new();
        for volume in list(workload.pod, "/volumes") {
            let name = text(volume, "/name");
            let dir = below.join(name);
            fs::create_dir_all(&dir)?;
            if volume.get("secret").is_some() {
                self.secret(&volume["secret"], &dir, group)?;
            } else if volume.get("emptyDir").is_some() {
                own(&dir, group, 0o2777)?;
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

    /// Files of a Secret: those that the bootstrap made, else made up.
    fn secret(&self, secret: &Value, dir: &std::path::Path, group: Option<u32>) -> Result<()> {
        let mode = secret["defaultMode"].as_u64().unwrap_or(0o644);
        for item in list(secret, "/items") {
            let key = text(item, "/key");
            let made = self
                .dir
                .join("secrets")
                .join(text(secret, "/secretName"))
                .join(key);
            let content = fs::read(made).unwrap_or_else(|_| secret_content(key).into_bytes());
            let file = dir.join(text(item, "/path"));
            fs::write(&file, content)?;
            own(&file, group, u32::try_from(mode)?)?;
        }
        own(dir, group, 0o755)
    }

    /// What the bootstrap's second container has Kubernetes do, by the same kustomization.
    fn publish(&self, volumes: &Volumes) -> Result<()> {
        let files = volumes.get("files").context("no volume for the tokens")?;
        let map = self
            .manifest
            .of_kind("ConfigMap")
            .find_map(|map| map.value()["data"]["kustomization.yaml"].as_str())
            .context("no ConfigMap has the kustomization of the bootstrap")?;
        let kustomization = manifest::parse(map)?;
        let kustomization = kustomization.first().context("it is empty")?;
        for secret in list(kustomization, "/secretGenerator") {
            let name = text(secret, "/name");
            let dir = self.dir.join("secrets").join(name);
            fs::create_dir_all(&dir)?;
            for file in list(secret, "/files").filter_map(Value::as_str) {
                let (key, path) = file.split_once('=').context("a file without a key")?;
                let path = path.strip_prefix("files/").context("a file elsewhere")?;
                fs::copy(files.join(path), dir.join(key))
                    .with_context(|| format!("the bootstrap made no {path} for Secret {name}"))?;
            }
        }
        Ok(())
    }

    fn wait_for_end(&self, name: &str) -> Result<()> {
        let code = quiet(self.engine.docker().args(["wait", name]))?;
        if code != "0" {
            bail!("exit code {code}: {}", self.log(name)?);
        }
        Ok(())
    }

    fn wait_until_ready(
        &self,
        container: Container<'_>,
        name: &str,
        limit: Duration,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            let state = quiet(self.engine.docker().args([
                "inspect",
                "--format",
                "{{.State.Running}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
                name,
            ]))?;
            let (running, address) = state.split_once(' ').unwrap_or((&state, ""));
            if running != "true" {
                bail!("{}: it ended: {}", container.key(), self.log(name)?);
            }
            let asked = probe::all(self.engine, container, name, address);
            let Err(reason) = asked else { return Ok(()) };
            if begun.elapsed() > limit {
                bail!(
                    "{}: {reason} after {} s: {}",
                    container.key(),
                    limit.as_secs(),
                    self.log(name)?
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The last lines that a container printed.
    fn log(&self, name: &str) -> Result<String> {
        let mut docker = self.engine.docker();
        let output = docker.args(["logs", "--tail", "15", name]).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// A relay that has nowhere to write, and one that is asked on another port, must be found out.
    fn planted(&mut self) -> Result<()> {
        let relay = |manifest: &'a Manifest| {
            manifest
                .workloads()
                .find(|it| it.object.name() == "relay")
                .context("there is no relay")
        };
        let workload = relay(self.manifest)?;
        let container = workload.containers()[0];
        let volumes = self.volumes(workload, "planted")?;

        let mut homeless = container.value.clone();
        let mounts = homeless["volumeMounts"].as_array_mut();
        mounts
            .context("no mounts")?
            .retain(|mount| mount["name"] != "state");
        let mut deaf = container.value.clone();
        deaf["ports"]
            .as_array_mut()
            .context("no ports")?
            .iter_mut()
            .filter(|port| port["name"] == "admin")
            .for_each(|port| port["containerPort"] = Value::from(9499));
        for (what, value, wanted) in [
            ("nowhere to write", &homeless, "it ended"),
            ("a probe of a wrong port", &deaf, "startupProbe"),
        ] {
            let planted = Container { value, ..container };
            let name = self.start(planted, &volumes)?;
            match self.wait_until_ready(planted, &name, PLANTED_LIMIT) {
                Err(error) if error.to_string().contains(wanted) => {
                    let text = error.to_string();
                    let line = text.lines().next().unwrap_or_default();
                    println!("k8s: run: planted: {what}: {line}");
                }
                Err(error) => return Err(error.context(format!("planted: {what}"))),
                Ok(()) => bail!("planted: {what}: it became ready all the same"),
            }
        }
        Ok(())
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if !self.containers.is_empty() {
            let mut remove = self.engine.docker();
            remove.args(["rm", "--force", "--volumes"]);
            drop(quiet(remove.args(&self.containers)));
        }
        let mut network = self.engine.docker();
        drop(quiet(network.args(["network", "rm", &self.network])));
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
    // A fault should not hold a run up for as long as a cluster may wait for its other parts.
    Duration::from_secs((number("periodSeconds") * number("failureThreshold")).min(120))
}

fn own(path: &std::path::Path, group: Option<u32>, mode: u32) -> Result<()> {
    chown(path, Some(0), Some(group.unwrap_or(0)))?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(())
}

/// What a command prints, trimmed; what it complains of is the error.
fn quiet(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{}: {}",
        process::describe(command),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
