//! Faults that are planted into good manifests, one of each sort; each must be found.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::manifest::{ACCOUNT, Manifest};

pub(super) struct Fault {
    pub(super) what: &'static str,
    pub(super) overlay: &'static str,
    /// A part of the message that finds it.
    pub(super) found_by: &'static str,
    pub(super) plant: fn(&mut Manifest) -> Result<()>,
}

const CONTAINER: &str = "/spec/template/spec/containers/0";

pub(super) const FAULTS: &[Fault] = &[
    Fault {
        what: "a misspelt kind",
        overlay: "dev",
        found_by: "unknown kind Deploymnet",
        plant: |it| {
            set(
                it,
                "Deployment",
                "coordinator",
                "/kind",
                json!("Deploymnet"),
            )
        },
    },
    Fault {
        what: "a kind with a wrong capital",
        overlay: "dev",
        found_by: "unknown kind Daemonset",
        plant: |it| set(it, "DaemonSet", "worker-agent", "/kind", json!("Daemonset")),
    },
    Fault {
        what: "a misspelt field",
        overlay: "dev",
        found_by: "replica",
        plant: |it| {
            add(
                it,
                "Deployment",
                "coordinator",
                "/spec",
                "replica",
                json!(2),
            )
        },
    },
    Fault {
        what: "a value of the wrong type",
        overlay: "production",
        found_by: "Kubernetes 1.30: spec.replicas",
        plant: |it| set(it, "StatefulSet", "relay", "/spec/replicas", json!("two")),
    },
    Fault {
        what: "a version of the API that is gone",
        overlay: "production",
        found_by: "policy/v1beta1",
        plant: |it| {
            let version = json!("policy/v1beta1");
            set(it, "PodDisruptionBudget", "relay", "/apiVersion", version)
        },
    },
    Fault {
        what: "a misspelt field of a kind of another project",
        overlay: "production",
        found_by: "spec.endpoints.0.intervall: unknown field",
        plant: |it| {
            let at = "/spec/endpoints/0";
            add(
                it,
                "ServiceMonitor",
                "wonder-mesh",
                at,
                "intervall",
                json!("15s"),
            )
        },
    },
    Fault {
        what: "a mode of TLS that does not exist",
        overlay: "production-gateway-api",
        found_by: "spec.listeners.1.tls.mode: enum",
        plant: |it| {
            let at = "/spec/listeners/1/tls/mode";
            set(it, "Gateway", "wonder-mesh", at, json!("PassThrough"))
        },
    },
    Fault {
        what: "a misspelt kind of another project",
        overlay: "production-gateway-api",
        found_by: "unknown kind TLSRoutes in gateway.networking.k8s.io/v1",
        plant: |it| set(it, "TLSRoute", "coordinator", "/kind", json!("TLSRoutes")),
    },
    Fault {
        what: "a duration that is none, in a kind of another project",
        overlay: "production",
        found_by: "spec.endpoints.0.interval: pattern",
        plant: |it| {
            let at = "/spec/endpoints/0/interval";
            set(it, "ServiceMonitor", "wonder-mesh", at, json!("soon"))
        },
    },
    Fault {
        what: "a job that no alert rule knows",
        overlay: "production",
        found_by: "has \"coordinator\" as app.kubernetes.io/name, which is no job of prometheus.yml",
        plant: |it| {
            let label = json!("app.kubernetes.io/name");
            set(it, "ServiceMonitor", "wonder-mesh", "/spec/jobLabel", label)
        },
    },
    Fault {
        what: "a route to a listener that is not there",
        overlay: "production-gateway-api",
        found_by: "has no listener \"grpc\"",
        plant: |it| {
            let at = "/spec/parentRefs/0/sectionName";
            set(it, "TLSRoute", "coordinator", at, json!("grpc"))
        },
    },
    Fault {
        what: "a Service's wrong target port",
        overlay: "dev",
        found_by: "port \"htpp\"/TCP is none of",
        plant: |it| {
            let at = "/spec/ports/0/targetPort";
            set(it, "Service", "traffic-gateway", at, json!("htpp"))
        },
    },
    Fault {
        what: "a container's wrong port",
        overlay: "dev",
        found_by: "MESH_RELAY__SERVER__LISTEN opens 8443",
        plant: |it| {
            let at = format!("{CONTAINER}/ports/0/containerPort");
            set(it, "StatefulSet", "relay", &at, json!(8444))
        },
    },
    Fault {
        what: "a probe of a port that is not there",
        overlay: "dev",
        found_by: "readinessProbe asks the port \"metrics\"",
        plant: |it| {
            let at = format!("{CONTAINER}/readinessProbe/httpGet/port");
            set(it, "Deployment", "coordinator", &at, json!("metrics"))
        },
    },
    Fault {
        what: "a selector that matches nothing",
        overlay: "dev",
        found_by: "Service wonder-mesh/relay: it selects no pods",
        plant: |it| {
            set(
                it,
                "Service",
                "relay",
                "/spec/selector",
                json!({ "app": "relay" }),
            )
        },
    },
    Fault {
        what: "a wrong backend of an Ingress",
        overlay: "production",
        found_by: "no Service coordinator with the port \"http\"",
        plant: |it| {
            let at = "/spec/rules/0/http/paths/0/backend/service/port/name";
            set(it, "Ingress", "grpc", at, json!("http"))
        },
    },
    Fault {
        what: "a missing environment variable",
        overlay: "dev",
        found_by: "master_key",
        plant: |it| {
            forget(
                it,
                "Deployment",
                "coordinator",
                "MESH_COORDINATOR__MASTER_KEY_FILE",
            )
        },
    },
    Fault {
        what: "a missing listener",
        overlay: "dev",
        found_by: "told to listen on 9468",
        plant: |it| forget(it, "StatefulSet", "relay", "MESH_RELAY__ADMIN__LISTEN"),
    },
    Fault {
        what: "a misspelt environment variable",
        overlay: "dev",
        found_by: "relay says",
        plant: |it| {
            let at = format!("{CONTAINER}/env/1/name");
            set(
                it,
                "StatefulSet",
                "relay",
                &at,
                json!("MESH_RELAY__SERVER__LISTN"),
            )
        },
    },
    Fault {
        what: "a key that the settings do not have",
        overlay: "dev",
        found_by: "asks for log-level of ConfigMap",
        plant: |it| {
            let settings = find(it, |value| {
                value["kind"] == "ConfigMap" && !value["data"]["log-level"].is_null()
            })?;
            let data = settings["data"].as_object_mut().context("no data")?;
            data.remove("log-level");
            Ok(())
        },
    },
    Fault {
        what: "a Secret that nobody is told to make",
        overlay: "dev",
        found_by: "names no Secret mesh-postgers",
        plant: |it| {
            let at = "/spec/template/spec/volumes/2/secret/secretName";
            set(it, "Deployment", "coordinator", at, json!("mesh-postgers"))
        },
    },
    Fault {
        what: "a need to write to the root file system",
        overlay: "dev",
        found_by: "cannot be written to",
        plant: |it| {
            let at = format!("{CONTAINER}/env/0/value");
            set(it, "StatefulSet", "relay", &at, json!("/srv/relay"))
        },
    },
    Fault {
        what: "a root file system that can be written to",
        overlay: "dev",
        found_by: "readOnlyRootFilesystem must be true",
        plant: |it| {
            let at = format!("{CONTAINER}/securityContext/readOnlyRootFilesystem");
            set(it, "StatefulSet", "relay", &at, json!(false))
        },
    },
    Fault {
        what: "root in a restricted namespace",
        overlay: "production",
        found_by: "restricted: runAsUser",
        plant: |it| {
            let at = "/spec/template/spec/securityContext/runAsUser";
            set(it, "StatefulSet", "deploy-manager", at, json!(0))
        },
    },
    Fault {
        what: "a policy about no pods",
        overlay: "production",
        found_by: "NetworkPolicy wonder-mesh/relay: it selects no pods",
        plant: |it| {
            let at = "/spec/podSelector/matchLabels";
            set(it, "NetworkPolicy", "relay", at, json!({ "app": "relay" }))
        },
    },
    Fault {
        what: "a Service that a policy shuts off",
        overlay: "production",
        found_by: "no policy lets anybody reach \"stun\"",
        plant: |it| {
            let policy = find(it, |value| is(value, "NetworkPolicy", "relay"))?;
            let ports = policy
                .pointer_mut("/spec/ingress/0/ports")
                .and_then(Value::as_array_mut)
                .context("no ports")?;
            ports.retain(|port| port["port"] != "stun");
            Ok(())
        },
    },
    Fault {
        what: "no denial by default",
        overlay: "production",
        found_by: "no policy denies everything",
        plant: |it| {
            it.values
                .retain(|value| !is(value, "NetworkPolicy", "default-deny"));
            Ok(())
        },
    },
    Fault {
        what: "a token for Kubernetes in a pod that needs none",
        overlay: "dev",
        found_by: "every container would hold a token for Kubernetes",
        plant: |it| {
            let at = "/spec/template/spec/automountServiceAccountToken";
            set(it, "StatefulSet", "relay", at, json!(true))
        },
    },
    Fault {
        what: "a token for Kubernetes beside the master key",
        overlay: "dev",
        found_by: "container bootstrap: a container holds a token for Kubernetes exactly when",
        plant: |it| {
            let job = find(it, |value| is(value, "Job", "mesh-bootstrap"))?;
            let mount = json!({ "name": "api-access", "mountPath": "/run/api" });
            let mounts = job.pointer_mut("/spec/template/spec/initContainers/0/volumeMounts");
            let mounts = mounts.and_then(Value::as_array_mut);
            mounts.context("no mounts")?.push(mount);
            Ok(())
        },
    },
    Fault {
        what: "a right too many",
        overlay: "production",
        found_by: "more than the least rights: {\"create\", \"get\", \"patch\"}",
        plant: |it| {
            let at = "/rules/0/verbs";
            let verbs = json!(["create", "get", "patch"]);
            set(it, "Role", "mesh-bootstrap", at, verbs)
        },
    },
    Fault {
        what: "a right on every Secret",
        overlay: "dev",
        found_by: "more than the least rights: {\"create\", \"patch\"} on {\"secrets\"} {}",
        plant: |it| {
            let at = "/rules/0/resourceNames";
            set(it, "Role", "mesh-bootstrap", at, json!([]))
        },
    },
    Fault {
        what: "rights for somebody else",
        overlay: "dev",
        found_by: "ServiceAccount wonder-mesh/relay is not to have these rights",
        plant: |it| {
            let at = "/subjects/0/name";
            set(it, "RoleBinding", "mesh-bootstrap", at, json!("relay"))
        },
    },
    Fault {
        what: "an admin port for everybody",
        overlay: "production",
        found_by: "others than the namespace monitoring reach the admin port of StatefulSet \
                   wonder-mesh/relay",
        plant: |it| {
            let policy = find(it, |value| is(value, "NetworkPolicy", "relay"))?;
            let rule = policy.pointer_mut("/spec/ingress/0");
            let rule = rule.and_then(Value::as_object_mut).context("no rule")?;
            // A rule without ports is about all of them.
            rule.remove("ports");
            Ok(())
        },
    },
    Fault {
        what: "a database that no policy lets the coordinator reach",
        overlay: "dev",
        found_by: "Deployment wonder-mesh/coordinator: store-url: no policy lets it connect to \
                   postgres",
        plant: |it| {
            let at = "/spec/egress/0/ports/0/port";
            set(it, "NetworkPolicy", "coordinator", at, json!(5433))
        },
    },
    Fault {
        what: "a Secret that nobody publishes",
        overlay: "production",
        found_by: "nobody makes the Secret wonder-mesh/mesh-token-realy with the key token",
        plant: |it| {
            let relay = find(it, |value| is(value, "StatefulSet", "relay"))?;
            let volumes = relay.pointer_mut("/spec/template/spec/volumes");
            volumes
                .and_then(Value::as_array_mut)
                .context("no volumes")?
                .iter_mut()
                .filter(|volume| volume["secret"]["secretName"] == "mesh-token-relay")
                .for_each(|volume| volume["secret"]["secretName"] = json!("mesh-token-realy"));
            Ok(())
        },
    },
    Fault {
        what: "a token for the wrong namespace",
        overlay: "dev",
        found_by: "nobody makes the Secret wonder-mesh-nodes/mesh-token-worker",
        plant: |it| republish(it, json!(["--nodes-namespace", "wonder-mesh"])),
    },
    Fault {
        what: "a token for a namespace that nobody gave the right to",
        overlay: "dev",
        found_by: "must give the verb patch on the resource secrets for resourceNames \
                   [mesh-token-worker]",
        plant: |it| republish(it, json!(["--nodes-namespace", "wonder-mesh"])),
    },
    Fault {
        what: "a directory that the bootstrap does not write",
        overlay: "dev",
        found_by: "publish: the bootstrap writes to /files, and /files/tokens is published",
        plant: |it| {
            let at = format!("{CONTAINER}/args/2");
            set(it, "Job", "mesh-bootstrap", &at, json!("/files/tokens"))
        },
    },
    Fault {
        what: "a right that publishing needs",
        overlay: "dev",
        found_by: "publish: coordinator says: error: Kubernetes does not let this pod's account \
                   apply Secret wonder-mesh-nodes/mesh-token-worker",
        plant: |it| {
            let verbs = json!(["patch"]);
            set(it, "Role", "mesh-bootstrap", "/rules/0/verbs", verbs)
        },
    },
    Fault {
        what: "no token for Kubernetes in the pod that needs one",
        overlay: "dev",
        found_by: "container publish: a container holds a token for Kubernetes exactly when",
        plant: |it| {
            let job = find(it, |value| is(value, "Job", "mesh-bootstrap"))?;
            let mounts = job.pointer_mut(&format!("{CONTAINER}/volumeMounts"));
            let mounts = mounts.and_then(Value::as_array_mut);
            let mounts = mounts.context("no mounts")?;
            mounts.retain(|mount| mount["mountPath"] != ACCOUNT);
            Ok(())
        },
    },
    Fault {
        what: "an address that leads nowhere",
        overlay: "dev",
        found_by: "leads to no port of a Service",
        plant: |it| {
            let settings = find(it, |value| {
                value["kind"] == "ConfigMap" && !value["data"]["redis-url"].is_null()
            })?;
            settings["data"]["redis-url"] =
                json!("redis://redis.wonder-mesh.svc.cluster.local:6380/0");
            Ok(())
        },
    },
    Fault {
        what: "an image without a version",
        overlay: "production",
        found_by: "has no fixed version",
        plant: |it| {
            let at = format!("{CONTAINER}/image");
            set(it, "StatefulSet", "relay", &at, json!("wonder-mesh/relay"))
        },
    },
];

fn is(value: &Value, kind: &str, name: &str) -> bool {
    value["kind"] == kind && value["metadata"]["name"] == name
}

fn find(manifest: &mut Manifest, wanted: impl Fn(&Value) -> bool) -> Result<&mut Value> {
    manifest
        .values
        .iter_mut()
        .find(|value| wanted(value))
        .context("the object is not there")
}

fn set(manifest: &mut Manifest, kind: &str, name: &str, at: &str, to: Value) -> Result<()> {
    let object = find(manifest, |value| is(value, kind, name))?;
    *object.pointer_mut(at).with_context(|| format!("no {at}"))? = to;
    Ok(())
}

fn add(
    manifest: &mut Manifest,
    kind: &str,
    name: &str,
    at: &str,
    field: &str,
    value: Value,
) -> Result<()> {
    let object = find(manifest, |value| is(value, kind, name))?;
    let map = object.pointer_mut(at).and_then(Value::as_object_mut);
    map.with_context(|| format!("no {at}"))?
        .insert(field.to_owned(), value);
    Ok(())
}

/// Changes where the bootstrap's Job publishes the workers' token.
fn republish(manifest: &mut Manifest, to: Value) -> Result<()> {
    let job = find(manifest, |value| is(value, "Job", "mesh-bootstrap"))?;
    let args = job.pointer_mut(&format!("{CONTAINER}/args"));
    let args = args.and_then(Value::as_array_mut).context("no arguments")?;
    let at = args.iter().position(|word| *word == to[0]);
    let at = at.context("it names no namespace")? + 1;
    *args.get_mut(at).context("nor after that")? = to[1].clone();
    Ok(())
}

/// Takes a variable from the first container.
fn forget(manifest: &mut Manifest, kind: &str, name: &str, variable: &str) -> Result<()> {
    let object = find(manifest, |value| is(value, kind, name))?;
    let env = object
        .pointer_mut(&format!("{CONTAINER}/env"))
        .and_then(Value::as_array_mut)
        .context("no environment")?;
    let before = env.len();
    env.retain(|entry| entry["name"] != variable);
    anyhow::ensure!(env.len() < before, "{variable} is not there");
    Ok(())
}
