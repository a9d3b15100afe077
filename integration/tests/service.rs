//! `mesh service`: every role installed into an image, understood by systemd, and gone again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use integration::{Cli, binary};
use mesh_testkit::{Finished, Need, Spec, needs};
use mesh_types::{JoinToken, TokenId};

const NEEDED: [Need; 6] = [
    Need::Root,
    Need::Program("groupdel"),
    Need::Program("systemctl"),
    Need::Program("systemd-analyze"),
    Need::Program("systemd-sysusers"),
    Need::Program("userdel"),
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
/// The accounts of a machine that has no user but root.
const ACCOUNTS: [(&str, &str); 4] = [
    ("passwd", "root:x:0:0:root:/root:/bin/bash\n"),
    ("group", "root:x:0:\n"),
    ("shadow", "root:*:20000:0:99999:7:::\n"),
    ("gshadow", "root:*::\n"),
];
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

/// What whoever changes the accounts leaves beside them: a lock, and each file's last version.
fn is_beside_accounts(path: &str) -> bool {
    let name = path.strip_prefix("etc/").unwrap_or_default();
    let is_copy = |name: &str| ACCOUNTS.iter().any(|(file, _)| *file == name);
    name == ".pwd.lock" || name.strip_suffix('-').is_some_and(is_copy)
}

/// An image with the programs, its accounts, and what systemd itself brings.
fn make_image(root: &Path) {
    fs::create_dir_all(root.join("etc")).expect("made");
    for (name, text) in ACCOUNTS {
        fs::write(root.join("etc").join(name), text).expect("written");
    }
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
    fn new() -> Self {
        let cli = Cli::new().expect("folders");
        let path = cli.work("image");
        make_image(&path);
        let root = path.to_str().expect("a plain path").to_owned();
        Self { cli, root }
    }

    fn path(&self) -> &Path {
        Path::new(&self.root)
    }

    fn service(&self, words: &[&str]) -> Finished {
        let words = [&["service"], words, &["--root", &self.root]].concat();
        self.cli.mesh(&words)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path().join(path)).unwrap_or_default()
    }

    fn add(&self, path: &str, text: &str) {
        let text = self.read(path) + text;
        fs::write(self.path().join(path), text).expect("written");
    }

    /// Purges a role, and gives what is told of it.
    fn purge(&self, role: &str) -> String {
        let done = self.service(&["uninstall", role, "--purge"]);
        done.expect_code(0).stderr
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
    let image = Image::new();
    let path = image.path();
    let before = files(path);
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
        for (name, _) in ACCOUNTS {
            let made = image.read(&format!("etc/{name}"));
            let line = format!("\n{user}:");
            assert!(made.contains(&line), "no {user} in {name}: {made}");
        }
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
        image.purge(role);
        let again = image.service(&["uninstall", role, "--purge"]);
        assert_eq!(again.code, Some(1), "{}", again.all());
        assert!(again.stderr.contains("is not installed"), "{}", again.all());
    }
    let mut left = files(path);
    left.retain(|path| !before.contains(path) && !is_beside_accounts(path));
    assert_eq!(left, BTreeSet::new(), "left behind");
    for (name, text) in ACCOUNTS {
        assert_eq!(image.read(&format!("etc/{name}")), text, "{name}");
    }
    for dir in ["etc/mesh", "etc/sysusers.d", "var/lib/mesh"] {
        assert!(!path.join(dir).exists(), "{dir} is empty and still there");
    }
    // Newer versions of systemd make it, so it is not ours to take.
    assert!(path.join("etc/credstore").exists());
}

#[test]
fn what_an_uninstallation_keeps_can_be_purged_later() {
    if !needs(&NEEDED) {
        return;
    }
    let image = Image::new();
    let bin_dir = format!("/{BIN}");
    let before = files(image.path());
    let none = image.service(&["uninstall", "relay", "--purge"]);
    assert_eq!(none.code, Some(1), "{}", none.all());

    let install = ["install", "relay", "--bin-dir", &bin_dir];
    image.service(&install).expect_code(0);
    let kept = image.service(&["uninstall", "relay"]).expect_code(0);
    let told = "kept the user mesh-relay (--purge removes it)";
    assert!(kept.stderr.contains(told), "{}", kept.all());
    assert!(image.read("etc/passwd").contains("mesh-relay"));
    let none = image.service(&["uninstall", "relay"]);
    assert_eq!(none.code, Some(1), "{}", none.all());

    let told = image.purge("relay");
    assert!(told.contains("removed the user mesh-relay"), "{told}");
    let mut left = files(image.path());
    left.retain(|path| !before.contains(path) && !is_beside_accounts(path));
    assert_eq!(left, BTreeSet::new(), "left behind");
    assert_eq!(image.read("etc/passwd"), ACCOUNTS[0].1);
}

#[test]
fn users_and_groups_that_somebody_else_made_or_needs_stay() {
    if !needs(&NEEDED) {
        return;
    }
    let image = Image::new();
    let bin_dir = format!("/{BIN}");
    // Somebody's own, who has nothing to do with the mesh.
    let relay = "mesh-relay:x:990:990:Mail relay:/srv:/bin/sh\n";
    image.add("etc/passwd", relay);
    image.add("etc/group", "mesh-relay:x:990:\n");
    for role in ROLES {
        let install = ["install", role, "--bin-dir", &bin_dir];
        image.service(&install).expect_code(0);
    }
    // Somebody who may read what the gateway wrote, and one whose only group is the manager's.
    let group = image.read("etc/group");
    let line = group.lines().find(|line| line.starts_with("mesh-gateway:"));
    let line = line.expect("the gateway's group");
    let manager = group
        .lines()
        .find_map(|line| line.strip_prefix("mesh-deploy:x:"));
    let id = manager.expect("the manager's group").trim_end_matches(':');
    let guest = format!("guest:x:1500:{id}:A guest:/srv:/bin/sh\n");
    image.add("etc/passwd", &guest);
    let group = group.replace(line, &format!("{line}root"));
    fs::write(image.path().join("etc/group"), group).expect("written");

    for (role, wanted) in [
        (
            "relay",
            "kept the user mesh-relay, which mesh service did not make",
        ),
        ("coordinator", "removed the group mesh-coordinator"),
        ("traffic-gateway", "removed the user mesh-gateway"),
        (
            "deploy-manager",
            "kept the group mesh-deploy, which is the first group of: guest",
        ),
        ("worker-agent", "removed the group mesh-agent"),
    ] {
        let told = image.purge(role);
        assert!(told.contains(wanted), "{told}");
    }
    let passwd = image.read("etc/passwd");
    assert!(passwd.contains(relay), "{passwd}");
    assert!(passwd.contains(&guest), "{passwd}");
    let groups = image.read("etc/group");
    assert!(groups.contains("mesh-gateway:"), "{groups}");
    assert!(groups.contains("mesh-relay:"), "{groups}");
    assert!(groups.contains("mesh-deploy:"), "{groups}");
    for user in [
        "mesh-coordinator",
        "mesh-gateway",
        "mesh-deploy",
        "mesh-agent",
    ] {
        assert!(!passwd.contains(user), "{passwd}");
    }
}

#[test]
fn nothing_of_a_role_goes_while_something_else_runs_as_its_user() {
    if !needs(&NEEDED) {
        return;
    }
    let image = Image::new();
    let bin_dir = format!("/{BIN}");
    let install = ["install", "coordinator", "--bin-dir", &bin_dir];
    image.service(&install).expect_code(0);
    // A drop-in of the role's own unit is nobody else's.
    let drop_ins = "etc/systemd/system/mesh-coordinator.service.d";
    fs::create_dir_all(image.path().join(drop_ins)).expect("made");
    let drop_in = format!("{drop_ins}/own.conf");
    image.add(&drop_in, "[Service]\nUser=mesh-coordinator\n");
    // Nor are links to that unit, such as on a machine lead to it from the target that wants it.
    let unit = image
        .path()
        .join("etc/systemd/system/mesh-coordinator.service");
    for link in ["alias.service", "own.target.wants/mesh-coordinator.service"] {
        let link = image.path().join("etc/systemd/system").join(link);
        fs::create_dir_all(link.parent().expect("a parent")).expect("made");
        std::os::unix::fs::symlink(&unit, link).expect("linked");
    }
    let state = "var/lib/mesh/coordinator";
    fs::create_dir_all(image.path().join(state)).expect("made");
    image.add(&format!("{state}/ca.key"), "secret");
    let passwd = image.read("etc/passwd");
    let line = passwd
        .lines()
        .find_map(|line| line.strip_prefix("mesh-coordinator:x:"));
    let id = line.and_then(|line| line.split(':').next());
    let id = id.expect("a user").to_owned();

    // Once as it is installed, once when only what an uninstallation keeps is left.
    for is_installed in [true, false] {
        for (path, text, told) in [
            (
                "etc/systemd/system/report.service",
                "[Service]\nUser = mesh-coordinator\n".to_owned(),
                "etc/systemd/system/report.service runs with",
            ),
            (
                "run/systemd/system/report.service",
                format!("[Service]\nUser={id}\n"),
                "run/systemd/system/report.service runs with",
            ),
            (
                "etc/systemd/system/report.service.d/group.conf",
                "[Service]\nSupplementaryGroups=adm mesh-coordinator\n".to_owned(),
                "report.service.d/group.conf runs with",
            ),
            (
                "proc/4711/status",
                format!("Name:\tcoordinator\nUid:\t{id}\t{id}\t{id}\t{id}\n"),
                "run as the user mesh-coordinator: 4711 (coordinator)",
            ),
        ] {
            let file = image.path().join(path);
            fs::create_dir_all(file.parent().expect("a parent")).expect("made");
            image.add(path, &text);
            let before = files(image.path());
            let refused = image.service(&["uninstall", "coordinator", "--purge"]);
            assert_eq!(refused.code, Some(1), "{path}: {}", refused.all());
            assert!(refused.stderr.contains(told), "{}", refused.all());
            assert_eq!(files(image.path()), before, "{path}");
            assert_eq!(image.read("etc/passwd"), passwd, "{path}");
            fs::remove_file(&file).expect("removed");
        }
        if is_installed {
            let kept = image.service(&["uninstall", "coordinator"]);
            kept.expect_code(0);
        }
    }
    let told = image.purge("coordinator");
    assert!(told.contains("removed the user mesh-coordinator"), "{told}");
    assert!(!image.path().join(state).exists(), "the state is there");
    assert!(!image.read(&drop_in).is_empty(), "the drop-in is gone");
}
