//! What each pod may do, where it writes, and how it is asked for its health.

use serde_json::Value;

use super::manifest::{Container, Manifest, Workload, list, text};

pub(super) fn check(manifest: &Manifest) -> Vec<String> {
    let mut faults = Vec::new();
    for workload in manifest.workloads() {
        let level = manifest
            .find("Namespace", "", workload.object.namespace())
            .map(|namespace| {
                text(
                    namespace.value(),
                    "/metadata/labels/pod-security.kubernetes.io~1enforce",
                )
            });
        if level == Some("restricted") {
            restricted(workload, &mut faults);
        } else if level != Some("privileged") {
            faults.push(format!(
                "{}: its namespace enforces no level of Pod Security",
                workload.object.key()
            ));
        }
    }
    for container in manifest.containers() {
        shut_in(container, &mut faults);
        image(container, &mut faults);
        probes(container, &mut faults);
        listeners(manifest, container, &mut faults);
        paths(manifest, container, &mut faults);
    }
    faults
}

/// The volumes that the level `restricted` allows, as far as we use them.
const VOLUMES: &[&str] = &[
    "configMap",
    "emptyDir",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The Pod Security Standard `restricted`, as far as it is about a whole pod.
fn restricted(workload: Workload<'_>, faults: &mut Vec<String>) {
    let key = workload.object.key();
    let mut fault = |text: &str| faults.push(format!("{key}: restricted: {text}"));
    let security = &workload.pod["securityContext"];
    if security["runAsNonRoot"] != Value::Bool(true) {
        fault("runAsNonRoot must be true");
    }
    if security["runAsUser"].as_u64().is_none_or(|user| user == 0) {
        fault("runAsUser must be a user other than root");
    }
    for name in ["hostNetwork", "hostPID", "hostIPC"] {
        if workload.pod[name] == Value::Bool(true) {
            fault(&format!("{name} is not allowed"));
        }
    }
    for volume in list(workload.pod, "/volumes") {
        let kinds = volume.as_object().into_iter().flatten();
        for (kind, _) in kinds.filter(|(kind, _)| *kind != "name") {
            if !VOLUMES.contains(&kind.as_str()) {
                fault(&format!("a volume of the kind {kind} is not allowed"));
            }
        }
    }
}

/// What every container keeps to, whatever its namespace allows.
fn shut_in(container: Container<'_>, faults: &mut Vec<String>) {
    let key = container.key();
    let mut fault = |text: &str| faults.push(format!("{key}: {text}"));
    let security = &container.value["securityContext"];
    if security["allowPrivilegeEscalation"] != Value::Bool(false) {
        fault("allowPrivilegeEscalation must be false");
    }
    if security["readOnlyRootFilesystem"] != Value::Bool(true) {
        fault("readOnlyRootFilesystem must be true");
    }
    if security["privileged"] == Value::Bool(true) {
        fault("privileged is not allowed");
    }
    let dropped: Vec<_> = list(security, "/capabilities/drop").collect();
    if dropped != ["ALL"] || security.pointer("/capabilities/add").is_some() {
        fault("every capability must be dropped and none added");
    }
    let profile = text(
        container.workload.pod,
        "/securityContext/seccompProfile/type",
    );
    if profile != "RuntimeDefault" {
        fault("seccompProfile must be RuntimeDefault");
    }
    let resources = &container.value["resources"];
    for wanted in ["/requests/cpu", "/requests/memory", "/limits/memory"] {
        if text(resources, wanted).is_empty() {
            fault(&format!("resources{} is missing", wanted.replace('/', ".")));
        }
    }
}

fn image(container: Container<'_>, faults: &mut Vec<String>) {
    let image = text(container.value, "/image");
    let tag = image.rsplit_once('/').map_or(image, |(_, name)| name);
    let tag = tag.split_once(':').map(|(_, tag)| tag);
    // A bare major, such as postgres:16, is another image every month.
    if tag.is_none_or(|tag| !tag.contains('.')) {
        faults.push(format!(
            "{}: the image {image:?} has no fixed version",
            container.key()
        ));
    }
}

fn probes(container: Container<'_>, faults: &mut Vec<String>) {
    let key = container.key();
    let is_ours = container.program().is_some();
    let runs_on = container.workload.is_service() && !container.is_init;
    for (kind, path) in [
        ("startupProbe", "/livez"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/livez"),
    ] {
        let Some(probe) = container.value.get(kind) else {
            // A database that is slow is not made faster by killing it.
            if runs_on && (is_ours || kind != "livenessProbe") {
                faults.push(format!("{key}: it has no {kind}"));
            }
            continue;
        };
        for action in ["httpGet", "tcpSocket"] {
            let Some(port) = probe.pointer(&format!("/{action}/port")) else {
                continue;
            };
            let found = container.ports().any(|(name, number, protocol)| {
                protocol == "TCP" && (port.as_str() == Some(name) || port.as_u64() == Some(number))
            });
            if !found {
                faults.push(format!(
                    "{key}: {kind} asks the port {port}, which it has not"
                ));
            }
        }
        if is_ours && text(probe, "/httpGet/path") != path {
            faults.push(format!("{key}: {kind} must ask {path}"));
        }
    }
}

/// What a program of ours is told to listen on is what its pod declares.
fn listeners(manifest: &Manifest, container: Container<'_>, faults: &mut Vec<String>) {
    if container.program().is_none() || container.is_init || !container.workload.is_service() {
        return;
    }
    let listens: Vec<(String, String)> = container
        .environment(manifest)
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.ends_with("__LISTEN"))
        .collect();
    let port_of = |addr: &str| {
        let (host, port) = addr.rsplit_once(':')?;
        Some((host.to_owned(), port.parse::<u64>().ok()?))
    };
    for (name, number, _) in container.ports() {
        let open = listens.iter().any(|(_, addrs)| {
            addrs
                .split(',')
                .filter_map(port_of)
                .any(|(host, port)| port == number && host != "127.0.0.1")
        });
        if !open {
            faults.push(format!(
                "{}: it is told to listen on {number} (port {name}) by no …__LISTEN",
                container.key()
            ));
        }
    }
    for (variable, addrs) in &listens {
        for (host, port) in addrs.split(',').filter_map(port_of) {
            let declared = container.ports().any(|(_, number, _)| number == port);
            if host != "127.0.0.1" && !declared {
                faults.push(format!(
                    "{}: {variable} opens {port}, which is not among its ports",
                    container.key()
                ));
            }
        }
    }
}

/// The root file system is read-only, so that what is written lies on a volume, and what is read
/// from a file is there.
fn paths(manifest: &Manifest, container: Container<'_>, faults: &mut Vec<String>) {
    if container.program().is_none() {
        return;
    }
    let mut written = Vec::new();
    let mut read = Vec::new();
    for (name, value) in container.environment(manifest).into_iter().flatten() {
        if name.ends_with("__STATE_DIR") {
            written.push((name, value));
        } else if name.ends_with("_FILE") {
            read.push((name, value));
        }
    }
    let arguments = container.arguments(manifest).unwrap_or_default();
    for pair in arguments.windows(2) {
        match pair[0].as_str() {
            "--tokens-dir" => written.push((pair[0].clone(), pair[1].clone())),
            "--token-file" => read.push((pair[0].clone(), pair[1].clone())),
            _ => {}
        }
    }
    let has_state = written
        .iter()
        .any(|(name, _)| name.ends_with("__STATE_DIR"));
    if !has_state && !container.publishes() {
        faults.push(format!(
            "{}: no …__STATE_DIR says where it may write",
            container.key()
        ));
    }
    for (name, path) in written {
        if container
            .mount_of(&path)
            .is_none_or(|(_, _, is_read_only)| is_read_only)
        {
            faults.push(format!(
                "{}: {name} is {path}, which cannot be written to: the root file system is \
                 read-only and no volume is there",
                container.key()
            ));
        }
    }
    for (name, path) in read {
        if !is_given(container, &path) {
            faults.push(format!(
                "{}: {name} is {path}, which no volume brings",
                container.key()
            ));
        }
    }
}

/// Whether a volume with a known content has this file.
fn is_given(container: Container<'_>, path: &str) -> bool {
    let Some((at, volume, _)) = container.mount_of(path) else {
        return false;
    };
    let below = path
        .strip_prefix(at)
        .unwrap_or_default()
        .trim_start_matches('/');
    list(container.workload.pod, "/volumes")
        .filter(|it| text(it, "/name") == volume)
        .flat_map(|it| list(it, "/secret/items"))
        .any(|item| text(item, "/path") == below)
}
