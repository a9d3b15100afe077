//! NetworkPolicies: nothing is open by default, each exception is about something, and what a Service
//! offers can be reached.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{all_or, behind, is_port, protocol};
use crate::k8s::manifest::{Manifest, Object, Workload, labels, list};

pub(super) fn check(manifest: &Manifest, faults: &mut Vec<String>) {
    default_deny(manifest, faults);
    for policy in manifest.of_kind("NetworkPolicy") {
        exception(manifest, policy, faults);
    }
    reachable(manifest, faults);
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
                let wanted = labels(peer, "/podSelector/matchLabels");
                if wanted.is_empty() {
                    continue;
                }
                let found = manifest.selected(policy.namespace(), &wanted);
                if found.is_empty() {
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
