//! Which pods are the same to a container engine, so that one of them is run.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use super::Pod;
use crate::k8s::manifest::Manifest;

/// The pods that ran, by what they are.
#[derive(Default)]
pub(super) struct Known(BTreeMap<String, String>);

impl Known {
    /// Takes a pod in as `label`; `Some`: the one before that is the same.
    pub(super) fn meet(
        &mut self,
        manifest: &Manifest,
        pod: &Pod<'_>,
        label: &str,
    ) -> Result<Option<String>> {
        let content = content(manifest, pod)?.to_string();
        if let Some(before) = self.0.get(&content) {
            return Ok(Some(before.clone()));
        }
        self.0.insert(content, label.to_owned());
        Ok(None)
    }
}

/// A pod's spec, with the values in place of the names of settings. ConfigMaps and Secrets that are
/// mounted stand by their names: kustomize gives a ConfigMap with another content another name.
fn content(manifest: &Manifest, pod: &Pod<'_>) -> Result<Value> {
    let mut containers = Vec::new();
    for container in pod.workload.containers() {
        let environment = container.environment_in(manifest, &pod.name).into_iter();
        let environment: Vec<_> = environment
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::msg)?;
        let mut value = container.value.clone();
        value["env"] = json!(environment);
        containers.push(json!({ "is_init": container.is_init, "value": value }));
    }
    let mut spec = pod.workload.pod.clone();
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("initContainers");
    }
    spec["containers"] = json!(containers);
    let object = pod.workload.object;
    if object.kind() == "StatefulSet" {
        // Its pods know themselves by their names, and keep what they write.
        spec["hostname"] = json!(pod.name);
        spec["claims"] = object.value()["spec"]["volumeClaimTemplates"].clone();
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn manifest(kind: &str, map: &str, level: &str) -> Manifest {
        let from = json!({ "configMapKeyRef": { "name": map, "key": "level" } });
        let env = json!([{ "name": "LEVEL", "valueFrom": from }]);
        let template = json!({
            "metadata": {}, "spec": { "containers": [{ "name": "a", "env": env }] },
        });
        let values = vec![
            json!({ "kind": "ConfigMap", "metadata": { "name": map }, "data": { "level": level } }),
            json!({
                "kind": kind, "metadata": { "name": "a" },
                "spec": { "replicas": 2, "template": template },
            }),
        ];
        Manifest::new(values, BTreeSet::new())
    }

    #[test]
    fn pods_are_the_same_by_their_values_and_not_by_the_names_of_settings() {
        let mut known = Known::default();
        let mut meet = |kind: &str, map: &str, level: &str| {
            let manifest = manifest(kind, map, level);
            let pods: Vec<_> = manifest.workloads().flat_map(Pod::all).collect();
            let label = format!("{kind} {map}");
            let met = |pod| known.meet(&manifest, pod, &label).expect("good");
            pods.iter().map(met).collect::<Vec<_>>()
        };
        assert_eq!(meet("Job", "one", "info"), [None]);
        assert_eq!(meet("Job", "two", "info"), [Some("Job one".to_owned())]);
        assert_eq!(meet("Job", "three", "debug"), [None]);
        // Each pod of a StatefulSet is one of its own.
        assert_eq!(meet("StatefulSet", "one", "info"), [None, None]);
    }
}
