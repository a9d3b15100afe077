//! OpenSSH's own programs, by the blocks of `mesh ssh-config`.

use std::collections::BTreeSet;

use mesh_testkit::Finished;

use super::{AGENT_NODE, SOON, SSHD_NODE, Stand};
use crate::server::{sha256, write_noise};

/// Bytes that rsync copies to each node.
const COPIED: usize = 2 << 20;

/// What `mesh ssh-config` prints for the user.
fn configuration(stand: &Stand<'_>) -> String {
    let words = ["ssh-config", "--user", stand.user().name()];
    stand.operator().mesh_ok(&words).stdout
}

/// `ssh NODE COMMAND`, with a configuration made now.
pub(super) fn ssh(stand: &Stand<'_>, node: &str, command: &str) -> Finished {
    let cli = stand.operator();
    let file = cli.file("ssh_config", &configuration(stand)).expect("file");
    let spec = cli.spec("ssh").arg("-F").arg(file);
    let spec = spec.args(["-o", "BatchMode=yes", node, command]);
    spec.run(SOON).expect("runs")
}

pub(super) fn ssh_and_rsync_work(stand: &Stand<'_>) -> u64 {
    let cli = stand.operator();
    let config = configuration(stand);
    for name in [SSHD_NODE, AGENT_NODE] {
        assert!(config.contains(&format!("Host {name}")), "{config}");
    }
    let file = cli.file("ssh_config", &config).expect("file");
    let file = file.display().to_string();
    for name in [SSHD_NODE, AGENT_NODE] {
        let ran = cli
            .spec("ssh")
            .args([
                "-F",
                &file,
                "-o",
                "BatchMode=yes",
                name,
                "echo $(id -un)@$(uname -n)",
            ])
            .run(SOON)
            .expect("runs")
            .expect_code(0);
        assert_eq!(ran.stdout.trim(), format!("{}@{name}", stand.user().name()));
        let terminal = cli
            .spec("ssh")
            .args([
                "-F",
                &file,
                "-o",
                "BatchMode=yes",
                "-tt",
                name,
                "tty; stty size; exit 5",
            ])
            .run(SOON)
            .expect("runs");
        assert_eq!(terminal.code, Some(5), "{}", terminal.all());
        assert!(terminal.stdout.contains("/dev/pts/"), "{}", terminal.all());
    }
    // A certificate lives five minutes: each call must bring a fresh one, also for the first login.
    let files = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("CertificateFile "));
    let certificates: BTreeSet<String> = files
        .flat_map(|file| {
            let file = file.trim_matches('"').replace("%r", stand.user().name());
            [SSHD_NODE, AGENT_NODE].map(|name| file.replace("%h", name))
        })
        .collect();
    assert_eq!(certificates.len(), 2, "{config}");
    for certificate in certificates {
        std::fs::remove_file(certificate).expect("the certificate's file");
    }
    let source = write_noise(cli.work("to-copy"), COPIED).expect("file");
    let sum = sha256(&source).expect("sum");
    for name in [SSHD_NODE, AGENT_NODE] {
        let copy = stand.user().home().join(format!("copy-{name}"));
        cli.spec("rsync")
            .args(["-e", &format!("ssh -F {file} -o BatchMode=yes")])
            .arg(&source)
            .arg(format!("{name}:{}", copy.display()))
            .run(SOON)
            .expect("runs")
            .expect_code(0);
        assert_eq!(sha256(&copy).expect("sum"), sum, "the copy at {name}");
    }
    2 * COPIED as u64
}
