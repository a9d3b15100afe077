//! The ways in and the ways to measure: Ingress, Gateway API, ServiceMonitor.

use std::fs;

use serde_json::Value;

use super::{is_port, secret_is_documented};
use crate::k8s::manifest::{Manifest, Object, labels, list, selects, text};
use crate::workspace;

pub(super) fn check(manifest: &Manifest, faults: &mut Vec<String>) {
    for ingress in manifest.of_kind("Ingress") {
        for rule in list(ingress.value(), "/spec/rules") {
            for path in list(rule, "/http/paths") {
                let service = text(path, "/backend/service/name");
                let port = path.pointer("/backend/service/port");
                let port = port.and_then(|port| port.get("name").or_else(|| port.get("number")));
                backend(manifest, ingress, service, port, faults);
            }
        }
        for tls in list(ingress.value(), "/spec/tls") {
            let secret = text(tls, "/secretName");
            secret_is_documented(manifest, &ingress.key(), secret, "tls.crt", faults);
        }
    }
    for gateway in manifest.of_kind("Gateway") {
        for listener in list(gateway.value(), "/spec/listeners") {
            for secret in list(listener, "/tls/certificateRefs") {
                let secret = text(secret, "/name");
                secret_is_documented(manifest, &gateway.key(), secret, "tls.crt", faults);
            }
        }
    }
    for (kind, protocol) in [("HTTPRoute", "HTTPS"), ("TLSRoute", "TLS")] {
        for route in manifest.of_kind(kind) {
            parents(manifest, route, protocol, faults);
            for rule in list(route.value(), "/spec/rules") {
                for to in list(rule, "/backendRefs") {
                    backend(manifest, route, text(to, "/name"), to.get("port"), faults);
                }
            }
        }
    }
    for monitor in manifest.of_kind("ServiceMonitor") {
        monitored(manifest, monitor, faults);
    }
}

fn backend(
    manifest: &Manifest,
    from: Object<'_>,
    name: &str,
    port: Option<&Value>,
    faults: &mut Vec<String>,
) {
    let service = manifest.find("Service", from.namespace(), name);
    let found = service.is_some_and(|service| {
        list(service.value(), "/spec/ports").any(|of| {
            let number = of["port"].as_u64().unwrap_or_default();
            port.is_some_and(|port| is_port(port, text(of, "/name"), number))
        })
    });
    if !found {
        let port = port.map(Value::to_string).unwrap_or_default();
        faults.push(format!(
            "{}: there is no Service {name} with the port {port}",
            from.key()
        ));
    }
}

/// A route hangs on a listener of its own protocol, under a name that the listener takes.
fn parents(manifest: &Manifest, route: Object<'_>, protocol: &str, faults: &mut Vec<String>) {
    for parent in list(route.value(), "/spec/parentRefs") {
        let (name, section) = (text(parent, "/name"), text(parent, "/sectionName"));
        let gateway = manifest.find("Gateway", route.namespace(), name);
        let listener = gateway.and_then(|gateway| {
            list(gateway.value(), "/spec/listeners")
                .find(|listener| text(listener, "/name") == section)
        });
        let Some(listener) = listener else {
            faults.push(format!(
                "{}: Gateway {name} has no listener {section:?}",
                route.key()
            ));
            continue;
        };
        if text(listener, "/protocol") != protocol {
            faults.push(format!(
                "{}: listener {section} does not speak {protocol}",
                route.key()
            ));
        }
        for host in list(route.value(), "/spec/hostnames").filter_map(Value::as_str) {
            if host != text(listener, "/hostname") {
                faults.push(format!(
                    "{}: listener {section} does not take the name {host}",
                    route.key()
                ));
            }
        }
    }
}

/// The jobs by which the alert rules know who is scraped: those of `prometheus.yml`.
fn jobs() -> Vec<String> {
    let path = workspace::root().join("deploy/observability/prometheus.yml");
    let text = fs::read_to_string(path).unwrap_or_default();
    let job = |line: &str| Some(line.trim().strip_prefix("- job_name: ")?.to_owned());
    text.lines().filter_map(job).collect()
}

/// A monitored Service says which job it is, with the name that the alert rules look for.
fn has_job(monitor: Object<'_>, service: Object<'_>, jobs: &[String], faults: &mut Vec<String>) {
    let label = text(monitor.value(), "/spec/jobLabel");
    let all = labels(service.value(), "/metadata/labels");
    let job = all.get(label).map(String::as_str).unwrap_or_default();
    if !jobs.iter().any(|known| known == job) {
        faults.push(format!(
            "{}: {} has {job:?} as {label}, which is no job of prometheus.yml",
            monitor.key(),
            service.key()
        ));
    }
}

fn monitored(manifest: &Manifest, monitor: Object<'_>, faults: &mut Vec<String>) {
    let jobs = jobs();
    let wanted = labels(monitor.value(), "/spec/selector/matchLabels");
    let namespaces: Vec<&str> = list(monitor.value(), "/spec/namespaceSelector/matchNames")
        .filter_map(Value::as_str)
        .collect();
    for namespace in namespaces {
        let services: Vec<_> = manifest
            .of_kind("Service")
            .filter(|service| {
                service.namespace() == namespace
                    && selects(&wanted, &labels(service.value(), "/metadata/labels"))
            })
            .collect();
        if services.is_empty() {
            faults.push(format!(
                "{}: it selects no Service in {namespace}",
                monitor.key()
            ));
        }
        for service in services {
            has_job(monitor, service, &jobs, faults);
            for endpoint in list(monitor.value(), "/spec/endpoints") {
                let port = text(endpoint, "/port");
                let found =
                    list(service.value(), "/spec/ports").any(|of| text(of, "/name") == port);
                if !found {
                    faults.push(format!(
                        "{}: {} has no port {port}",
                        monitor.key(),
                        service.key()
                    ));
                }
            }
        }
    }
}
