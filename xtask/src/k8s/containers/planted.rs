//! Pods that must not work, each by one fault; each must be found out, and say why.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::Pod;
use super::cluster::{Cluster, Look, Volumes};
use super::databases::{Database, Server};
use crate::k8s::manifest::{ACCOUNT, Container};

/// How long a planted fault may take to show.
const LIMIT: Duration = Duration::from_secs(30);

/// A server that is not who it should be.
struct Impostor {
    what: &'static str,
    database: Database,
    server: Server,
    /// What the coordinator says of it: the cause, and the setting to look at.
    says: [&'static str; 2],
}

const IMPOSTORS: &[Impostor] = &[
    Impostor {
        what: "Postgres in the clear",
        database: Database::Postgres,
        server: Server::InTheClear,
        says: ["server does not support TLS", "store.ca_file"],
    },
    Impostor {
        what: "Postgres with a certificate of another authority",
        database: Database::Postgres,
        server: Server::Stranger,
        says: ["UnknownIssuer", "store.ca_file"],
    },
    Impostor {
        what: "Postgres with a certificate for another name",
        database: Database::Postgres,
        server: Server::OtherName,
        says: ["not valid for name", "store.ca_file"],
    },
    Impostor {
        what: "Redis in the clear",
        database: Database::Redis,
        server: Server::InTheClear,
        says: ["does not speak TLS", "bus.redis_url"],
    },
    Impostor {
        what: "Redis with a certificate of another authority",
        database: Database::Redis,
        server: Server::Stranger,
        says: ["UnknownIssuer", "bus.ca_file"],
    },
    Impostor {
        what: "Redis with a certificate for another name",
        database: Database::Redis,
        server: Server::OtherName,
        says: ["not valid for name", "bus.ca_file"],
    },
];

impl Cluster<'_> {
    /// Plants what can go wrong in this overlay; how many faults were found.
    pub(super) fn planted(&mut self, overlay: &str) -> Result<usize> {
        match overlay {
            "dev" => {
                Ok(self.planted_relays()? + self.planted_publishing()? + self.planted_logs()?)
            }
            "production" => self.planted_databases(),
            _ => Ok(0),
        }
    }

    /// A relay that has nowhere to write, and one that is asked on another port.
    fn planted_relays(&mut self) -> Result<usize> {
        let workload = self.workload("StatefulSet", "relay");
        let workload = workload.context("there is no relay")?;
        let pods = Pod::all(workload);
        let pod = pods.first().context("no pod")?;
        let container = workload.containers()[0];
        let volumes = self.volumes(pod, "planted")?;

        let mut homeless = container.value.clone();
        let mounts = homeless["volumeMounts"].as_array_mut();
        mounts
            .context("no mounts")?
            .retain(|mount| mount["name"] != "state");
        let homeless = Container {
            value: &homeless,
            ..container
        };
        let name = self.start(homeless, pod, &volumes)?;
        let ended = self.wait_for(homeless, &name, LIMIT, |look| match look {
            Look::Ended(log) => Some(Ok(log.clone())),
            Look::Ready => Some(Err("it became ready all the same")),
            Look::NotYet(_) => None,
        });
        let what = "nowhere to write";
        let ended = ended.context(what)?;
        found(what, &ended.map_err(anyhow::Error::msg).context(what)?);

        let mut deaf = container.value.clone();
        deaf["ports"]
            .as_array_mut()
            .context("no ports")?
            .iter_mut()
            .filter(|port| port["name"] == "admin")
            .for_each(|port| port["containerPort"] = Value::from(9499));
        let deaf = Container {
            value: &deaf,
            ..container
        };
        let what = "a probe of a wrong port";
        let name = self.start(deaf, pod, &volumes)?;
        // It is ready, if it is asked where it listens.
        self.wait_until_ready(container, &name, LIMIT)
            .context(what)?;
        match self.look(deaf, &name)? {
            Look::NotYet(reason) if reason.contains("startupProbe") => found(what, &reason),
            Look::NotYet(reason) | Look::Ended(reason) => bail!("{what}: {reason}"),
            Look::Ready => bail!("{what}: it became ready all the same"),
        }
        Ok(2)
    }

    /// The bootstrap's second container: once more as it is, and before an API that it cannot or
    /// must not use.
    fn planted_publishing(&mut self) -> Result<usize> {
        let workload = self.workload("Job", "mesh-bootstrap");
        let workload = workload.context("there is no bootstrap")?;
        let pods = Pod::all(workload);
        let pod = pods.first().context("no pod")?;
        let container = workload.containers().into_iter().find(|it| it.publishes());
        let container = container.context("it publishes nothing")?;
        // With what the container before it wrote.
        let volumes = self.volumes(pod, &pod.name)?;

        let written = volumes.get("files").context("no volume for the files")?;
        let written = fs::read(written.join("operator/mesh/contexts/default.json"))?;
        let namespace = workload.object.namespace();
        let context = self.api.content(namespace, "mesh-operator", "default.json");
        ensure!(
            context.is_some_and(|it| it == written),
            "the operator's context arrived as another one"
        );

        let (taken, changed) = self.api.counts();
        let name = self.start(container, pod, &volumes)?;
        self.wait_for_end(container, &name)?;
        let again = self.api.counts();
        ensure!(
            again.0 == 2 * taken && again.1 == changed && taken == self.api.secrets().len(),
            "published once more: {again:?} after {taken} Secrets with {changed} changes"
        );
        println!("k8s: run: {}: once more changes nothing", container.key());

        let mut tokenless = container.value.clone();
        let mounts = tokenless["volumeMounts"].as_array_mut();
        let mounts = mounts.context("no mounts")?;
        mounts.retain(|mount| mount["mountPath"] != ACCOUNT);
        let tokenless = Container {
            value: &tokenless,
            ..container
        };
        let what = "no token for Kubernetes' API";
        let said = self.fails(tokenless, pod, &volumes, "64");
        found_with(what, said.context(what)?, "must mount it there")?;

        self.api.forbid();
        let what = "an API that forbids it";
        let said = self.fails(container, pod, &volumes, "1");
        found_with(what, said.context(what)?, "must give the verb patch")?;

        self.api.forget_authority()?;
        let volumes = self.volumes(pod, &pod.name)?;
        let what = "an authority that is not the API's";
        let said = self.fails(container, pod, &volumes, "1");
        found_with(what, said.context(what)?, "cannot be trusted")?;
        ensure!(
            self.api.counts() == again,
            "something was taken all the same"
        );
        Ok(3)
    }

    /// Runs a container that must end with this code; the line that says why.
    fn fails(
        &mut self,
        container: Container<'_>,
        pod: &Pod<'_>,
        volumes: &Volumes,
        code: &str,
    ) -> Result<String> {
        let name = self.start(container, pod, volumes)?;
        let log = self.wait_for(container, &name, LIMIT, |look| match look {
            Look::Ended(log) => Some(log.clone()),
            Look::Ready | Look::NotYet(_) => None,
        })?;
        let ended = self.exit_code(&name)?;
        ensure!(ended == code, "it ended with {ended}: {log}");
        let error = log.lines().find(|line| line.starts_with("error: "));
        error
            .map(str::to_owned)
            .with_context(|| format!("it says: {log}"))
    }

    /// A container that logs the password that it was given.
    fn planted_logs(&mut self) -> Result<usize> {
        // What ran until here tells nothing.
        self.clear()?;
        let workload = self.workload("StatefulSet", "postgres");
        let workload = workload.context("there is no postgres")?;
        let pods = Pod::all(workload);
        let pod = pods.first().context("no pod")?;
        let container = workload.containers()[0];
        let volumes = self.volumes(pod, "telling")?;

        let mut mounts = container.mounts();
        let mount = mounts.find(|(_, volume, _)| *volume == "password");
        let (path, ..) = mount.context("no password")?;
        let mut telling = container.value.clone();
        telling["command"] = json!(["cat", format!("{path}/password")]);
        let telling = Container {
            value: &telling,
            ..container
        };
        let what = "a password in a log";
        let name = self.start(telling, pod, &volumes)?;
        self.wait_for_end(telling, &name).context(what)?;
        let Err(said) = self.clear() else {
            bail!("{what}: nobody finds it");
        };
        let part = "line 1 tells the Secret wonder-mesh/mesh-postgres";
        found_with(what, said.to_string(), part)?;
        Ok(1)
    }

    /// A coordinator before databases that are not who they should be: without the store it does
    /// not start, and of the bus it says why it goes on without it.
    fn planted_databases(&mut self) -> Result<usize> {
        let workload = self.workload("Deployment", "coordinator");
        let workload = workload.context("there is no coordinator")?;
        let pods = Pod::all(workload);
        let pod = pods.first().context("no pod")?;
        for database in [Database::Postgres, Database::Redis] {
            for impostor in IMPOSTORS.iter().filter(|it| it.database == database) {
                self.serve(database, impostor.server)?;
                let said = self.refused(pod, impostor).context(impostor.what)?;
                found(impostor.what, &said);
            }
            self.serve(database, Server::Sound)?;
        }
        Ok(IMPOSTORS.len())
    }

    /// Runs the coordinator before an impostor; the line by which it refuses that.
    fn refused(&mut self, pod: &Pod<'_>, impostor: &Impostor) -> Result<String> {
        let container = pod.workload.containers()[0];
        let volumes = self.volumes(pod, impostor.what)?;
        let name = self.start(container, pod, &volumes)?;
        let said = |text: &str| {
            let says = |line: &&str| impostor.says.iter().all(|part| line.contains(part));
            text.lines().find(says).map(str::to_owned)
        };
        let refused = self.wait_for(container, &name, LIMIT, |look| {
            match (look, impostor.database) {
                (Look::Ready, _) => Some(Err("it took the database all the same".to_owned())),
                (Look::Ended(log), Database::Postgres) => {
                    Some(said(log).ok_or_else(|| format!("it ended, and says: {log}")))
                }
                (Look::Ended(log), Database::Redis) => Some(Err(format!("it ended: {log}"))),
                (Look::NotYet(_), Database::Postgres) => None,
                (Look::NotYet(reason), Database::Redis) => said(reason).map(Ok),
            }
        });
        refused?.map_err(anyhow::Error::msg)
    }
}

fn found_with(what: &str, said: String, part: &str) -> Result<()> {
    ensure!(said.contains(part), "{what}: {said}");
    found(what, &said);
    Ok(())
}

fn found(what: &str, said: &str) {
    let line = said.lines().next().unwrap_or_default();
    println!("k8s: run: planted: {what}: {line}");
}
