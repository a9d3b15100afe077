//! The units in deploy/systemd, and what each role needs around its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::users::Account;
use crate::args::{ServiceRole, ServiceSsh};

/// One role as systemd knows it.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) role: ServiceRole,
    /// The program, and the name of configuration and state.
    pub(super) program: &'static str,
    text: &'static str,
    sysusers: &'static str,
}

const UNITS: [Unit; 5] = [
    Unit {
        role: ServiceRole::Coordinator,
        program: "coordinator",
        text: include_str!("../../../../../deploy/systemd/mesh-coordinator.service"),
        sysusers: include_str!("../../../../../deploy/systemd/sysusers.d/mesh-coordinator.conf"),
    },
    Unit {
        role: ServiceRole::Relay,
        program: "relay",
        text: include_str!("../../../../../deploy/systemd/mesh-relay.service"),
        sysusers: include_str!("../../../../../deploy/systemd/sysusers.d/mesh-relay.conf"),
    },
    Unit {
        role: ServiceRole::TrafficGateway,
        program: "traffic-gateway",
        text: include_str!("../../../../../deploy/systemd/mesh-traffic-gateway.service"),
        sysusers: include_str!(
            "../../../../../deploy/systemd/sysusers.d/mesh-traffic-gateway.conf"
        ),
    },
    Unit {
        role: ServiceRole::DeployManager,
        program: "deploy-manager",
        text: include_str!("../../../../../deploy/systemd/mesh-deploy-manager.service"),
        sysusers: include_str!("../../../../../deploy/systemd/sysusers.d/mesh-deploy-manager.conf"),
    },
    Unit {
        role: ServiceRole::WorkerAgent,
        program: "worker-agent",
        text: include_str!("../../../../../deploy/systemd/mesh-worker-agent.service"),
        sysusers: include_str!("../../../../../deploy/systemd/sysusers.d/mesh-worker-agent.conf"),
    },
];

const SSHD_DROP_IN: &str =
    include_str!("../../../../../deploy/systemd/mesh-worker-agent.service.d/sshd.conf");

impl Unit {
    /// Every role's unit.
    pub(super) fn all() -> &'static [Self] {
        &UNITS
    }

    /// The unit of a role.
    pub(super) fn of(role: ServiceRole) -> &'static Self {
        UNITS
            .iter()
            .find(|unit| unit.role == role)
            .expect("every role has a unit")
    }

    /// Its name, such as `mesh-relay.service`.
    pub(super) fn name(&self) -> String {
        format!("mesh-{}.service", self.program)
    }

    /// Its text, for programs that are in `bin_dir`.
    pub(super) fn text(&self, bin_dir: &Path) -> Result<String> {
        let dir = bin_dir
            .to_str()
            .filter(|dir| !dir.contains(char::is_whitespace))
            .context("a unit cannot name a directory with white space in its path")?;
        Ok(self
            .text
            .replace("ExecStart=/usr/bin/", &format!("ExecStart={dir}/")))
    }

    /// What systemd-sysusers reads to make its user: one line, and comments.
    pub(super) fn sysusers(&self) -> &'static str {
        self.sysusers
    }

    /// The user that systemd-sysusers makes of it.
    pub(super) fn account(&self) -> Account {
        Account::parse(self.sysusers).expect("a test reads the user of every role")
    }

    /// The name under which systemd finds its join token; the coordinator has none.
    pub(super) fn credential(&self) -> Option<String> {
        (self.role != ServiceRole::Coordinator).then(|| format!("mesh-{}.join-token", self.program))
    }

    /// The role's name in `mesh token create --role`.
    pub(super) fn token_role(&self) -> &'static str {
        match self.role {
            ServiceRole::Coordinator => "operator",
            ServiceRole::Relay => "relay",
            ServiceRole::TrafficGateway => "gateway",
            ServiceRole::DeployManager => "deployer",
            ServiceRole::WorkerAgent => "worker",
        }
    }

    /// The drop-in that goes with who answers SSH.
    pub(super) fn drop_in(ssh: ServiceSsh) -> Option<String> {
        match ssh {
            ServiceSsh::Agent => None,
            ServiceSsh::Sshd => Some(SSHD_DROP_IN.to_owned()),
            ServiceSsh::Off => Some(SSHD_DROP_IN.replace("SSH__MODE=sshd", "SSH__MODE=off")),
        }
    }
}

/// Where things go; below another directory than `/` in images that are being made.
#[derive(Debug)]
pub(super) struct Places {
    root: PathBuf,
}

impl Places {
    pub(super) fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn is_system(&self) -> bool {
        self.root == Path::new("/")
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn unit(&self, unit: &Unit) -> PathBuf {
        self.at("/etc/systemd/system").join(unit.name())
    }

    /// The drop-in that `install` writes.
    pub(super) fn drop_in(&self, unit: &Unit) -> PathBuf {
        self.at("/etc/systemd/system")
            .join(format!("{}.d", unit.name()))
            .join("mesh-service.conf")
    }

    /// The unit that a Debian package brought, if one did.
    pub(super) fn packaged(&self, unit: &Unit) -> Option<PathBuf> {
        ["/usr/lib/systemd/system", "/lib/systemd/system"]
            .into_iter()
            .map(|dir| self.at(dir).join(unit.name()))
            .find(|path| path.is_file())
    }

    /// Where every unit is that somebody could have written or installed.
    pub(super) fn unit_directories(&self) -> [PathBuf; 5] {
        [
            "/etc/systemd/system",
            "/run/systemd/system",
            "/usr/local/lib/systemd/system",
            "/usr/lib/systemd/system",
            "/lib/systemd/system",
        ]
        .map(|dir| self.at(dir))
    }

    /// The machine's own users, or its groups.
    pub(super) fn accounts(&self, database: &str) -> PathBuf {
        self.at("/etc").join(database)
    }

    /// What runs there now; an image as a rule has nothing below it.
    pub(super) fn processes(&self) -> PathBuf {
        self.at("/proc")
    }

    /// It is there from `install` until the role is purged.
    pub(super) fn sysusers(&self, unit: &Unit) -> PathBuf {
        self.at("/etc/sysusers.d")
            .join(format!("mesh-{}.conf", unit.program))
    }

    pub(super) fn credential(&self, name: &str) -> PathBuf {
        self.at("/etc/credstore").join(name)
    }

    pub(super) fn config(&self, unit: &Unit) -> PathBuf {
        self.at("/etc/mesh").join(format!("{}.toml", unit.program))
    }

    pub(super) fn state(&self, unit: &Unit) -> PathBuf {
        self.at("/var/lib/mesh").join(unit.program)
    }

    pub(super) fn program(&self, bin_dir: &Path, unit: &Unit) -> PathBuf {
        self.at(bin_dir).join(unit.program)
    }
}

/// Why a sandboxed service could not even see programs in `dir`.
pub(super) fn hidden(dir: &Path) -> Option<&'static str> {
    ["/home", "/root", "/run/user", "/tmp", "/var/tmp"]
        .into_iter()
        .find(|hidden| dir.starts_with(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_starts_its_program_from_where_it_is() {
        for unit in Unit::all() {
            let text = unit.text(Path::new("/opt/mesh/bin")).expect("a text");
            let wanted = format!("ExecStart=/opt/mesh/bin/{} run", unit.program);
            assert!(text.contains(&wanted), "{text}");
            assert!(!text.contains("/usr/bin"), "{text}");
            assert!(text.contains("Type=notify"));
            let state = format!("StateDirectory=mesh/{}\n", unit.program);
            assert!(text.contains(&state), "{text}");
        }
        let relay = Unit::of(ServiceRole::Relay);
        assert!(relay.text(Path::new("/opt/my mesh")).is_err());
    }

    #[test]
    fn the_units_ask_for_the_credentials_and_users_that_install_writes() {
        for unit in Unit::all() {
            let text = unit.text(Path::new("/usr/bin")).expect("a text");
            match unit.credential() {
                Some(name) => {
                    assert!(text.contains(&format!("LoadCredential={name}\n")), "{text}");
                    assert!(
                        text.contains(&format!("--token-file %d/{name}\n")),
                        "{text}"
                    );
                    assert!(
                        text.contains(&format!("=|/etc/credstore/{name}\n")),
                        "{text}"
                    );
                }
                None => assert!(!text.contains("LoadCredential"), "{text}"),
            }
            let drop_in = Unit::drop_in(ServiceSsh::Sshd).expect("a drop-in");
            let user = text
                .lines()
                .chain(drop_in.lines())
                .find_map(|line| line.strip_prefix("User="))
                .expect("a user");
            assert!(unit.sysusers().contains(&format!("u {user} -")), "{user}");
        }
    }

    #[test]
    fn without_a_shell_to_give_the_agent_is_shut_in() {
        assert_eq!(Unit::drop_in(ServiceSsh::Agent), None);
        let off = Unit::drop_in(ServiceSsh::Off).expect("a drop-in");
        assert!(off.contains("MESH_WORKER_AGENT__SSH__MODE=off"), "{off}");
        assert!(off.contains("NoNewPrivileges=yes"));
    }

    #[test]
    fn programs_of_a_home_directory_are_hidden_from_services() {
        assert_eq!(hidden(Path::new("/home/anna/bin")), Some("/home"));
        assert_eq!(hidden(Path::new("/root/.cargo/bin")), Some("/root"));
        assert_eq!(hidden(Path::new("/usr/local/bin")), None);
        assert_eq!(hidden(Path::new("/homes/bin")), None);
    }
}
