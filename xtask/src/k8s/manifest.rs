//! Rendered manifests, and the questions that the checks ask of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// What one overlay renders to.
#[derive(Clone)]
pub(super) struct Manifest {
    pub(super) values: Vec<Value>,
    /// `(secret, key)` that the guide tells people to make, or that the bootstrap makes.
    pub(super) documented: BTreeSet<(String, String)>,
}

/// One object of the API.
#[derive(Clone, Copy)]
pub(super) struct Object<'a>(&'a Value);

/// Something that makes pods.
#[derive(Clone, Copy)]
pub(super) struct Workload<'a> {
    pub(super) object: Object<'a>,
    /// The pod's `metadata`.
    metadata: &'a Value,
    /// The pod's `spec`.
    pub(super) pod: &'a Value,
}

/// One container of a workload.
#[derive(Clone, Copy)]
pub(super) struct Container<'a> {
    pub(super) workload: Workload<'a>,
    pub(super) value: &'a Value,
    pub(super) is_init: bool,
}

pub(super) type Labels = BTreeMap<String, String>;

/// Reads YAML documents.
pub(super) fn parse(text: &str) -> Result<Vec<Value>> {
    let documents = YamlLoader::load_from_str(text).context("this is not YAML")?;
    documents.iter().map(json).collect()
}

fn json(yaml: &Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(value) => Value::from(*value),
        Yaml::Integer(value) => Value::from(*value),
        Yaml::Real(text) => Value::from(text.parse::<f64>().context("a number")?),
        Yaml::String(text) => Value::from(text.as_str()),
        Yaml::Array(items) => Value::Array(items.iter().map(json).collect::<Result<_>>()?),
        Yaml::Hash(map) => {
            let mut object = Map::new();
            for (key, value) in map {
                let key = key.as_str().context("a key that is no text")?;
                object.insert(key.to_owned(), json(value)?);
            }
            Value::Object(object)
        }
        Yaml::Alias(_) | Yaml::BadValue => bail!("an alias or a bad value"),
    })
}

/// A text below a value, by a JSON pointer; empty when there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The list below a value; empty when there is none.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The texts of a map below a value.
pub(super) fn labels(value: &Value, pointer: &str) -> Labels {
    let map = value.pointer(pointer).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// Whether `has` carries all that `wanted` asks for.
pub(super) fn selects(wanted: &Labels, has: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| has.get(key) == Some(value))
}

impl Manifest {
    pub(super) fn new(values: Vec<Value>, documented: BTreeSet<(String, String)>) -> Self {
        Self { values, documented }
    }

    pub(super) fn objects(&self) -> impl Iterator<Item = Object<'_>> {
        self.values.iter().map(Object)
    }

    pub(super) fn of_kind<'a>(&'a self, kind: &str) -> impl Iterator<Item = Object<'a>> {
        self.objects().filter(move |object| object.kind() == kind)
    }

    pub(super) fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<Object<'_>> {
        self.of_kind(kind)
            .find(|object| object.namespace() == namespace && object.name() == name)
    }

    pub(super) fn workloads(&self) -> impl Iterator<Item = Workload<'_>> {
        self.objects().filter_map(Workload::of)
    }

    /// The workloads of a namespace whose pods carry these labels.
    pub(super) fn selected<'a>(&'a self, namespace: &str, wanted: &Labels) -> Vec<Workload<'a>> {
        self.workloads()
            .filter(|workload| {
                workload.object.namespace() == namespace && selects(wanted, &workload.labels())
            })
            .collect()
    }

    pub(super) fn containers(&self) -> impl Iterator<Item = Container<'_>> {
        self.workloads().flat_map(|workload| workload.containers())
    }

    /// One value of a ConfigMap.
    pub(super) fn setting(&self, namespace: &str, map: &str, key: &str) -> Option<&str> {
        let map = self.find("ConfigMap", namespace, map)?.0;
        map.get("data")?.get(key)?.as_str()
    }
}

impl<'a> Object<'a> {
    pub(super) fn value(self) -> &'a Value {
        self.0
    }

    pub(super) fn kind(self) -> &'a str {
        text(self.0, "/kind")
    }

    pub(super) fn api_version(self) -> &'a str {
        text(self.0, "/apiVersion")
    }

    pub(super) fn name(self) -> &'a str {
        text(self.0, "/metadata/name")
    }

    pub(super) fn namespace(self) -> &'a str {
        text(self.0, "/metadata/namespace")
    }

    /// How messages call it.
    pub(super) fn key(self) -> String {
        format!("{} {}/{}", self.kind(), self.namespace(), self.name())
    }
}

/// Where Kubernetes puts what a container needs to speak to its API.
pub(super) const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Whether a volume has what a container needs to speak to Kubernetes' API.
pub(super) fn is_account(volume: &Value) -> bool {
    ["serviceAccountToken", "configMap", "downwardAPI"]
        .iter()
        .all(|source| has_source(volume, source))
}

fn has_source(volume: &Value, source: &str) -> bool {
    list(volume, "/projected/sources").any(|it| it.get(source).is_some())
}

impl<'a> Workload<'a> {
    fn of(object: Object<'a>) -> Option<Self> {
        let template = match object.kind() {
            "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => "/spec/template",
            "CronJob" => "/spec/jobTemplate/spec/template",
            _ => return None,
        };
        let template = object.0.pointer(template)?;
        Some(Self {
            object,
            metadata: template.get("metadata")?,
            pod: template.get("spec")?,
        })
    }

    /// The labels of its pods; of a StatefulSet's with the name of the first.
    pub(super) fn labels(self) -> Labels {
        labels(self.metadata, "/labels")
    }

    /// The names that the pods of a StatefulSet get, for Services of one pod.
    pub(super) fn pod_names(self) -> Vec<String> {
        if self.object.kind() != "StatefulSet" {
            return Vec::new();
        }
        let replicas = self.object.0.pointer("/spec/replicas");
        let replicas = replicas.and_then(Value::as_u64).unwrap_or(1);
        (0..replicas)
            .map(|number| format!("{}-{number}", self.object.name()))
            .collect()
    }

    /// Whether it runs until it is told to stop.
    pub(super) fn is_service(self) -> bool {
        !matches!(self.object.kind(), "Job" | "CronJob")
    }

    /// Whether Kubernetes would put a token for its API into each of its containers.
    pub(super) fn has_tokens_unasked(self) -> bool {
        self.pod["automountServiceAccountToken"] != Value::Bool(false)
    }

    pub(super) fn containers(self) -> Vec<Container<'a>> {
        let of = move |value: &'a Value, is_init| Container {
            workload: self,
            value,
            is_init,
        };
        let first = list(self.pod, "/initContainers").map(move |value| of(value, true));
        first
            .chain(list(self.pod, "/containers").map(move |value| of(value, false)))
            .collect()
    }

    /// `(name, number, protocol)` of every port of its pods.
    pub(super) fn ports(self) -> Vec<(&'a str, u64, &'a str)> {
        self.containers()
            .into_iter()
            .flat_map(Container::ports)
            .collect()
    }
}

impl<'a> Container<'a> {
    pub(super) fn key(self) -> String {
        format!(
            "{}: container {}",
            self.workload.object.key(),
            text(self.value, "/name")
        )
    }

    pub(super) fn namespace(self) -> &'a str {
        self.workload.object.namespace()
    }

    /// The program of ours that its image is for.
    pub(super) fn program(self) -> Option<&'a str> {
        let image = text(self.value, "/image").strip_prefix("wonder-mesh/")?;
        Some(image.split_once(':').map_or(image, |(name, _)| name))
    }

    /// Whether it holds a token for Kubernetes' API, wherever that is.
    pub(super) fn holds_token(self) -> bool {
        self.mounts_that(|_, volume| has_source(volume, "serviceAccountToken"))
    }

    /// Whether it has all that programs need to speak to that API, where they look for it.
    pub(super) fn reaches_api(self) -> bool {
        self.mounts_that(|path, volume| path == ACCOUNT && is_account(volume))
    }

    fn mounts_that(self, is_so: impl Fn(&str, &Value) -> bool) -> bool {
        self.mounts().any(|(path, name, _)| {
            list(self.workload.pod, "/volumes")
                .any(|volume| text(volume, "/name") == name && is_so(path, volume))
        })
    }

    /// Whether it puts what the bootstrap wrote into Secrets.
    pub(super) fn publishes(self) -> bool {
        self.program().is_some() && text(self.value, "/args/0") == "publish-secrets"
    }

    pub(super) fn ports(self) -> impl Iterator<Item = (&'a str, u64, &'a str)> {
        list(self.value, "/ports").map(|port| {
            let protocol = text(port, "/protocol");
            (
                text(port, "/name"),
                port["containerPort"].as_u64().unwrap_or_default(),
                if protocol.is_empty() { "TCP" } else { protocol },
            )
        })
    }

    /// The environment in the first pod.
    pub(super) fn environment(self, manifest: &Manifest) -> Vec<Result<(String, String), String>> {
        self.environment_in(manifest, &format!("{}-0", self.workload.object.name()))
    }

    /// The environment in order, in the pod of this name; values from elsewhere are looked up, and
    /// the machine is called like the pod. `Err` says what cannot be found.
    pub(super) fn environment_in(
        self,
        manifest: &Manifest,
        pod: &str,
    ) -> Vec<Result<(String, String), String>> {
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        let mut found = Vec::new();
        for entry in list(self.value, "/env") {
            let name = text(entry, "/name").to_owned();
            let value = if let Some(value) = entry.get("value").and_then(Value::as_str) {
                expand(value, &known).map_err(|variable| {
                    format!("{name} names $({variable}), which is not set before it")
                })
            } else if let Some(from) = entry.pointer("/valueFrom/configMapKeyRef") {
                let (map, key) = (text(from, "/name"), text(from, "/key"));
                manifest
                    .setting(self.namespace(), map, key)
                    .map(str::to_owned)
                    .ok_or_else(|| format!("{name} asks for {key} of ConfigMap {map}: not there"))
            } else if entry.pointer("/valueFrom/fieldRef").is_some() {
                Ok(pod.to_owned())
            } else {
                Err(format!("{name} has no value"))
            };
            if let Ok(value) = &value {
                known.insert(name.clone(), value.clone());
            }
            found.push(value.map(|value| (name, value)));
        }
        found
    }

    /// The arguments in the first pod.
    pub(super) fn arguments(self, manifest: &Manifest) -> Result<Vec<String>, String> {
        self.arguments_in(manifest, &format!("{}-0", self.workload.object.name()))
    }

    /// The arguments in the pod of this name, with `$(NAME)` replaced.
    pub(super) fn arguments_in(
        self,
        manifest: &Manifest,
        pod: &str,
    ) -> Result<Vec<String>, String> {
        let environment = self.environment_in(manifest, pod);
        let known: BTreeMap<String, String> = environment.into_iter().flatten().collect();
        ["/command", "/args"]
            .into_iter()
            .flat_map(|pointer| list(self.value, pointer))
            .filter_map(Value::as_str)
            .map(|word| {
                expand(word, &known).map_err(|variable| {
                    format!("an argument names $({variable}), which is not set")
                })
            })
            .collect()
    }

    /// `(path, volume, is read-only)` of its mounts.
    pub(super) fn mounts(self) -> impl Iterator<Item = (&'a str, &'a str, bool)> {
        list(self.value, "/volumeMounts").map(|mount| {
            let is_read_only = mount["readOnly"].as_bool().unwrap_or(false);
            (
                text(mount, "/mountPath"),
                text(mount, "/name"),
                is_read_only,
            )
        })
    }

    /// The mount that a path lies on.
    pub(super) fn mount_of(self, path: &str) -> Option<(&'a str, &'a str, bool)> {
        self.mounts()
            .filter(|(at, ..)| {
                path.strip_prefix(at)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
            .max_by_key(|(at, ..)| at.len())
    }
}

/// Replaces `$(NAME)`; `Err` is a name that is not known. Kubernetes leaves alone what cannot be a
/// name, such as a shell's `$(cat file)`.
fn expand(text: &str, known: &BTreeMap<String, String>) -> Result<String, String> {
    let mut rest = text;
    let mut done = String::new();
    while let Some((before, after)) = rest.split_once("$(") {
        let Some((name, after)) = after.split_once(')') else {
            break;
        };
        done.push_str(before);
        if name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            done.push_str(known.get(name).ok_or(name)?);
        } else {
            done.push_str(&format!("$({name})"));
        }
        rest = after;
    }
    Ok(done + rest)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_are_read_with_their_types() {
        let text = "a: 1\nb: \"1\"\nc: [true, x]\n---\nd: |\n  two\n  lines\n";
        let wanted = [
            json!({ "a": 1, "b": "1", "c": [true, "x"] }),
            json!({ "d": "two\nlines\n" }),
        ];
        assert_eq!(parse(text).expect("YAML"), wanted);
        assert!(parse("a: [").is_err());
    }

    #[test]
    fn variables_are_replaced_when_they_are_known() {
        let known = BTreeMap::from([("A".to_owned(), "x".to_owned())]);
        assert_eq!(expand("$(A).b$(A)", &known).as_deref(), Ok("x.bx"));
        assert_eq!(expand("$(B)", &known), Err("B".to_owned()));
        assert_eq!(expand("$(cat x) $(A)", &known).as_deref(), Ok("$(cat x) x"));
        assert_eq!(expand("$HOME (a)", &known).as_deref(), Ok("$HOME (a)"));
    }
}
