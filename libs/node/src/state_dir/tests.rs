use std::collections::BTreeMap;

use mesh_types::{Cursor, Netmap, NetworkId, PacketFilter, SelfNode, Timestamp};
use proptest::prelude::*;

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::control::{ControlState, ControlStatus};
use crate::keeper::keep;

fn enrolled() -> Enrolled {
    Enrolled {
        node: NodeId::from_bytes([1; 16]),
        name: "worker-node-1".parse().expect("a name"),
        role: Role::Worker,
        network: Some(NetworkName::default_network()),
        network_id: Some(NetworkId::from_bytes([2; 16])),
        addrs: Some(addrs()),
        console_prefix: "/worker-node-1/".into(),
        owner: "owner".into(),
        coordinators: vec!["127.0.0.1:8080".into()],
    }
}

fn addrs() -> OverlayAddrs {
    OverlayAddrs {
        v4: "100.64.0.1".parse().expect("an address"),
        v6: "fd7a:115c:a1e0::1".parse().expect("an address"),
    }
}

fn stored() -> StoredNetmap {
    StoredNetmap {
        saved: Timestamp::from_secs(1_700_000_000),
        active: vec![NodeId::from_bytes([9; 16])],
        netmap: Netmap {
            cursor: Cursor {
                version: 7,
                epoch: 8,
                volatile: 9,
            },
            node: SelfNode {
                id: NodeId::from_bytes([1; 16]),
                network: NetworkId::from_bytes([2; 16]),
                network_name: NetworkName::default_network(),
                name: "worker-node-1".parse().expect("a name"),
                role: Role::Worker,
                addrs: addrs(),
                console_prefix: "/worker-node-1/".into(),
                ssh_ca: String::new(),
            },
            peers: BTreeMap::new(),
            filter: PacketFilter::default(),
            relays: Vec::new(),
        },
    }
}

#[test]
fn keys_are_made_once_and_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state");
    let first = StateDir::open(&path).expect("opens");
    let keys = (
        first.wg_public(),
        first.disco_public(),
        first.identity_public().clone(),
    );
    drop(first);
    let again = StateDir::open(&path).expect("opens again");
    assert_eq!(
        keys,
        (
            again.wg_public(),
            again.disco_public(),
            again.identity_public().clone()
        )
    );
    let mode = |path: &Path| fs::metadata(path).expect("is there").mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("node.key")), 0o600);
}

#[test]
fn a_second_use_of_the_directory_names_the_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let _first = StateDir::open(dir.path().join("s")).expect("opens");
    let error = StateDir::open(dir.path().join("s")).expect_err("is locked");
    let text = error.to_string();
    assert!(
        text.contains(&format!("pid {}", std::process::id())),
        "{text}"
    );
}

#[test]
fn another_format_is_refused_by_its_number() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    drop(StateDir::open(&path).expect("opens"));
    fs::write(path.join("version"), "2\n").expect("writes");
    let error = StateDir::open(&path).expect_err("another format");
    assert!(
        matches!(&error, StateDirError::OtherVersion { found, .. } if found == "2"),
        "{error}"
    );
}

#[test]
fn a_directory_with_other_peoples_files_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
    fs::write(dir.path().join("letter.txt"), "dear").expect("writes");
    assert!(matches!(
        StateDir::open(dir.path()),
        Err(StateDirError::NotPrivate { .. })
    ));
    let mode = fs::metadata(dir.path()).expect("is there").mode() & 0o777;
    assert_eq!(mode, 0o755);
}

#[test]
fn a_file_in_its_place_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, "x").expect("writes");
    assert!(matches!(
        StateDir::open(&path),
        Err(StateDirError::NotADirectory { .. })
    ));
}

#[test]
fn another_users_directory_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can give a directory away.
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::os::unix::fs::chown(dir.path(), Some(12345), None).expect("chown");
    let error = StateDir::open(dir.path()).expect_err("not ours");
    assert!(
        matches!(error, StateDirError::OtherOwner { owner: 12345, .. }),
        "{error}"
    );
    let looked = StateDir::is_enrolled_at(dir.path());
    assert!(
        matches!(looked, Err(StateDirError::OtherOwner { owner: 12345, .. })),
        "{looked:?}"
    );
}

#[test]
fn a_damaged_key_file_is_an_error_and_not_a_new_identity() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    drop(StateDir::open(&path).expect("opens"));
    fs::write(path.join("node.key"), "mesh node keys 1\nidentity AAAA\n").expect("writes");
    assert!(matches!(
        StateDir::open(&path),
        Err(StateDirError::Damaged { .. })
    ));
}

/// A certificate of some key of its own (DER).
fn certificate() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let made = rcgen::CertificateParams::default().self_signed(&key);
    made.expect("a certificate").der().to_vec()
}

#[test]
fn each_damaged_file_of_an_identity_is_named_and_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    assert!(!StateDir::check_at(&path).expect("looks"));
    let state = StateDir::open(&path).expect("opens");
    assert!(!StateDir::check_at(&path).expect("looks"), "only keys");
    state
        .store_enrolment(&enrolled(), &certificate(), &certificate())
        .expect("stores");
    drop(state);
    assert!(StateDir::check_at(&path).expect("looks"));
    let no_certificate = keys::to_pem(&[7; 200]);
    for (name, damaged) in [
        ("node.key", "mesh node keys 1\n"),
        ("node.crt", ""),
        ("ca.crt", no_certificate.as_str()),
        ("node.json", "{\"node\":"),
    ] {
        let file = path.join(name);
        let whole = fs::read(&file).expect("reads");
        fs::write(&file, damaged).expect("writes");
        let found = StateDir::check_at(&path);
        assert!(
            matches!(&found, Err(StateDirError::Damaged { path, .. }) if *path == file),
            "{name}: {found:?}"
        );
        let state = StateDir::open(&path);
        let used = state.and_then(|state| {
            state.certificates()?;
            state.enrolment()
        });
        assert!(used.is_err(), "{name}: {used:?}");
        assert_eq!(fs::read(&file).expect("reads"), damaged.as_bytes());
        fs::write(&file, whole).expect("writes");
    }
    assert!(StateDir::check_at(&path).expect("looks"));
}

#[test]
fn a_lost_key_file_of_an_identity_is_not_made_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let state = StateDir::open(&path).expect("opens");
    state
        .store_enrolment(&enrolled(), &certificate(), &certificate())
        .expect("stores");
    drop(state);
    fs::remove_file(path.join("node.key")).expect("removed");
    for lost in [
        StateDir::open(&path).map(drop),
        StateDir::check_at(&path).map(drop),
    ] {
        assert!(
            matches!(lost, Err(StateDirError::Damaged { .. })),
            "{lost:?}"
        );
    }
    assert!(!path.join("node.key").exists());
    // Each of the others alone says that there was one.
    for kept in ENROLLED {
        for file in ENROLLED.iter().filter(|file| **file != kept) {
            drop(fs::remove_file(path.join(file)));
        }
        fs::write(path.join(kept), "kept").expect("writes");
        let lost = StateDir::open(&path).map(drop);
        assert!(
            matches!(lost, Err(StateDirError::Damaged { .. })),
            "{kept}: {lost:?}"
        );
        fs::remove_file(path.join(kept)).expect("removes");
    }
    StateDir::open(&path).expect("begins anew");
}

#[test]
fn an_enrolment_survives_a_restart_and_a_wipe_ends_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let state = StateDir::open(&path).expect("opens");
    assert_eq!(state.enrolment().expect("reads"), None);
    let (own, authority) = (certificate(), certificate());
    state
        .store_enrolment(&enrolled(), &own, &authority)
        .expect("stores");
    drop(state);
    let state = StateDir::open(&path).expect("opens again");
    assert_eq!(state.enrolment().expect("reads"), Some(enrolled()));
    let (certificate, ca) = state.certificates().expect("reads").expect("are there");
    assert_eq!((certificate.as_ref(), ca.as_ref()), (&*own, &*authority));
    let at = || StateDir::is_enrolled_at(&path).expect("looks");
    assert!(state.is_enrolled() && at());
    state.wipe().expect("wipes");
    assert!(!state.is_enrolled() && !path.join("node.key").exists());
    assert!(!at());
}

#[test]
fn one_looks_for_an_enrolment_without_making_anything() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("missing");
    assert!(!StateDir::is_enrolled_at(&missing).expect("looks"));
    assert!(!missing.exists());
    fs::write(&missing, "x").expect("writes");
    assert!(matches!(
        StateDir::is_enrolled_at(&missing),
        Err(StateDirError::NotADirectory { .. })
    ));
}

#[test]
fn a_netmap_comes_back_as_it_was_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = StateDir::open(dir.path().join("s")).expect("opens");
    assert_eq!(state.load_netmap(&enrolled()).expect("reads"), None);
    state.store_netmap(&stored()).expect("stores");
    assert_eq!(
        state.load_netmap(&enrolled()).expect("reads"),
        Some(stored())
    );
}

#[tokio::test]
async fn a_removed_node_keeps_no_netmap() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = StateDir::open(dir.path().join("s")).expect("opens");
    let status = |control| ControlStatus {
        state: control,
        since: stored().saved,
        last_error: None,
        stale_since: Some(stored().saved),
        certificate_until: stored().saved,
    };
    let netmap = Arc::new(stored().netmap);
    let active = stored().active;
    let connected = status(ControlState::Connected);
    keep(connected, active.clone(), &state, &netmap).await;
    assert_eq!(
        state.load_netmap(&enrolled()).expect("reads"),
        Some(stored())
    );
    for _ in 0..2 {
        let removed = status(ControlState::Removed);
        keep(removed, active.clone(), &state, &netmap).await;
        assert!(!state.path().join("netmap").exists());
    }
}

#[test]
fn a_netmap_of_another_node_or_directory_counts_as_absent() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = StateDir::open(dir.path().join("one")).expect("opens");
    let two = StateDir::open(dir.path().join("two")).expect("opens");
    one.store_netmap(&stored()).expect("stores");
    fs::copy(one.path().join("netmap"), two.path().join("netmap")).expect("copies");
    assert_eq!(two.load_netmap(&enrolled()).expect("reads"), None);
    let aside = two.path().join("netmap.bad");
    assert_eq!(two.netmap_aside(), Some(aside.clone()));
    assert!(!two.path().join("netmap").exists());
    fs::remove_file(aside).expect("removed");
    assert_eq!(two.netmap_aside(), None);
    let other = Enrolled {
        node: NodeId::from_bytes([3; 16]),
        ..enrolled()
    };
    assert_eq!(one.load_netmap(&other).expect("reads"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_changed_byte_of_a_stored_netmap_is_noticed(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(dir.path().join("s")).expect("opens");
        state.store_netmap(&stored()).expect("stores");
        let file = state.path().join("netmap");
        let mut bytes = fs::read(&file).expect("reads");
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        fs::write(&file, &bytes).expect("writes");
        // The tag's hexadecimal digits may change case without changing the tag.
        let loaded = state.load_netmap(&enrolled()).expect("reads");
        prop_assert!(loaded.is_none() || loaded == Some(stored()) && at < 80);
    }
}
