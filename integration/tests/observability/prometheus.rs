//! A Prometheus of the machine's package, with the installation's own configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use mesh_testkit::{Child, Curl, Host, eventually};
use serde_json::Value;
use tempfile::TempDir;

const PORT: u16 = 9090;

/// A running Prometheus; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Prometheus {
    host: Host,
    child: Child,
    _folder: TempDir,
}

/// The folder with what is deployed.
pub(crate) fn deployed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/observability")
}

/// Every file of a folder, by name.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// What a rule looks back over, when it is hurried.
const WINDOW: &str = "[20s]";

/// A rule file in which nothing has to last and nothing is looked back on for long: the time part
/// is tested by `promtool`.
fn hurried(rules: &str) -> String {
    let line = |line: &str| match line.trim_start().starts_with("for: ") {
        true => format!("{}for: 2s\n", &line[..line.len() - line.trim_start().len()]),
        false => format!("{line}\n"),
    };
    let mut rules: String = rules.lines().map(line).collect();
    for window in ["[5m]", "[10m]", "[15m]"] {
        rules = rules.replace(window, WINDOW);
    }
    rules
}

impl Prometheus {
    /// Starts it on a host, with the deployed configuration and rules. `targets` says where each
    /// of the configuration's targets is here.
    pub(crate) fn start(host: &Host, targets: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut config = std::fs::read_to_string(deployed().join("prometheus.yml"))?;
        for (deployed, here) in targets {
            ensure!(config.contains(deployed), "no target {deployed}");
            config = config.replace(deployed, here);
        }
        config = config.replace("interval: 15s", "interval: 1s");
        std::fs::write(folder.path().join("prometheus.yml"), config)?;
        std::fs::create_dir(folder.path().join("rules"))?;
        for path in files(&deployed().join("rules"))? {
            let name = path.file_name().context("a file has a name")?;
            let rules = hurried(&std::fs::read_to_string(&path)?);
            std::fs::write(folder.path().join("rules").join(name), rules)?;
        }
        let child = host
            .spec("prometheus")
            .arg(format!(
                "--config.file={}",
                folder.path().join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .spawn()?;
        let prometheus = Self {
            host: host.clone(),
            child,
            _folder: folder,
        };
        eventually("Prometheus is ready", Duration::from_secs(30), || {
            prometheus.get("/-/ready", &[])
        });
        Ok(prometheus)
    }

    fn get(&self, path: &str, args: &[&str]) -> anyhow::Result<String> {
        let url = format!("http://127.0.0.1:{PORT}{path}");
        Curl::new()
            .on(Some(&self.host))
            .args(args)
            .get(url)?
            .ok()
            .with_context(|| self.child.log().tail(5))
    }

    /// The jobs whose targets are all up, each with how many there are.
    pub(crate) fn up(&self) -> anyhow::Result<Vec<(String, bool)>> {
        let answer: Value = serde_json::from_str(&self.get("/api/v1/targets", &[])?)?;
        let targets = answer["data"]["activeTargets"].as_array();
        let targets = targets.context("no targets")?.iter();
        Ok(targets
            .map(|target| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&target["labels"]["job"]), target["health"] == "up")
            })
            .collect())
    }

    /// The samples of a query: labels and values.
    pub(crate) fn query(&self, query: &str) -> anyhow::Result<Vec<(Value, f64)>> {
        let query = format!("query={query}");
        let args = ["--get", "--data-urlencode", &query];
        let answer: Value = serde_json::from_str(&self.get("/api/v1/query", &args)?)?;
        let samples = answer["data"]["result"].as_array();
        samples
            .with_context(|| format!("no result: {answer}"))?
            .iter()
            .map(|sample| {
                let value = sample["value"][1].as_str().context("no value")?;
                Ok((sample["metric"].clone(), value.parse()?))
            })
            .collect()
    }

    /// The alerts that fire.
    pub(crate) fn firing(&self) -> anyhow::Result<Vec<Value>> {
        let answer: Value = serde_json::from_str(&self.get("/api/v1/alerts", &[])?)?;
        let alerts = answer["data"]["alerts"].as_array().context("no alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing.cloned().collect())
    }
}
