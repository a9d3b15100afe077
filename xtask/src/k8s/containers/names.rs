//! The names that lead to a pod: of the cluster's Services, and those that the world outside knows.

use serde_json::Value;

use super::Pod;
use crate::k8s::manifest::{self, Manifest, Workload};

/// Puts the name of a StatefulSet's pod among its labels, as Kubernetes does.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";

/// The names under which a pod is reached, each once.
pub(super) fn of(manifest: &Manifest, pod: &Pod<'_>) -> Vec<String> {
    let namespace = pod.workload.object.namespace();
    let mut labels = pod.workload.labels();
    if pod.workload.object.kind() == "StatefulSet" {
        labels.insert(POD_NAME.to_owned(), pod.name.clone());
    }
    let mut names = Vec::new();
    for service in manifest.of_kind("Service") {
        let wanted = manifest::labels(service.value(), "/spec/selector");
        if service.namespace() != namespace || !manifest::selects(&wanted, &labels) {
            continue;
        }
        let host = format!("{}.{namespace}.svc.cluster.local", service.name());
        if service.value()["spec"]["clusterIP"] == "None" {
            names.push(format!("{}.{host}", pod.name));
        }
        names.push(host);
        // The guide has DNS lead from here to the load balancer of the Service.
        if service.value()["spec"]["type"] == "LoadBalancer"
            && let Some(domain) = setting(manifest, "relay-domain")
        {
            names.push(format!("{}.{domain}", service.name()));
        }
    }
    names.extend(ways_in(manifest, pod.workload));
    names.sort();
    names.dedup();
    names
}

/// The hosts that an Ingress or a Gateway listens on for the coordinator.
fn ways_in(manifest: &Manifest, workload: Workload<'_>) -> Vec<String> {
    if workload.object.name() != "coordinator" {
        return Vec::new();
    }
    let addresses = setting(manifest, "coordinator-advertise").unwrap_or_default();
    addresses
        .split(',')
        .filter_map(|address| address.rsplit_once(':'))
        .map(|(host, _)| host.to_owned())
        .collect()
}

/// A value of the overlay's settings.
pub(super) fn setting<'a>(manifest: &'a Manifest, key: &str) -> Option<&'a str> {
    manifest
        .of_kind("ConfigMap")
        .find_map(|map| map.value()["data"].get(key))
        .and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_has_the_names_of_its_services_and_of_its_own_load_balancer() {
        let service = |name: &str, spec: Value| {
            let metadata = json!({ "name": name, "namespace": "mesh" });
            json!({ "kind": "Service", "metadata": metadata, "spec": spec })
        };
        let own = |number| json!({ POD_NAME: format!("relay-{number}") });
        let balancer = |number| json!({ "type": "LoadBalancer", "selector": own(number) });
        let workload = json!({
            "kind": "StatefulSet",
            "metadata": { "name": "relay", "namespace": "mesh" },
            "spec": { "replicas": 2, "template": {
                "metadata": { "labels": { "app": "relay" } }, "spec": {},
            }},
        });
        let values = vec![
            json!({ "kind": "ConfigMap", "data": { "relay-domain": "example.org" } }),
            service(
                "relay",
                json!({ "clusterIP": "None", "selector": { "app": "relay" } }),
            ),
            service("other", json!({ "selector": { "app": "other" } })),
            service("relay-0", balancer(0)),
            service("relay-1", balancer(1)),
            workload,
        ];
        let manifest = Manifest::new(values, BTreeSet::new());
        let pods: Vec<_> = manifest.workloads().flat_map(Pod::all).collect();
        assert_eq!(
            of(&manifest, &pods[1]),
            [
                "relay-1.example.org",
                "relay-1.mesh.svc.cluster.local",
                "relay-1.relay.mesh.svc.cluster.local",
                "relay.mesh.svc.cluster.local",
            ]
        );
    }
}
