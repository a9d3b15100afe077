//! `mesh service`: every role installed into an image, understood by systemd, and gone again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use integration::{Cli, binary};
use mesh_testkit::{Finished, Need, Spec, needs};
use mesh_types::{JoinToken, TokenId};

const NEEDED: [Need; 4] = [
    Need::Root,
    Need::Program("systemctl"),
    Need::Program("systemd-analyze"),
    Need::Program("systemd-sysusers"),
];
const ROLES: [&str; 5] = [
    "coordinator",
    "relay",
    "traffic-gateway",
    "deploy-manager",
    "worker-agent",
];
/// Where the programs are in the image.
const BIN: &str = "opt/mesh/bin";
/// What systemd has of its own on every machine, and units refer to.
const OWN_UNITS: &str = "usr/lib/systemd/system";
const SOON: Duration = Duration::from_secs(60);

/// Every file and link below a directory, by its path from there.
fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                left.push(entry.path());
                continue;
            }
            let path = entry.path();
            let path = path.strip_prefix(root).expect("below the root");
            found.insert(path.display().to_string());
        }
    }
    found
}

/// The machine's databases of users: who was made once stays, as with packages, so that no later
/// user gets the number that old files belong to.
fn is_about_users(path: &str) -> bool {
    let name = path.strip_prefix("etc/").unwrap_or_default();
    let name = name.strip_suffix('-').unwrap_or(name);
    [".pwd.lock", "group", "gshadow", "passwd", "shadow"].contains(&name)
}

/// An image with the programs and with what systemd itself brings.
fn make_image(root: &Path) {
    let bin = root.join(BIN);
    fs::create_dir_all(&bin).expect("made");
    for role in ROLES {
        let (from, to) = (binary(role), bin.join(role));
        // The same file where that can be.
        if fs::hard_link(&from, &to).is_err() {
            fs::copy(&from, &to).expect("copied");
        }
    }
    let own = root.join(OWN_UNITS);
    fs::create_dir_all(&own).expect("made");
    for entry in fs::read_dir(Path::new("/").join(OWN_UNITS)).expect("systemd's units") {
        let path = entry.expect("an entry").path();
        let target = path.extension().is_some_and(|end| end == "target");
        if target && path.is_file() && !path.is_symlink() {
            let name = path.file_name().expect("a name");
            fs::copy(&path, own.join(name)).expect("copied");
        }
    }
}

struct Image {
    cli: Cli,
    root: String,
}

impl Image {
    fn service(&self, words: &[&str]) -> Finished {
        let words = [&["service"], words, &["--root", &self.root]].concat();
        self.cli.mesh(&words)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(Path::new(&self.root).join(path)).unwrap_or_default()
    }

    /// What systemd says of all units, as it would start them from this image.
    fn verify(&self) -> Finished {
        Spec::new("systemd-analyze")
            .args(["verify", "--man=no", "--root", &self.root])
            .args(ROLES.map(|role| format!("mesh-{role}.service")))
            .run(SOON)
            .expect("runs")
    }
}

#[test]
fn every_role_is_installed_into_an_image_understood_by_systemd_and_gone_again() {
    if !needs(&NEEDED) {
        return;
    }
    let cli = Cli::new().expect("folders");
    let path = cli.work("image");
    make_image(&path);
    let root = path.to_str().expect("a plain path").to_owned();
    let image = Image { cli, root };
    let before = files(&path);
    let bin_dir = format!("/{BIN}");
    let token = JoinToken {
        ca_fingerprint: [1; 32],
        id: TokenId::from_bytes([2; 16]),
        secret: [3; 32],
        coordinators: vec!["mesh.example.org:8080".to_owned()],
    };
    let token = image.cli.file("token", &token.reveal()).expect("written");
    let token = token.to_str().expect("a plain path");

    for role in ROLES {
        let mut words = vec!["install", role, "--bin-dir", &bin_dir];
        if role != "coordinator" {
            words.extend(["--token-file", token]);
        }
        if role == "worker-agent" {
            words.extend(["--ssh", "sshd"]);
        }
        image.service(&words).expect_code(0);

        // The program accepts the configuration that was written for it, which is all comments.
        let config = path.join(format!("etc/mesh/{role}.toml"));
        let check = image
            .cli
            .product(role)
            .args(["config", "check", "--config"]);
        check.arg(&config).run(SOON).expect("runs").expect_code(0);
        let enabled = format!("etc/systemd/system/multi-user.target.wants/mesh-{role}.service");
        assert!(path.join(&enabled).is_symlink(), "{enabled}");
        let unit = image.read(&format!("etc/systemd/system/mesh-{role}.service"));
        let start = format!("ExecStart={bin_dir}/{role} run");
        assert!(unit.contains(&start), "{unit}");
        let drop_in = format!("etc/systemd/system/mesh-{role}.service.d/mesh-service.conf");
        let drop_in = image.read(&drop_in);
        let user = unit
            .lines()
            .chain(drop_in.lines())
            .find_map(|line| line.strip_prefix("User="))
            .unwrap_or_else(|| panic!("no user in {unit}"));
        let made = image.read("etc/passwd");
        assert!(made.contains(&format!("{user}:")), "no {user} in {made}");
        let credential = path.join(format!("etc/credstore/mesh-{role}.join-token"));
        match fs::metadata(&credential) {
            Ok(found) => assert_eq!(found.permissions().mode() & 0o777, 0o600, "{role}"),
            Err(_) => assert_eq!(role, "coordinator", "its token is not there"),
        }
    }
    let good = image.verify().expect_code(0);
    assert_eq!(good.stderr, "", "systemd finds something odd");

    // The same look finds a program that is not there.
    let relay = path.join(BIN).join("relay");
    fs::rename(&relay, relay.with_extension("away")).expect("renamed");
    let missing = image.verify();
    assert_ne!(missing.code, Some(0), "{}", missing.all());
    let told = format!("{bin_dir}/relay");
    assert!(missing.stderr.contains(&told), "{}", missing.all());
    fs::rename(relay.with_extension("away"), &relay).expect("renamed");

    for role in ROLES {
        let state = path.join("var/lib/mesh").join(role);
        fs::create_dir_all(&state).expect("made");
        fs::write(state.join("node.key"), "secret").expect("written");
        image
            .service(&["uninstall", role, "--purge"])
            .expect_code(0);
        let again = image.service(&["uninstall", role, "--purge"]);
        assert_eq!(again.code, Some(1), "{}", again.all());
        assert!(again.stderr.contains("is not installed"), "{}", again.all());
    }
    let mut left = files(&path);
    left.retain(|path| !before.contains(path) && !is_about_users(path));
    assert_eq!(left, BTreeSet::new(), "left behind");
    for dir in ["etc/mesh", "var/lib/mesh"] {
        assert!(!path.join(dir).exists(), "{dir} is empty and still there");
    }
}
