//! A machine whose SSH host key is another one than before.

use anyhow::ensure;
use mesh_testkit::eventually;

use super::{Commands, SOON, SSHD_NODE, Stand, plain};
use crate::Field;

pub(super) fn a_changed_one_is_refused_until_accepted(field: &Field, kit: &mut Commands) {
    let fingerprint = |kit: &Commands| {
        let public = kit.sshd.host_key().with_extension("pub");
        let ran = field
            .operator()
            .spec("ssh-keygen")
            .arg("-lf")
            .arg(public)
            .run(SOON);
        let line = ran.expect("runs").expect_code(0).stdout;
        line.split_whitespace()
            .nth(1)
            .expect("a fingerprint")
            .to_owned()
    };
    let before = fingerprint(kit);
    kit.sshd.change_host_key().expect("a new host key");
    let after = fingerprint(kit);
    assert_ne!(before, after);
    let stand = Stand { kit, field };
    for via in ["socks", "grpc"] {
        let refused = stand.deploy(
            &["--via", via].map(str::to_owned),
            &["exec", "true", SSHD_NODE],
        );
        assert_eq!(refused.code, Some(255), "{}", refused.all());
        for shown in [&before, &after] {
            assert!(
                refused.all().contains(shown.as_str()),
                "{shown}: {}",
                refused.all()
            );
        }
        assert!(
            refused.all().contains("host-key accept"),
            "{}",
            refused.all()
        );
    }
    let accepted = "echo let in";
    let refused = plain::ssh(&stand, SSHD_NODE, accepted);
    assert_eq!(refused.code, Some(255), "{}", refused.all());
    assert!(!refused.stdout.contains("let in"), "{}", refused.all());
    // OpenSSH tells the new one itself, and where the old one is pinned.
    for said in ["Host key verification failed", &after, "known_hosts"] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.all());
    }
    eventually("the changed key is held, then accepted", SOON, || {
        stand
            .operator()
            .mesh(&["node", "host-key", "accept", SSHD_NODE])
            .success()?;
        let ran = stand.deploy(&[], &["exec", "true", SSHD_NODE]);
        ensure!(ran.code == Some(0), "{}", ran.all());
        Ok(())
    });
    let ran = plain::ssh(&stand, SSHD_NODE, accepted).expect_code(0);
    assert_eq!(ran.stdout.trim(), "let in");
}
