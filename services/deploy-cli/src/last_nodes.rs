//! The nodes as the coordinator last told them: what to go by while it does not answer.
//!
//! One 0600 file for each mesh and network under `$XDG_DATA_HOME/mesh/nodes`. It holds what decides
//! whom a command goes to and which host keys count, so it is as well kept as the context.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use mesh_api::tls::fingerprint;
use mesh_types::time::span;
use mesh_types::{Labels, NetworkName, NodeId, OverlayAddrs, Timestamp};
use serde::{Deserialize, Serialize};

use crate::target::Node;

/// A list older than this is not gone by unasked: meanwhile nodes were removed, given other labels
/// or other host keys, and it knows nothing of it. An outage that is seen to ends within a day.
pub const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A clock that is set by a time server goes back by less than this.
const AHEAD: Duration = Duration::from_secs(60);

/// The list is too old to go by.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooOld {
    /// It is older than [`MAX_AGE`].
    #[error(
        "the last list of nodes is {} old, and nodes may have been removed or labelled anew since; \
         see to the coordinator ('mesh status'), or go by that list with --old-nodes", span(*.0)
    )]
    Old(Duration),
    /// It is from a time that is yet to come, so its age is not known.
    #[error(
        "the last list of nodes is from {} ahead of this machine's clock, so its age is not known; \
         set the clock (timedatectl set-ntp true), or go by that list with --old-nodes", span(*.0)
    )]
    Ahead(Duration),
}

/// Nodes, and when the coordinator told them.
#[derive(Debug, PartialEq, Eq)]
pub struct LastNodes {
    pub told: Timestamp,
    pub nodes: Vec<Node>,
}

impl LastNodes {
    /// How old the list is at `now`, where it may be gone by; `old_too`: whatever its age.
    ///
    /// # Errors
    /// It is too old, or its age is not known.
    pub fn age(&self, now: Timestamp, old_too: bool) -> Result<Duration, TooOld> {
        let (age, ahead) = (now.since(self.told), self.told.since(now));
        if old_too {
            return Ok(age);
        }
        if ahead > AHEAD {
            return Err(TooOld::Ahead(ahead));
        }
        if age > MAX_AGE {
            return Err(TooOld::Old(age));
        }
        Ok(age)
    }
}

/// Version of the file's form.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    told: Timestamp,
    nodes: Vec<StoredNode>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredNode {
    id: NodeId,
    name: String,
    addrs: OverlayAddrs,
    is_worker: bool,
    host_keys: Vec<String>,
    user: String,
    console_prefix: String,
    labels: Labels,
}

/// The file for a network of the mesh that has this certificate authority (DER).
pub fn file(ca: &[u8], network: &NetworkName) -> anyhow::Result<PathBuf> {
    let mesh = fingerprint(ca).context("the context's certificate authority is damaged")?;
    let mesh: String = mesh[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")))
        .context("neither XDG_DATA_HOME nor HOME is set")?;
    Ok(data.join(format!("mesh/nodes/{mesh}-{network}.json")))
}

/// Keeps what the coordinator told just now.
pub fn keep(file: &Path, nodes: &[Node]) -> anyhow::Result<()> {
    let stored = Stored {
        version: VERSION,
        told: SystemTime::now().into(),
        nodes: nodes.iter().map(StoredNode::from).collect(),
    };
    if let Some(dir) = file.parent() {
        mesh_daemon::private_dir(dir)?;
    }
    Ok(mesh_daemon::write_private(
        file,
        &serde_json::to_vec(&stored)?,
    )?)
}

/// What was kept; `None` when nothing was, or not by this version, and when it is not ours alone:
/// another user's file, or one whose mode lets others in, as with contexts.
pub fn read(file: &Path) -> Option<LastNodes> {
    if fs::metadata(file).ok()?.permissions().mode() & 0o077 != 0 {
        return None;
    }
    let content = mesh_daemon::read_private(file).ok()??;
    let stored: Stored = serde_json::from_slice(&content).ok()?;
    (stored.version == VERSION).then(|| LastNodes {
        told: stored.told,
        nodes: stored.nodes.into_iter().map(Node::from).collect(),
    })
}

impl From<&Node> for StoredNode {
    fn from(node: &Node) -> Self {
        let Node {
            id,
            name,
            addrs,
            is_worker,
            host_keys,
            user,
            console_prefix,
            labels,
        } = node.clone();
        Self {
            id,
            name,
            addrs,
            is_worker,
            host_keys: host_keys.iter().map(ToString::to_string).collect(),
            user,
            console_prefix,
            labels,
        }
    }
}

impl From<StoredNode> for Node {
    fn from(stored: StoredNode) -> Self {
        let keys = stored.host_keys.iter();
        Self {
            id: stored.id,
            name: stored.name,
            addrs: stored.addrs,
            is_worker: stored.is_worker,
            // As with those that the coordinator tells: an unknown kind is presented by nobody.
            host_keys: keys.filter_map(|line| line.parse().ok()).collect(),
            user: stored.user,
            console_prefix: stored.console_prefix,
            labels: stored.labels,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use mesh_ssh::PrivateKey;

    use super::*;
    use crate::target::tests::node;

    #[test]
    fn what_is_kept_is_read_again_and_private() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("nodes/mesh-default.json");
        assert_eq!(read(&file), None, "nothing was kept");
        let mut web = node(1, "web", true);
        web.host_keys = vec![PrivateKey::generate().public_key()];
        web.labels
            .set("env=prod".parse().expect("a label"))
            .expect("room");
        let nodes = [web, node(2, "gateway", false)];
        let before = Timestamp::from(SystemTime::now());
        keep(&file, &nodes).expect("kept");
        let last = read(&file).expect("there");
        assert_eq!(last.nodes, nodes);
        assert!(last.told >= before);
        let mode = fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_list_is_gone_by_for_a_day_and_then_only_if_that_is_said() {
        let last = LastNodes {
            told: Timestamp::from_secs(1_800_000_000),
            nodes: Vec::new(),
        };
        let hours = |hours: u64| last.told.plus(Duration::from_secs(hours * 3600));
        let ages = [(hours(0), "0 s"), (hours(2), "2 h"), (hours(24), "24 h")];
        for (now, age) in ages {
            assert_eq!(last.age(now, false).map(span).as_deref(), Ok(age));
        }
        let refused = last.age(hours(25), false).expect_err("too old").to_string();
        assert!(refused.contains("is 25 h old"), "{refused}");
        let refused = last.age(hours(80), false).expect_err("too old").to_string();
        assert!(refused.contains("is 3 days old"), "{refused}");
        assert!(refused.contains("--old-nodes"), "{refused}");
        assert_eq!(last.age(hours(80), true).map(span).as_deref(), Ok("3 days"));
        // A clock that was corrected a little, and one that was set back by a day.
        let back = |secs| last.told.minus(Duration::from_secs(secs));
        assert_eq!(last.age(back(60), false), Ok(Duration::ZERO));
        let refused = last.age(back(86_400), false).expect_err("not known");
        assert!(refused.to_string().contains("24 h ahead of"), "{refused}");
        assert_eq!(last.age(back(86_400), true), Ok(Duration::ZERO));
    }

    #[test]
    fn what_others_could_have_written_or_read_counts_as_absent() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("default.json");
        keep(&file, &[node(1, "web", true)]).expect("kept");
        for mode in [0o660, 0o602, 0o644] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("opened");
            assert_eq!(read(&file), None, "{mode:o}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("closed");
        assert!(read(&file).is_some());
        // Only root can give a file away.
        if fs::metadata(&file).expect("there").uid() == 0 {
            std::os::unix::fs::chown(&file, Some(65_532), None).expect("given away");
            assert_eq!(read(&file), None, "another user's");
        }
    }

    #[test]
    fn another_version_or_a_damaged_file_counts_as_absent() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("default.json");
        keep(&file, &[node(1, "web", true)]).expect("kept");
        let text = fs::read_to_string(&file).expect("there");
        let newer = text.replacen("\"version\":1", "\"version\":2", 1);
        assert_ne!(newer, text);
        for other in [newer.as_str(), &text[..text.len() / 2], ""] {
            fs::write(&file, other).expect("written");
            assert_eq!(read(&file), None, "{other}");
        }
    }
}
