//! NetworkPolicies: nothing is open by default, each exception is about something, what a Service
//! offers can be reached, who is told an address may connect to it, and the admin endpoints are for
//! monitoring alone.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{all_or, behind, cluster_addresses, is_port, protocol};
use crate::k8s::manifest::{Manifest, Object, Workload, labels, list, text};

/// The label that Kubernetes itself puts on each namespace.
const NAMESPACE: &str = "kubernetes.io/metadata.name";
/// Who may ask the admin endpoints, which have no password.
const MONITORING: &str = "monitoring";

/// Who connects to the addresses in a setting.
const DIALLERS: &[(&str, &[&str])] = &[
    (
        "coordinator-advertise",
        &["relay", "traffic-gateway", "deploy-manager", "worker-agent"],
    ),
    (
        "relay-domain",
        &["traffic-gateway", "deploy-manager", "worker-agent"],
    ),
    (
        "store-url",
        &["coordinator", "mesh-bootstrap", "mesh-tokens"],
    ),
    (
        "redis-url",
        &["coordinator", "mesh-bootstrap", "mesh-tokens"],
    ),
];

pub(super) fn check(manifest: &Manifest, faults: &mut Vec<String>) {
    default_deny(manifest, faults);
    for policy in manifest.of_kind("NetworkPolicy") {
        exception(manifest, policy, faults);
    }
    reachable(manifest, faults);
    only_monitoring_asks(manifest, faults);
    diallers_may_dial(manifest, faults);
}

/// The workloads a policy is about.
fn subjects<'a>(manifest: &'a Manifest, policy: Object<'_>) -> Vec<Workload<'a>> {
    let wanted = labels(policy.value(), "/spec/podSelector/matchLabels");
    manifest
        .workloads()
        .filter(|workload| {
            workload.object.namespace() == policy.namespace() && all_or(&wanted, &workload.labels())
        })
        .collect()
}

fn default_deny(manifest: &Manifest, faults: &mut Vec<String>) {
    let with_pods: BTreeSet<&str> = manifest
        .workloads()
        .map(|workload| workload.object.namespace())
        .collect();
    for namespace in with_pods {
        let denied = manifest.of_kind("NetworkPolicy").any(|policy| {
            let spec = &policy.value()["spec"];
            policy.namespace() == namespace
                && spec["podSelector"]
                    .as_object()
                    .is_some_and(|all| all.is_empty())
                && list(spec, "/policyTypes").count() == 2
                && spec.get("ingress").is_none()
                && spec.get("egress").is_none()
        });
        if !denied {
            faults.push(format!(
                "namespace {namespace}: no policy denies everything by default"
            ));
        }
    }
}

fn exception(manifest: &Manifest, policy: Object<'_>, faults: &mut Vec<String>) {
    let subjects = subjects(manifest, policy);
    if subjects.is_empty() {
        faults.push(format!("{}: it selects no pods", policy.key()));
    }
    for (rules, peers) in [("/spec/ingress", "/from"), ("/spec/egress", "/to")] {
        for rule in list(policy.value(), rules) {
            let mut others: Vec<Workload<'_>> = Vec::new();
            for peer in list(rule, peers) {
                let found = pods_of(manifest, policy, peer);
                let wanted = labels(peer, "/podSelector/matchLabels");
                if found.is_empty() && !wanted.is_empty() {
                    faults.push(format!(
                        "{}: no pods match the peer {wanted:?}",
                        policy.key()
                    ));
                }
                others.extend(found);
            }
            // The port is one of the pods that are connected to.
            let servers = if peers == "/from" { &subjects } else { &others };
            for port in list(rule, "/ports") {
                let wanted = &port["port"];
                let found = servers.iter().any(|workload| has(workload, port));
                if wanted.is_string() && !found {
                    faults.push(format!(
                        "{}: no selected pod has the port {wanted}/{}",
                        policy.key(),
                        protocol(port)
                    ));
                }
            }
        }
    }
}

/// The workloads that a rule's peer means; none for address ranges, which mean what is outside of the
/// cluster: not every network matches pods by them.
fn pods_of<'a>(manifest: &'a Manifest, policy: Object<'_>, peer: &Value) -> Vec<Workload<'a>> {
    let namespace = match peer.get("namespaceSelector") {
        None => policy.namespace().to_owned(),
        Some(selector) => {
            let wanted = labels(selector, "/matchLabels");
            wanted.get(NAMESPACE).cloned().unwrap_or_default()
        }
    };
    match peer.get("podSelector") {
        Some(selector) => manifest.selected(&namespace, &labels(selector, "/matchLabels")),
        None => Vec::new(),
    }
}

/// No rule opens an admin port to anybody else.
fn only_monitoring_asks(manifest: &Manifest, faults: &mut Vec<String>) {
    for policy in manifest.of_kind("NetworkPolicy") {
        for rule in list(policy.value(), "/spec/ingress") {
            let peers: Vec<&Value> = list(rule, "/from").collect();
            let is_monitoring = |peer: &&Value| {
                let wanted = labels(peer, "/namespaceSelector/matchLabels");
                wanted.get(NAMESPACE).map(String::as_str) == Some(MONITORING)
            };
            if !peers.is_empty() && peers.iter().all(is_monitoring) {
                continue;
            }
            for workload in subjects(manifest, policy) {
                let admin = workload
                    .ports()
                    .into_iter()
                    .find(|(name, ..)| *name == "admin");
                if admin.is_some_and(|port| opens(rule, port)) {
                    faults.push(format!(
                        "{}: others than the namespace {MONITORING} reach the admin port of {}",
                        policy.key(),
                        workload.object.key()
                    ));
                }
            }
        }
    }
}

/// Whether a rule is about a port of a pod; one that names no ports is about all of them.
fn opens(rule: &Value, (name, number, of): (&str, u64, &str)) -> bool {
    let mut ports = list(rule, "/ports").peekable();
    if ports.peek().is_none() {
        return true;
    }
    ports.any(|port| {
        let within =
            |last: u64| (port["port"].as_u64().unwrap_or(u64::MAX)..=last).contains(&number);
        let in_range = port["endPort"].as_u64().is_some_and(within);
        protocol(port) == of && (in_range || is_port(&port["port"], name, number))
    })
}

/// Who is told an address inside of the cluster may connect to the pods behind it, by a rule that
/// means pods.
fn diallers_may_dial(manifest: &Manifest, faults: &mut Vec<String>) {
    for address in cluster_addresses(manifest) {
        let Some((_, diallers)) = DIALLERS.iter().find(|(key, _)| *key == address.key) else {
            faults.push(format!(
                "{}: say in xtask's policies.rs who connects to it",
                address.key
            ));
            continue;
        };
        // That it leads somewhere is asked elsewhere.
        let Some(service) = manifest.find("Service", &address.namespace, &address.name) else {
            continue;
        };
        let workloads = || manifest.workloads();
        for dialler in workloads().filter(|it| diallers.contains(&it.object.name())) {
            for server in behind(manifest, service) {
                for port in list(service.value(), "/spec/ports") {
                    if address.port.is_some_and(|number| port["port"] != number) {
                        continue;
                    }
                    let target = port.get("targetPort").unwrap_or(&port["port"]);
                    let target = server.ports().into_iter().find(|(name, number, of)| {
                        *of == protocol(port) && is_port(target, name, *number)
                    });
                    if target.is_some_and(|to| !may_dial(manifest, dialler, server, to)) {
                        faults.push(format!(
                            "{}: {}: no policy lets it connect to {} of {}",
                            dialler.object.key(),
                            address.key,
                            text(port, "/name"),
                            server.object.key()
                        ));
                    }
                }
            }
        }
    }
}

fn may_dial(
    manifest: &Manifest,
    from: Workload<'_>,
    to: Workload<'_>,
    port: (&str, u64, &str),
) -> bool {
    let key = |workload: &Workload<'_>| workload.object.key();
    let includes = |all: &[Workload<'_>], one| all.iter().any(|it| key(it) == key(one));
    manifest
        .of_kind("NetworkPolicy")
        .filter(|policy| includes(&subjects(manifest, *policy), &from))
        .any(|policy| {
            list(policy.value(), "/spec/egress").any(|rule| {
                opens(rule, port)
                    && list(rule, "/to").any(|peer| includes(&pods_of(manifest, policy, peer), &to))
            })
        })
}

fn has(workload: &Workload<'_>, port: &Value) -> bool {
    workload
        .ports()
        .iter()
        .any(|(name, number, of)| *of == protocol(port) && is_port(&port["port"], name, *number))
}

/// A Service's ports are open in some policy for the pods behind it.
fn reachable(manifest: &Manifest, faults: &mut Vec<String>) {
    for service in manifest.of_kind("Service") {
        for workload in behind(manifest, service) {
            let open: Vec<&Value> = manifest
                .of_kind("NetworkPolicy")
                .filter(|policy| {
                    subjects(manifest, *policy)
                        .iter()
                        .any(|subject| subject.object.key() == workload.object.key())
                })
                .flat_map(|policy| list(policy.value(), "/spec/ingress"))
                .flat_map(|rule| list(rule, "/ports"))
                .collect();
            for port in list(service.value(), "/spec/ports") {
                let target = port.get("targetPort").unwrap_or(&port["port"]);
                let admitted = workload.ports().into_iter().any(|(name, number, of)| {
                    is_port(target, name, number)
                        && open.iter().any(|rule| {
                            protocol(rule) == of && is_port(&rule["port"], name, number)
                        })
                });
                if !admitted {
                    faults.push(format!(
                        "{}: no policy lets anybody reach {target} of {}",
                        service.key(),
                        workload.object.key()
                    ));
                }
            }
        }
    }
}
