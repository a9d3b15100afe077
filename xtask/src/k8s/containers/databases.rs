//! Databases outside of the cluster, as production has them: real servers that speak TLS only, with
//! certificates of an authority that is made for the run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::names;
use super::quiet;
use crate::compose::Engine;
use crate::k8s::manifest::Manifest;
use crate::k8s::settings::secret_content;

/// Makes the certificates, in the image of Postgres, which has openssl.
const CERTIFICATES: &str = include_str!("certificates.sh");

/// How long a server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(60);

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Database {
    Postgres,
    Redis,
}

impl Database {
    pub(super) const ALL: [Self; 2] = [Self::Postgres, Self::Redis];
}

/// How a server shows who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// TLS only, by a certificate of the authority that the Secret names.
    Sound,
    /// TLS, by a certificate of another authority.
    Stranger,
    /// TLS, by a certificate for another name.
    OtherName,
    /// No TLS.
    InTheClear,
}

/// The images, which are those of the overlay `dev`.
#[derive(Debug, Clone)]
pub(super) struct Images {
    pub(super) postgres: String,
    pub(super) redis: String,
}

/// Where an overlay looks for its databases.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    user: String,
    name: String,
    postgres: String,
    redis: String,
}

/// The servers of one run.
pub(super) struct Databases<'a> {
    engine: &'a Engine,
    network: String,
    dir: PathBuf,
    images: Images,
    places: Places,
}

impl Places {
    /// `None`: they are in the cluster.
    fn of(manifest: &Manifest) -> Result<Option<Self>> {
        let url = |key: &str| names::setting(manifest, key).with_context(|| format!("no {key}"));
        let (store, bus) = (url("store-url")?, url("redis-url")?);
        if store.contains(".svc.cluster.local") && bus.contains(".svc.cluster.local") {
            return Ok(None);
        }
        let places = Self::parse(store, bus);
        places
            .map(Some)
            .with_context(|| format!("{store} or {bus} is not understood here"))
    }

    /// Reads `postgres://USER@HOST:5432/NAME` and `rediss://HOST:6379/0`.
    fn parse(store: &str, bus: &str) -> Option<Self> {
        let (user, place) = store.strip_prefix("postgres://")?.split_once('@')?;
        let (postgres, name) = place.split_once(":5432/")?;
        let (redis, _) = bus.strip_prefix("rediss://")?.split_once(":6379/")?;
        Some(Self {
            user: user.to_owned(),
            name: name.to_owned(),
            postgres: postgres.to_owned(),
            redis: redis.to_owned(),
        })
    }
}

impl<'a> Databases<'a> {
    /// Starts them when the overlay has them outside of the cluster. Their directories are below
    /// `dir`, and what pods are told of them goes into `secrets`.
    pub(super) fn start(
        engine: &'a Engine,
        manifest: &Manifest,
        images: &Images,
        network: &str,
        dir: &Path,
    ) -> Result<Option<Self>> {
        let Some(places) = Places::of(manifest)? else {
            return Ok(None);
        };
        let databases = Self {
            engine,
            network: network.to_owned(),
            dir: dir.join("databases"),
            images: images.clone(),
            places,
        };
        let begun = Instant::now();
        databases.prepare(&dir.join("secrets"))?;
        for database in Database::ALL {
            databases.serve(database, Server::Sound)?;
            databases.speaks_tls_only(database)?;
        }
        println!(
            "k8s: run: {} and {}, by TLS only, after {:.1} s",
            databases.places.postgres,
            databases.places.redis,
            begun.elapsed().as_secs_f64()
        );
        Ok(Some(databases))
    }

    /// Certificates, passwords, and settings of each kind of server.
    fn prepare(&self, secrets: &Path) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        let mut docker = self.engine.docker();
        docker.args(["run", "--rm", "--pull", "never", "--network", "none"]);
        docker.args(["--user", "0:0", "--workdir", "/out", "--volume"]);
        docker.arg(format!("{}:/out", self.dir.display()));
        docker.args(["--entrypoint", "sh", &self.images.postgres]);
        docker.args(["-c", CERTIFICATES, "certificates.sh"]);
        docker.args([&self.places.postgres, &self.places.redis]);
        quiet(&mut docker).context("make the databases' certificates")?;
        for secret in ["mesh-postgres", "mesh-redis"] {
            let secret = secrets.join(secret);
            fs::create_dir_all(&secret)?;
            fs::copy(self.dir.join("known.crt"), secret.join("ca.crt"))?;
            fs::write(secret.join("password"), secret_content("password"))?;
        }
        fs::write(self.dir.join("password"), secret_content("password"))?;
        fs::write(
            self.dir.join("tls-only.hba"),
            "local all all trust\nhostnossl all all all reject\nhostssl all all all scram-sha-256\n",
        )?;
        fs::write(
            self.dir.join("in-the-clear.hba"),
            "local all all trust\nhost all all all scram-sha-256\n",
        )?;
        let data = self.dir.join("data");
        fs::create_dir_all(&data)?;
        std::os::unix::fs::chown(&data, Some(999), Some(999))?;
        Ok(())
    }

    /// Has one server of this kind, in the place of the one before; Postgres keeps its data.
    pub(super) fn serve(&self, database: Database, server: Server) -> Result<()> {
        let name = self.container(database);
        self.remove(database);
        let mut docker = self.engine.docker();
        docker.args(["run", "--detach", "--name", &name, "--pull", "never"]);
        docker.args(["--network", &self.network, "--network-alias"]);
        docker.arg(match database {
            Database::Postgres => &self.places.postgres,
            Database::Redis => &self.places.redis,
        });
        docker.args(["--user", "999:999", "--read-only", "--cap-drop", "ALL"]);
        docker.args(["--tmpfs", "/tmp", "--volume"]);
        docker.arg(format!("{}:/run/mesh:ro", self.dir.display()));
        match database {
            Database::Postgres => self.postgres(&mut docker, server),
            Database::Redis => self.redis(&mut docker, server),
        }
        quiet(&mut docker).with_context(|| format!("start {database:?}"))?;
        let begun = Instant::now();
        while let Err(error) = self.ask(database, server) {
            if begun.elapsed() > START_LIMIT {
                return Err(error.context(format!("{database:?} does not answer")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn postgres(&self, docker: &mut std::process::Command, server: Server) {
        docker.args(["--tmpfs", "/var/run/postgresql:uid=999,gid=999,mode=2775"]);
        docker.arg("--volume");
        docker.arg(format!(
            "{0}/data:/var/lib/postgresql/data",
            self.dir.display()
        ));
        docker.args(["--env", "PGDATA=/var/lib/postgresql/data/pgdata"]);
        docker.args(["--env", "POSTGRES_PASSWORD_FILE=/run/mesh/password"]);
        docker
            .arg("--env")
            .arg(format!("POSTGRES_USER={}", self.places.user));
        docker
            .arg("--env")
            .arg(format!("POSTGRES_DB={}", self.places.name));
        docker.args([&self.images.postgres, "postgres"]);
        let mut set = |key: &str, value: &str| {
            docker.arg("-c").arg(format!("{key}={value}"));
        };
        // What is written here is thrown away.
        set("fsync", "off");
        match server.certificate() {
            Some(kind) => {
                set("ssl", "on");
                set("ssl_cert_file", &format!("/run/mesh/postgres-{kind}.crt"));
                set("ssl_key_file", &format!("/run/mesh/postgres-{kind}.key"));
                set("hba_file", "/run/mesh/tls-only.hba");
            }
            None => set("hba_file", "/run/mesh/in-the-clear.hba"),
        }
    }

    fn redis(&self, docker: &mut std::process::Command, server: Server) {
        docker.args(["--tmpfs", "/data", &self.images.redis, "redis-server"]);
        docker.args(["--save", "", "--requirepass", &secret_content("password")]);
        match server.certificate() {
            Some(kind) => {
                docker.args(["--port", "0", "--tls-port", "6379"]);
                docker.args(["--tls-auth-clients", "no"]);
                docker.args(["--tls-ca-cert-file", "/run/mesh/known.crt"]);
                docker.args(["--tls-cert-file", &format!("/run/mesh/redis-{kind}.crt")]);
                docker.args(["--tls-key-file", &format!("/run/mesh/redis-{kind}.key")]);
            }
            None => {
                docker.args(["--port", "6379"]);
            }
        }
    }

    /// Whether the server answers in its own container.
    fn ask(&self, database: Database, server: Server) -> Result<()> {
        let answer = match (database, server.certificate()) {
            (Database::Postgres, _) => self.exec(
                database,
                &[
                    "pg_isready",
                    "--host=127.0.0.1",
                    "--username",
                    &self.places.user,
                ],
            )?,
            (Database::Redis, Some(_)) => {
                self.exec(database, &["redis-cli", "--tls", "--insecure", "ping"])?
            }
            (Database::Redis, None) => self.exec(database, &["redis-cli", "ping"])?,
        };
        // Redis answers by the wish for a password.
        let is_there = ["accepting connections", "NOAUTH"];
        ensure!(is_there.iter().any(|it| answer.contains(it)), "{answer}");
        Ok(())
    }

    /// A server that also takes what is not encrypted would prove nothing.
    fn speaks_tls_only(&self, database: Database) -> Result<()> {
        let in_the_clear = match database {
            Database::Postgres => {
                let (user, name) = (&self.places.user, &self.places.name);
                let to = format!("host=127.0.0.1 user={user} dbname={name} sslmode=disable");
                self.exec(database, &["psql", "--command=SELECT 1", &to])
            }
            // Nobody answers "NOAUTH" to what does not speak TLS.
            Database::Redis => self.exec(database, &["redis-cli", "ping"]),
        };
        match (database, in_the_clear) {
            (Database::Postgres, Err(error)) if error.to_string().contains("no encryption") => {
                Ok(())
            }
            (Database::Redis, Err(_)) => Ok(()),
            (_, answer) => bail!("{database:?} does not insist on TLS: {answer:?}"),
        }
    }

    fn exec(&self, database: Database, words: &[&str]) -> Result<String> {
        let mut docker = self.engine.docker();
        quiet(docker.args(["exec", &self.container(database)]).args(words))
    }

    /// What a server's container is called.
    pub(super) fn container(&self, database: Database) -> String {
        match database {
            Database::Postgres => format!("{}-postgres", self.network),
            Database::Redis => format!("{}-redis", self.network),
        }
    }

    /// Takes the server away, if there is one.
    fn remove(&self, database: Database) {
        let mut docker = self.engine.docker();
        docker.args(["rm", "--force", "--volumes"]);
        drop(quiet(docker.arg(self.container(database))));
    }
}

impl Drop for Databases<'_> {
    fn drop(&mut self) {
        for database in Database::ALL {
            self.remove(database);
        }
    }
}

impl Server {
    /// What its certificate is called.
    fn certificate(self) -> Option<&'static str> {
        match self {
            Self::Sound => Some("sound"),
            Self::Stranger => Some("stranger"),
            Self::OtherName => Some("other-name"),
            Self::InTheClear => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_are_read_from_the_urls() {
        let (store, bus) = (
            "postgres://mesh@db.example.org:5432/fleet",
            "rediss://redis.example.org:6379/0",
        );
        let wanted = Places {
            user: "mesh".to_owned(),
            name: "fleet".to_owned(),
            postgres: "db.example.org".to_owned(),
            redis: "redis.example.org".to_owned(),
        };
        assert_eq!(Places::parse(store, bus), Some(wanted));
        // Redis in the clear is none of production's.
        assert_eq!(Places::parse(store, &bus.replace("rediss", "redis")), None);
    }
}
