//! Nothing answers where a program should run, or it runs and is in no network: what its `status`
//! says then.

use std::path::Path;

use mesh_types::{Finding, Role};

use crate::state_dir::StateDirError;

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
        format!("{}; then {program} run", join(role)),
    )
}

/// The program of this role runs and serves no network: it never joined one, was removed from its
/// last, or cannot open the one that it joined.
pub(super) fn of_no_network(role: Role) -> Finding {
    let program = role.program();
    Finding::error(
        "not-joined",
        format!("{program} is in no network, so it serves nobody"),
        format!(
            "{}; if it has joined one: journalctl -u mesh-{program} -n 50 says why that is not served",
            join(role)
        ),
    )
}

/// How the program of this role joins.
fn join(role: Role) -> String {
    let program = role.program();
    format!("{program} join --token-file FILE, with a token of 'mesh token create --role {role}'")
}

/// The program of this role does not start by its state directory; `None` where `error` is not that
/// a file in there is damaged.
pub fn of_damaged(role: Role, error: &StateDirError) -> Option<Finding> {
    let StateDirError::Damaged { path, .. } = error else {
        return None;
    };
    let (program, file) = (role.program(), path.display());
    let dir = path.parent().unwrap_or(path).display();
    // An operator's permit is for nodes; a relay has nothing to keep.
    let keep = match role {
        Role::Relay => "",
        _ => " (--permit, of 'mesh node permit NODE', keeps name and addresses)",
    };
    Some(Finding::error(
        "file-damaged",
        format!("{program} does not start: {file} is damaged"),
        format!(
            "put {file} back from a backup, then systemctl start mesh-{program}; without one, \
             empty {dir} and {}{keep}",
            join(role)
        ),
    ))
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
    use mesh_types::Timestamp;

    use super::*;
    use crate::advice::advice_of_all;

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

    #[test]
    fn a_damaged_file_is_named_with_what_to_do_about_it() {
        let damaged = StateDirError::Damaged {
            path: "/var/lib/mesh/worker-agent/node.json".into(),
            reason: "it does not say who this node is",
        };
        let finding = of_damaged(Role::Worker, &damaged).expect("a finding");
        assert_eq!(finding.code, "file-damaged");
        assert!(Finding::any_error(std::slice::from_ref(&finding)));
        let what = "worker-agent does not start: /var/lib/mesh/worker-agent/node.json is damaged";
        assert_eq!(finding.what, what);
        for part in [
            "put /var/lib/mesh/worker-agent/node.json back",
            "empty /var/lib/mesh/worker-agent and worker-agent join --token-file FILE",
            "'mesh node permit NODE'",
        ] {
            assert!(finding.next.contains(part), "{part}: {finding}");
        }
        let relay = of_damaged(Role::Relay, &damaged).expect("a finding");
        assert!(
            relay.next.contains("then systemctl start mesh-relay"),
            "{relay}"
        );
        assert!(!relay.next.contains("permit"), "{relay}");
        let other = StateDirError::NotADirectory {
            path: "/var/lib/mesh".into(),
        };
        assert_eq!(of_damaged(Role::Worker, &other), None);
    }

    #[test]
    fn a_program_in_no_network_is_told_how_to_join_one() {
        for (role, next) in [
            (
                Role::Gateway,
                "traffic-gateway join --token-file FILE, with a token of 'mesh token create --role gateway'",
            ),
            (
                Role::Deployer,
                "deploy-manager join --token-file FILE, with a token of 'mesh token create --role deployer'",
            ),
        ] {
            let found = advice_of_all(role, &[], Timestamp::from_secs(0));
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].code, "not-joined");
            assert!(found[0].next.starts_with(next), "{}", found[0].next);
            assert!(Finding::any_error(&found));
        }
    }
}
