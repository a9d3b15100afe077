//! Nothing answers where a program should run: what its `status` says then.

use std::path::Path;

use mesh_types::{Finding, Role};

/// The program of this role does not run on `state_dir`. Whether that ever `joined` decides what
/// comes next.
pub fn of_stopped(role: Role, joined: bool, state_dir: &Path) -> Finding {
    let (program, dir) = (role.program(), state_dir.display());
    if joined {
        return Finding::error(
            "not-running",
            format!("{program} does not run on {dir}"),
            format!("systemctl start mesh-{program} (or: {program} run)"),
        );
    }
    Finding::error(
        "not-joined",
        format!("{program} does not run and has not joined: there is no identity in {dir}"),
        format!(
            "{program} join --token-file FILE, with a token of 'mesh token create --role {role}'; \
             then {program} run"
        ),
    )
}

/// It cannot be asked; `error` says why.
pub fn of_silent(role: Role, error: &str) -> Finding {
    let program = role.program();
    Finding::error(
        "not-answering",
        format!("{program} cannot be asked: {error}"),
        format!(
            "run this as root or as the user that it runs as; if it was so: journalctl -u \
             mesh-{program} -n 50"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_run_is_started_and_what_never_joined_joins_first() {
        let dir = Path::new("/var/lib/mesh/relay");
        for (role, joined, code, next) in [
            (
                Role::Relay,
                true,
                "not-running",
                "systemctl start mesh-relay (or: relay run)",
            ),
            (
                Role::Worker,
                true,
                "not-running",
                "systemctl start mesh-worker-agent",
            ),
            (
                Role::Relay,
                false,
                "not-joined",
                "mesh token create --role relay",
            ),
            (
                Role::Gateway,
                false,
                "not-joined",
                "traffic-gateway join --token-file FILE",
            ),
            (
                Role::Deployer,
                false,
                "not-joined",
                "mesh token create --role deployer",
            ),
        ] {
            let finding = of_stopped(role, joined, dir);
            assert_eq!(finding.code, code, "{finding}");
            assert!(finding.next.contains(next), "{finding}");
            assert!(finding.what.contains("/var/lib/mesh/relay"), "{finding}");
            assert!(Finding::any_error(&[finding]));
        }
    }
}
