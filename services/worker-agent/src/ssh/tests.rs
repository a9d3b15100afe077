use super::*;

fn state() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let state = StateDir::open(dir.path().join("state")).expect("opens");
    (dir, state)
}

#[tokio::test]
async fn the_agents_host_key_stays_the_same() {
    let (_dir, state) = state();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let ssh = Ssh::prepare(&SshConfig::default(), &state, "w".into(), Tracer::off())
            .await
            .expect("ready");
        let facts = ssh.facts();
        assert!(!facts.via_loopback && !facts.user.is_empty());
        seen.push(facts.host_keys);
    }
    assert_eq!(seen[0].len(), 1);
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn a_damaged_host_key_is_not_replaced_in_silence() {
    let (_dir, state) = state();
    state.write(HOST_KEY, b"nonsense").expect("written");
    let error = Ssh::prepare(&SshConfig::default(), &state, "w".into(), Tracer::off()).await;
    let error = error.err().expect("damaged").to_string();
    assert!(error.contains("host-key accept"), "{error}");
}

#[tokio::test]
async fn sshd_is_reached_by_loopback_with_its_own_keys() {
    let (dir, state) = state();
    let file = dir.path().join("ssh_host_ed25519_key.pub");
    let line = PrivateKey::generate().public_key().to_string();
    std::fs::write(&file, format!("{line} root@host\n")).expect("written");
    let config = SshConfig {
        mode: SshMode::Sshd,
        host_keys: vec![file],
        user: "anna".into(),
        ..SshConfig::default()
    };
    let ssh = Ssh::prepare(&config, &state, "w".into(), Tracer::off())
        .await
        .expect("ready");
    let facts = ssh.facts();
    assert_eq!(facts.host_keys, [line]);
    assert!(facts.via_loopback && facts.user == "anna");
    let (published, connections) = ssh.publish();
    assert!(matches!(published.expect("ssh").target, Target::Loopback(addr) if addr.port() == 22));
    assert!(connections.is_none());
}

#[tokio::test]
async fn a_key_file_that_is_none_is_named() {
    let (_dir, state) = state();
    let config = SshConfig {
        mode: SshMode::Sshd,
        host_keys: vec!["/nonexistent/key.pub".into()],
        ..SshConfig::default()
    };
    let error = Ssh::prepare(&config, &state, "w".into(), Tracer::off())
        .await
        .err()
        .expect("no key");
    assert!(
        error.to_string().contains("/nonexistent/key.pub"),
        "{error}"
    );
}

#[tokio::test]
async fn off_publishes_nothing() {
    let (_dir, state) = state();
    let config = SshConfig {
        mode: SshMode::Off,
        ..SshConfig::default()
    };
    let ssh = Ssh::prepare(&config, &state, "w".into(), Tracer::off())
        .await
        .expect("ready");
    assert_eq!(ssh.facts(), Facts::default());
    assert!(ssh.publish().0.is_none());
}

#[test]
fn host_key_files_are_found_by_their_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let line = PrivateKey::generate().public_key().to_string();
    for name in [
        "ssh_host_ed25519_key.pub",
        "ssh_host_ed25519_key",
        "id_ed25519.pub",
    ] {
        std::fs::write(dir.path().join(name), &line).expect("written");
    }
    assert_eq!(key_files(dir.path()), [line]);
}
