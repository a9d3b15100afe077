//! What is in which package.

/// One Debian package.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    /// In `/usr/bin`.
    pub(super) programs: &'static [&'static str],
    /// Which of them print completions for shells.
    pub(super) completions: &'static [&'static str],
    pub(super) unit: Option<Unit>,
    pub(super) suggests: &'static str,
}

/// A role that runs by itself.
pub(super) struct Unit {
    /// The program, and the name of its unit, configuration and state.
    pub(super) program: &'static str,
    /// Whose rights it has; made at installation.
    pub(super) user: &'static str,
}

pub(super) const PACKAGES: &[Package] = &[
    Package {
        name: "wonder-mesh",
        summary: "command lines of Wonder Mesh, and the whole mesh in one process",
        description: "Wonder Mesh turns machines behind NATs into machines one can reach, manage\n\
                      and deploy to, with everything self-hosted.\n\nThis package has mesh (the \
                      operator's command line, and `mesh up`) and\ndeploy-cli (commands on many \
                      machines).",
        programs: &["mesh", "deploy-cli"],
        completions: &["mesh", "deploy-cli"],
        unit: None,
        suggests: "wonder-mesh-worker-agent, wonder-mesh-coordinator",
    },
    Package {
        name: "wonder-mesh-coordinator",
        summary: "control plane of Wonder Mesh",
        description: "Networks, join tokens, identities, names and netmaps of a Wonder Mesh. An\n\
                      installation has one; it needs no other service.",
        programs: &["coordinator"],
        completions: &[],
        unit: Some(Unit {
            program: "coordinator",
            user: "mesh-coordinator",
        }),
        suggests: "wonder-mesh, postgresql, redis-server",
    },
    Package {
        name: "wonder-mesh-relay",
        summary: "relay of Wonder Mesh",
        description: "Carries encrypted packets between machines that cannot reach each other\n\
                      directly (DERP), and tells them their public address (STUN).",
        programs: &["relay"],
        completions: &[],
        unit: Some(Unit {
            program: "relay",
            user: "mesh-relay",
        }),
        suggests: "",
    },
    Package {
        name: "wonder-mesh-traffic-gateway",
        summary: "web entrance of Wonder Mesh",
        description: "One public URL: below it are the web consoles and services of all machines\n\
                      of a Wonder Mesh.",
        programs: &["traffic-gateway"],
        completions: &[],
        unit: Some(Unit {
            program: "traffic-gateway",
            user: "mesh-gateway",
        }),
        suggests: "",
    },
    Package {
        name: "wonder-mesh-deploy-manager",
        summary: "SOCKS5 proxy and SSH runner of Wonder Mesh",
        description: "Carries programs into the networks of a Wonder Mesh by SOCKS5, and runs\n\
                      commands on many machines by SSH.",
        programs: &["deploy-manager"],
        completions: &[],
        unit: Some(Unit {
            program: "deploy-manager",
            user: "mesh-deploy",
        }),
        suggests: "wonder-mesh",
    },
    Package {
        name: "wonder-mesh-worker-agent",
        summary: "makes this machine part of a Wonder Mesh",
        description: "Joins this machine to a network of a Wonder Mesh: its web console (Cockpit),\n\
                      its SSH and the services it publishes are reachable from there.",
        programs: &["worker-agent"],
        completions: &["worker-agent"],
        unit: Some(Unit {
            program: "worker-agent",
            user: "mesh-agent",
        }),
        suggests: "cockpit",
    },
];

/// A shell that completions are made for.
#[derive(Clone, Copy)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    pub(super) const ALL: [Self; 3] = [Self::Bash, Self::Zsh, Self::Fish];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Zsh => "zsh",
            Self::Fish => "fish",
        }
    }

    /// Where it looks for a program's completions.
    pub(super) fn path(self, program: &str) -> String {
        match self {
            Self::Bash => format!("usr/share/bash-completion/completions/{program}"),
            Self::Zsh => format!("usr/share/zsh/vendor-completions/_{program}"),
            Self::Fish => format!("usr/share/fish/vendor_completions.d/{program}.fish"),
        }
    }
}
