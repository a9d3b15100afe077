//! Who names whom: everything that is named exists, and everything that exists is named.

use std::collections::BTreeSet;

use serde_json::Value;

use super::manifest::{Labels, Manifest, Object, Workload, labels, list, selects, text};

mod policies;
mod rights;
mod routes;

/// Kinds that we use, as they are spelt, and whether they live in a namespace.
const KINDS: &[(&str, bool)] = &[
    ("ConfigMap", true),
    ("CronJob", true),
    ("DaemonSet", true),
    ("Deployment", true),
    ("Gateway", true),
    ("HTTPRoute", true),
    ("Ingress", true),
    ("Job", true),
    ("Namespace", false),
    ("NetworkPolicy", true),
    ("PodDisruptionBudget", true),
    ("Role", true),
    ("RoleBinding", true),
    ("Service", true),
    ("ServiceAccount", true),
    ("ServiceMonitor", true),
    ("StatefulSet", true),
    ("TLSRoute", true),
];

pub(super) fn check(manifest: &Manifest) -> Vec<String> {
    let mut faults = Vec::new();
    objects(manifest, &mut faults);
    workloads(manifest, &mut faults);
    services(manifest, &mut faults);
    accounts(manifest, &mut faults);
    rights::check(manifest, &mut faults);
    settings_and_secrets(manifest, &mut faults);
    volumes(manifest, &mut faults);
    names_in_settings(manifest, &mut faults);
    policies::check(manifest, &mut faults);
    routes::check(manifest, &mut faults);
    faults
}

fn objects(manifest: &Manifest, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for object in manifest.objects() {
        let key = object.key();
        if !seen.insert(key.clone()) {
            faults.push(format!("{key} is there twice"));
        }
        match KINDS.iter().find(|(kind, _)| *kind == object.kind()) {
            None => faults.push(format!("{key}: unknown kind {}", object.kind())),
            Some((_, true)) if manifest.find("Namespace", "", object.namespace()).is_none() => {
                faults.push(format!("{key}: there is no such namespace"));
            }
            Some(_) => {}
        }
    }
}

fn workloads(manifest: &Manifest, faults: &mut Vec<String>) {
    for workload in manifest.workloads().filter(|it| it.is_service()) {
        let object = workload.object;
        let wanted = labels(object.value(), "/spec/selector/matchLabels");
        if wanted.is_empty() || !selects(&wanted, &workload.labels()) {
            faults.push(format!(
                "{}: its selector does not match its own pods",
                object.key()
            ));
        }
        let selected = manifest.selected(object.namespace(), &wanted);
        for other in selected
            .iter()
            .filter(|other| other.object.key() != object.key())
        {
            faults.push(format!(
                "{}: its selector also matches the pods of {}",
                object.key(),
                other.object.key()
            ));
        }
        let service = text(object.value(), "/spec/serviceName");
        if object.kind() == "StatefulSet"
            && manifest
                .find("Service", object.namespace(), service)
                .is_none()
        {
            faults.push(format!("{}: there is no Service {service}", object.key()));
        }
    }
    for budget in manifest.of_kind("PodDisruptionBudget") {
        let wanted = labels(budget.value(), "/spec/selector/matchLabels");
        if wanted.is_empty() || manifest.selected(budget.namespace(), &wanted).is_empty() {
            faults.push(format!("{}: it selects no pods", budget.key()));
        }
    }
}

/// The label that Kubernetes itself puts on each pod of a StatefulSet.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";

/// The workloads that a Service sends to.
fn behind<'a>(manifest: &'a Manifest, service: Object<'_>) -> Vec<Workload<'a>> {
    let mut wanted = labels(service.value(), "/spec/selector");
    match wanted.remove(POD_NAME) {
        Some(name) => manifest
            .selected(service.namespace(), &wanted)
            .into_iter()
            .filter(|workload| workload.pod_names().contains(&name))
            .collect(),
        None if wanted.is_empty() => Vec::new(),
        None => manifest.selected(service.namespace(), &wanted),
    }
}

fn services(manifest: &Manifest, faults: &mut Vec<String>) {
    for service in manifest.of_kind("Service") {
        let behind = behind(manifest, service);
        if behind.is_empty() {
            faults.push(format!("{}: it selects no pods", service.key()));
        }
        for port in list(service.value(), "/spec/ports") {
            let protocol = protocol(port);
            let target = match port.get("targetPort") {
                None | Some(Value::Null) => port["port"].clone(),
                Some(target) => target.clone(),
            };
            for workload in &behind {
                let found = workload
                    .ports()
                    .iter()
                    .any(|(name, number, of)| *of == protocol && is_port(&target, name, *number));
                if !found {
                    faults.push(format!(
                        "{}: port {target}/{protocol} is none of {}",
                        service.key(),
                        workload.object.key()
                    ));
                }
            }
        }
    }
}

fn protocol(port: &Value) -> &str {
    match text(port, "/protocol") {
        "" => "TCP",
        protocol => protocol,
    }
}

/// Whether a port, named or numbered, is this one.
fn is_port(wanted: &Value, name: &str, number: u64) -> bool {
    wanted.as_str() == Some(name) || wanted.as_u64() == Some(number)
}

fn accounts(manifest: &Manifest, faults: &mut Vec<String>) {
    for account in manifest.of_kind("ServiceAccount") {
        if account.value()["automountServiceAccountToken"] != Value::Bool(false) {
            faults.push(format!(
                "{}: every pod with this account would hold a token for Kubernetes: \
                 automountServiceAccountToken must be false",
                account.key()
            ));
        }
    }
    let bound: BTreeSet<&str> = manifest
        .of_kind("RoleBinding")
        .flat_map(|binding| list(binding.value(), "/subjects"))
        .map(|subject| text(subject, "/name"))
        .collect();
    for workload in manifest.workloads() {
        let name = text(workload.pod, "/serviceAccountName");
        let key = workload.object.key();
        if manifest
            .find("ServiceAccount", workload.object.namespace(), name)
            .is_none()
        {
            faults.push(format!("{key}: there is no ServiceAccount {name:?}"));
        }
        if workload.has_tokens_unasked() {
            faults.push(format!(
                "{key}: every container would hold a token for Kubernetes: \
                 automountServiceAccountToken must be false, and who needs one mounts it"
            ));
        }
        for container in workload.containers() {
            let needs = container.publishes() && bound.contains(name);
            if container.holds_token() != needs || container.reaches_api() != needs {
                faults.push(format!(
                    "{}: a container holds a token for Kubernetes exactly when it publishes \
                     Secrets and a RoleBinding gives it rights, and then where programs look for it",
                    container.key()
                ));
            }
        }
    }
    for binding in manifest.of_kind("RoleBinding") {
        let role = text(binding.value(), "/roleRef/name");
        if manifest.find("Role", binding.namespace(), role).is_none() {
            faults.push(format!("{}: there is no Role {role}", binding.key()));
        }
        for subject in list(binding.value(), "/subjects") {
            let (name, namespace) = (text(subject, "/name"), text(subject, "/namespace"));
            if manifest.find("ServiceAccount", namespace, name).is_none() {
                faults.push(format!(
                    "{}: there is no ServiceAccount {namespace}/{name}",
                    binding.key()
                ));
            }
        }
    }
}

fn settings_and_secrets(manifest: &Manifest, faults: &mut Vec<String>) {
    let mut used: BTreeSet<(&str, &str)> = BTreeSet::new();
    for container in manifest.containers() {
        for value in container.environment(manifest) {
            if let Err(fault) = value {
                faults.push(format!("{}: {fault}", container.key()));
            }
        }
        if let Err(fault) = container.arguments(manifest) {
            faults.push(format!("{}: {fault}", container.key()));
        }
        for entry in list(container.value, "/env") {
            let map = text(entry, "/valueFrom/configMapKeyRef/name");
            used.insert((container.namespace(), map));
        }
    }
    for workload in manifest.workloads() {
        for volume in list(workload.pod, "/volumes") {
            let namespace = workload.object.namespace();
            let map = text(volume, "/configMap/name");
            if !map.is_empty() && manifest.find("ConfigMap", namespace, map).is_none() {
                faults.push(format!(
                    "{}: there is no ConfigMap {map}",
                    workload.object.key()
                ));
            }
            used.insert((namespace, map));
            let secret = text(volume, "/secret/secretName");
            if secret.is_empty() {
                continue;
            }
            let items: Vec<&str> = list(volume, "/secret/items")
                .map(|item| text(item, "/key"))
                .collect();
            if items.is_empty() {
                faults.push(format!(
                    "{}: say which keys of Secret {secret} it needs (items)",
                    workload.object.key()
                ));
            }
            for key in items {
                secret_is_documented(manifest, &workload.object.key(), secret, key, faults);
            }
        }
    }
    for map in manifest.of_kind("ConfigMap") {
        if !used.contains(&(map.namespace(), map.name())) {
            faults.push(format!("{}: nothing reads it", map.key()));
        }
    }
}

/// Secrets are made by people or by the bootstrap, never here: the guide must name them.
fn secret_is_documented(
    manifest: &Manifest,
    who: &str,
    secret: &str,
    key: &str,
    faults: &mut Vec<String>,
) {
    let pair = (secret.to_owned(), key.to_owned());
    if !manifest.documented.contains(&pair) {
        faults.push(format!(
            "{who}: docs/kubernetes.md names no Secret {secret} with the key {key}"
        ));
    }
}

fn volumes(manifest: &Manifest, faults: &mut Vec<String>) {
    for workload in manifest.workloads() {
        let claims = list(workload.object.value(), "/spec/volumeClaimTemplates")
            .map(|claim| text(claim, "/metadata/name"));
        let volumes: BTreeSet<&str> = list(workload.pod, "/volumes")
            .map(|volume| text(volume, "/name"))
            .chain(claims)
            .collect();
        let mut mounted = BTreeSet::new();
        for container in workload.containers() {
            for (path, volume, _) in container.mounts() {
                mounted.insert(volume);
                if !volumes.contains(volume) {
                    faults.push(format!(
                        "{}: there is no volume {volume} for {path}",
                        container.key()
                    ));
                }
            }
        }
        for volume in volumes.difference(&mounted) {
            faults.push(format!(
                "{}: no container mounts the volume {volume}",
                workload.object.key()
            ));
        }
    }
}

/// An address inside of the cluster that stands in a setting.
struct ClusterAddress {
    /// Which setting.
    key: String,
    /// The whole word.
    word: String,
    name: String,
    namespace: String,
    /// `None`: whatever the Service offers.
    port: Option<u64>,
}

fn cluster_addresses(manifest: &Manifest) -> Vec<ClusterAddress> {
    let mut found = Vec::new();
    for map in manifest.of_kind("ConfigMap") {
        for (key, value) in labels(map.value(), "/data") {
            for word in value.split([',', '/', '@', ' ', '\n']) {
                let Some((host, rest)) = word.split_once(".svc.cluster.local") else {
                    continue;
                };
                let (name, namespace) = host.rsplit_once('.').unwrap_or((host, ""));
                found.push(ClusterAddress {
                    key: key.clone(),
                    word: word.to_owned(),
                    name: name.to_owned(),
                    namespace: namespace.to_owned(),
                    port: rest.strip_prefix(':').and_then(|port| port.parse().ok()),
                });
            }
        }
    }
    found
}

/// Addresses inside of the cluster that stand in settings lead to a Service.
fn names_in_settings(manifest: &Manifest, faults: &mut Vec<String>) {
    for address in cluster_addresses(manifest) {
        let service = manifest.find("Service", &address.namespace, &address.name);
        let has_port = |service: Object<'_>| {
            address.port.is_none_or(|port| {
                list(service.value(), "/spec/ports").any(|of| of["port"] == port)
            })
        };
        if !service.is_some_and(has_port) {
            faults.push(format!(
                "{}: {} leads to no port of a Service",
                address.key, address.word
            ));
        }
    }
}

/// The labels of a Service's, a policy's or a monitor's selector; empty takes everything.
fn all_or(labels: &Labels, has: &Labels) -> bool {
    labels.is_empty() || selects(labels, has)
}
