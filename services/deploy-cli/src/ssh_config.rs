//! `Host` blocks for plain OpenSSH, and the fresh certificates that they ask for.
//!
//! OpenSSH evaluates `Match … exec` before it connects and waits for it, so the certificate is in
//! its file when OpenSSH reads it. (A `ProxyCommand` would run beside that, and too late.)

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use mesh_ssh::{Certificate, PrivateKey};
use mesh_types::time::span;
use mesh_types::{NetworkName, Timestamp};

use crate::run::login_user;
use crate::setting::{Issuer, Setting, is_away};
use crate::target::{Node, find};

/// What the blocks are made of.
#[derive(Debug)]
pub struct Blocks<'a> {
    /// The network.
    pub network: &'a NetworkName,
    /// The program that understands `nc` and `ssh-config --refresh`.
    pub program: &'a Path,
    /// Named in the printed commands, when the caller named it.
    pub context: Option<&'a str>,
    /// The SOCKS5 listener, when the caller named it.
    pub socks: Option<&'a str>,
    /// Where keys, certificates and known hosts are kept.
    pub dir: &'a Path,
    /// Overrides the nodes' own users.
    pub user: Option<&'a str>,
}

/// `$XDG_DATA_HOME/mesh/ssh/<network>`, else under `$HOME/.local/share`.
///
/// # Errors
///
/// When there is no home directory.
pub fn default_dir(network: &NetworkName) -> anyhow::Result<PathBuf> {
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")))
        .context("neither XDG_DATA_HOME nor HOME is set")?;
    Ok(data.join("mesh/ssh").join(network.as_str()))
}

/// Quotes an argument for ssh_config and the shell that runs its commands: in double quotes when
/// it holds anything but plain characters.
fn quoted(text: &str) -> anyhow::Result<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-:%@+=,".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    anyhow::ensure!(
        !text
            .bytes()
            .any(|b| b.is_ascii_control() || b"\"'\\$`!".contains(&b)),
        "{text:?} cannot be written into an ssh configuration; choose a plainer path"
    );
    Ok(format!("'{text}'"))
}

impl Blocks<'_> {
    /// The text for `~/.ssh/config`.
    ///
    /// # Errors
    ///
    /// When a path cannot be written in ssh's configuration.
    pub fn render(&self, nodes: &[Node]) -> anyhow::Result<String> {
        let network = self.network;
        let dir = self
            .dir
            .to_str()
            .context("the directory's name is not text")?;
        anyhow::ensure!(
            !dir.bytes().any(|b| b.is_ascii_control() || b == b'"'),
            "{dir:?} cannot be written into an ssh configuration; choose a plainer path"
        );
        let program = quoted(
            self.program
                .to_str()
                .context("the program's path is not text")?,
        )?;
        let mut flags = format!("--network {network}");
        for (flag, value) in [("--context", self.context), ("--socks", self.socks)] {
            if let Some(value) = value {
                write!(flags, " {flag} {}", quoted(value)?)?;
            }
        }
        let mut text = format!("# Nodes of the mesh network {network}. Made by: ssh-config\n");
        for node in nodes {
            if node.host_keys.is_empty() {
                writeln!(
                    text,
                    "\n# {} has not reported an SSH host key yet",
                    node.name
                )?;
                continue;
            }
            let names = names(node, network);
            writeln!(text, "\nHost {}", names.join(" "))?;
            writeln!(text, "    HostName {}", node.name)?;
            if let Ok(user) = login_user(node, self.user) {
                writeln!(text, "    User {user}")?;
            }
            writeln!(text, "    HostKeyAlias {}", alias(node, network))?;
            writeln!(text, "    UserKnownHostsFile \"{dir}/known_hosts\"")?;
            writeln!(text, "    GlobalKnownHostsFile none")?;
            writeln!(text, "    StrictHostKeyChecking yes")?;
            writeln!(text, "    UpdateHostKeys no")?;
            writeln!(text, "    IdentityFile \"{dir}/id\"")?;
            writeln!(text, "    IdentitiesOnly yes")?;
            writeln!(text, "    ProxyCommand {program} nc {flags} %h %p")?;
            writeln!(
                text,
                "Match originalhost {} exec \"{program} ssh-config {flags} --refresh %h --user %r\"",
                names.join(",")
            )?;
            writeln!(text, "    CertificateFile \"{dir}/%h-%r-cert.pub\"")?;
        }
        Ok(text)
    }
}

fn alias(node: &Node, network: &NetworkName) -> String {
    format!("{}.{network}.mesh.local", node.name)
}

/// The names that OpenSSH's user may type. The short one belongs to the default network.
fn names(node: &Node, network: &NetworkName) -> Vec<String> {
    let mut names = Vec::new();
    if network.is_default() {
        names.push(node.name.clone());
    }
    names.push(format!("{}.{network}", node.name));
    names.push(alias(node, network));
    names
}

/// The `known_hosts` file: the pinned keys under each node's alias.
pub fn known_hosts(nodes: &[Node], network: &NetworkName) -> String {
    let mut text = String::new();
    for node in nodes {
        for key in &node.host_keys {
            text.push_str(&format!("{} {key}\n", alias(node, network)));
        }
    }
    text
}

/// Writes key and known hosts, and gives the text to print.
///
/// # Errors
///
/// When the coordinator does not answer or a file cannot be written.
pub async fn print(setting: &Setting, blocks: &Blocks<'_>) -> anyhow::Result<String> {
    let nodes = setting.nodes(setting.coordinator().await?).await?;
    make_dir(blocks.dir)?;
    key(blocks.dir)?;
    let known = known_hosts(&nodes, blocks.network);
    write_file(&blocks.dir.join("known_hosts"), known.as_bytes())?;
    let workers: Vec<Node> = nodes.into_iter().filter(|node| node.is_worker).collect();
    blocks.render(&workers)
}

/// Makes a fresh certificate for `user` on `host`, and pins the host's keys of today. While the
/// coordinator does not answer, the last certificate does as long as it is valid.
///
/// # Errors
///
/// When the coordinator refuses, when it does not answer and there is no valid certificate, or a
/// file cannot be written.
pub async fn refresh(
    setting: &Setting,
    host: &str,
    user: Option<&str>,
    dir: &Path,
) -> anyhow::Result<()> {
    let (coordinator, nodes) = setting.nodes_even_without_coordinator(false).await?;
    let network = &setting.network;
    let node = find(host, &nodes, network.as_str())
        .with_context(|| format!("no such node in network {network} (see: mesh node list)"))?;
    let user = login_user(node, user)?;
    let principal: mesh_ssh::Principal = user.parse()?;
    let file = dir.join(format!("{}-{principal}-cert.pub", node.name));
    let Some(coordinator) = coordinator else {
        return usable(&file, SystemTime::now().into());
    };
    make_dir(dir)?;
    write_file(
        &dir.join("known_hosts"),
        known_hosts(&nodes, network).as_bytes(),
    )?;
    let issuer = Issuer::new(coordinator, network, key(dir)?);
    match issuer.issue(principal.as_str(), &[node.id]).await {
        Ok(line) => write_file(&file, format!("{line}\n").as_bytes()),
        // It went away in between.
        Err(error) if is_away(&error) => usable(&file, SystemTime::now().into()),
        Err(error) => Err(error),
    }
}

/// Whether the certificate in `file` lets somebody in at `now`.
fn usable(file: &Path, now: Timestamp) -> anyhow::Result<()> {
    let line = fs::read_to_string(file);
    let certificate: Option<Certificate> = line.ok().and_then(|line| line.parse().ok());
    let until = certificate.map(|certificate| certificate.valid_until());
    anyhow::ensure!(
        until.is_some_and(|until| now < until),
        "only the coordinator gives out certificates, and the last one {}; log in by a key that the \
         machine itself accepts: ssh -o IdentitiesOnly=no -i KEY",
        until.map_or_else(
            || "for this node was never made".to_owned(),
            |until| format!("ended {} ago", span(now.since(until))),
        )
    );
    Ok(())
}

/// The key in `dir`, made when there is none.
fn key(dir: &Path) -> anyhow::Result<PrivateKey> {
    let path = dir.join("id");
    match fs::read_to_string(&path) {
        Ok(text) => PrivateKey::from_openssh(&text, None)
            .with_context(|| format!("use {} (remove it to have a new one made)", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = PrivateKey::generate();
            write_file(&path, key.to_openssh()?.as_bytes())?;
            let public = format!("{}\n", key.public_key());
            write_file(&dir.join("id.pub"), public.as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("make {}", dir.display()))
}

/// Replaces the file in one step: several ssh may read it right now.
fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&fresh, path));
    written.with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_ssh::{CertificateRequest, UserCa};

    use super::*;
    use crate::target::tests::node;

    fn fleet() -> Vec<Node> {
        let mut web = node(1, "web", true);
        let line =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        web.host_keys = vec![line.parse().unwrap()];
        vec![web, node(2, "fresh", true)]
    }

    fn blocks<'a>(network: &'a NetworkName, program: &'a str) -> Blocks<'a> {
        Blocks {
            network,
            program: Path::new(program),
            context: None,
            socks: None,
            dir: Path::new("/home/o/.local/share/mesh/ssh/default"),
            user: None,
        }
    }

    #[test]
    fn the_printed_blocks_are_these() {
        let network = NetworkName::default_network();
        let text = blocks(&network, "/usr/bin/mesh").render(&fleet()).unwrap();
        assert_eq!(text, include_str!("../tests/golden/ssh_config.txt"));
    }

    #[test]
    fn nodes_of_other_networks_have_no_short_name_and_flags_are_passed_on() {
        let network: NetworkName = "home".parse().unwrap();
        let mut blocks = blocks(&network, "/opt/my mesh/mesh");
        blocks.context = Some("work");
        blocks.socks = Some("localhost:1081");
        let text = blocks.render(&fleet()[..1]).unwrap();
        assert!(
            text.contains("\nHost web.home web.home.mesh.local\n"),
            "{text}"
        );
        let flags = "--network home --context work --socks localhost:1081";
        let proxy = format!("ProxyCommand '/opt/my mesh/mesh' nc {flags} %h %p\n");
        assert!(text.contains(&proxy), "{text}");
        blocks.program = Path::new("/opt/$(x)/mesh");
        assert!(blocks.render(&fleet()).is_err());
    }

    #[test]
    fn openssh_understands_the_blocks_and_takes_the_certificate_only_after_the_refresh() {
        let dir = tempfile::tempdir().unwrap();
        let network = NetworkName::default_network();
        let ran = dir.path().join("ran");
        let program = dir.path().join("mesh");
        fs::write(
            &program,
            format!("#!/bin/sh\necho \"$@\" >> {}\n", ran.display()),
        )
        .unwrap();
        fs::set_permissions(
            &program,
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let mut blocks = blocks(&network, program.to_str().unwrap());
        blocks.dir = dir.path();
        let config = dir.path().join("config");
        fs::write(&config, blocks.render(&fleet()).unwrap()).unwrap();
        let out = std::process::Command::new("ssh")
            .arg("-G")
            .arg("-F")
            .args([config.as_os_str(), "root@web".as_ref()])
            .output()
            .expect("openssh-client is installed");
        let text = String::from_utf8(out.stdout).unwrap();
        for line in [
            "user root",
            "hostname web",
            "hostkeyalias web.default.mesh.local",
            "stricthostkeychecking true",
            &format!("certificatefile {}/%h-%r-cert.pub", dir.path().display()),
            &format!(
                "proxycommand {} nc --network default %h %p",
                program.display()
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let ran = fs::read_to_string(&ran).unwrap();
        assert_eq!(
            ran,
            "ssh-config --network default --refresh web --user root\n"
        );
    }

    #[test]
    fn a_key_is_made_once_and_only_its_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let first = key(dir.path()).unwrap().public_key();
        assert_eq!(key(dir.path()).unwrap().public_key(), first);
        let mode = fs::metadata(dir.path().join("id"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_certificate_is_used_until_its_end_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web-root-cert.pub");
        let now = Timestamp::from_secs(1_800_000_000);
        let refused = |now| format!("{:#}", usable(&file, now).unwrap_err());
        assert!(refused(now).contains("was never made"), "{}", refused(now));
        let request = CertificateRequest {
            public_key: PrivateKey::generate().public_key(),
            principal: "root".parse().unwrap(),
            key_id: "o".to_owned(),
            serial: 1,
            source_addresses: vec!["100.64.0.1".parse().unwrap()],
        };
        let certificate = UserCa::generate().sign(&request, now).unwrap();
        write_file(&file, format!("{certificate}\n").as_bytes()).unwrap();
        let until = certificate.valid_until();
        usable(&file, until.minus(Duration::from_secs(1))).unwrap();
        let later = until.plus(Duration::from_secs(120));
        assert!(
            refused(until).contains("ended 0 s ago"),
            "{}",
            refused(until)
        );
        assert!(
            refused(later).contains("ended 2 min ago"),
            "{}",
            refused(later)
        );
        write_file(&file, b"ssh-ed25519-cert-v01@openssh.com nonsense\n").unwrap();
        assert!(refused(now).contains("was never made"), "{}", refused(now));
    }

    #[test]
    fn known_hosts_pins_each_key_under_the_long_name() {
        let text = known_hosts(&fleet(), &NetworkName::default_network());
        assert!(
            text.starts_with("web.default.mesh.local ssh-ed25519 AAAA"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }
}
