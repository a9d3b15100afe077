//! The stored netmap: the last good one, so that a node starts without its coordinator.
//!
//! One line `mesh netmap 1 <HMAC>`, then JSON. The HMAC is keyed from the identity key and covers
//! node, network, version and content: a file from elsewhere, or a changed one, is set aside and
//! counts as absent.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use mesh_api::identity::Identity;
use mesh_types::{Netmap, NetworkId, NodeId, Timestamp};
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::{Enrolled, NETMAP_FILE, StateDir, StateDirError, read, remove, write};

/// Separates this use of the identity key from all others.
const KEY_CONTEXT: &[u8] = b"mesh-stored-netmap-key-v1";
const HEADER: &str = "mesh netmap 1 ";
/// What a file that is not ours is called from then on.
const ASIDE: &str = "netmap.bad";

/// A netmap as it was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredNetmap {
    /// When it was last known to be current.
    pub saved: Timestamp,
    /// Peers there was traffic with lately: they are greeted at once after a start.
    pub active: Vec<NodeId>,
    /// The netmap.
    pub netmap: Netmap,
}

impl StateDir {
    /// The stored netmap of this node; `None` when there is none, or when the file was not made
    /// by this node (it is then renamed to `netmap.bad`).
    pub fn load_netmap(&self, enrolled: &Enrolled) -> Result<Option<StoredNetmap>, StateDirError> {
        let path = self.file(NETMAP_FILE);
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        let stored = StoredNetmap::open(&bytes, self.identity())
            .filter(|stored| stored.is_of(enrolled.node, enrolled.network_id));
        if stored.is_none() {
            let aside = self.file(ASIDE);
            tracing::info!(
                file = %path.display(),
                aside = %aside.display(),
                "the stored netmap is damaged or not this node's; set aside"
            );
            if let Err(source) = fs::rename(&path, &aside) {
                return Err(StateDirError::Io {
                    action: "set aside",
                    path,
                    source,
                });
            }
        }
        Ok(stored)
    }

    /// The file that was set aside, as long as it is there. Blocks on the disk.
    pub(crate) fn netmap_aside(&self) -> Option<PathBuf> {
        Some(self.file(ASIDE)).filter(|aside| aside.exists())
    }

    /// Stores the netmap, atomically. Blocks on the disk.
    pub fn store_netmap(&self, stored: &StoredNetmap) -> Result<(), StateDirError> {
        let path = self.file(NETMAP_FILE);
        let file = stored
            .seal(self.identity())
            .map_err(|error| StateDirError::Io {
                action: "encode",
                path: path.clone(),
                source: error.into(),
            })?;
        write(&path, &file)
    }

    /// Removes the stored netmap, if there is any. Blocks on the disk.
    pub(crate) fn remove_netmap(&self) -> Result<(), StateDirError> {
        remove(&self.file(NETMAP_FILE))
    }
}

impl StoredNetmap {
    /// The file's bytes, tagged by this identity.
    ///
    /// # Errors
    /// A netmap that JSON cannot hold: none that came from the wire.
    pub fn seal(&self, identity: &Identity) -> Result<Vec<u8>, serde_json::Error> {
        let content = serde_json::to_vec(self)?;
        let tag = hmac::sign(&key(identity), &covered(&self.netmap, &content));
        let mut file = String::from(HEADER);
        for byte in tag.as_ref() {
            let _infallible = write!(file, "{byte:02x}");
        }
        file.push('\n');
        let mut file = file.into_bytes();
        file.extend_from_slice(&content);
        Ok(file)
    }

    /// Reads a file; `None` when this identity did not make exactly these bytes.
    pub fn open(bytes: &[u8], identity: &Identity) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (head, content) = bytes.split_at(end);
        let content = content.get(1..)?;
        let tag = std::str::from_utf8(head).ok()?.strip_prefix(HEADER)?;
        let tag = from_hex(tag)?;
        // Parsed before it is verified, since the HMAC names its fields; the parser is serde's and
        // takes any bytes.
        let stored: Self = serde_json::from_slice(content).ok()?;
        let covered = covered(&stored.netmap, content);
        hmac::verify(&key(identity), &covered, &tag).ok()?;
        Some(stored)
    }

    /// Whether it is this node's, in this network.
    pub fn is_of(&self, node: NodeId, network: Option<NetworkId>) -> bool {
        self.netmap.node.id == node && Some(self.netmap.node.network) == network
    }
}

fn key(identity: &Identity) -> hmac::Key {
    let root = hmac::Key::new(hmac::HMAC_SHA256, identity.pkcs8());
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, KEY_CONTEXT).as_ref())
}

/// What the HMAC covers: node ‖ network ‖ version ‖ content.
fn covered(netmap: &Netmap, content: &[u8]) -> Vec<u8> {
    let version = netmap.cursor.version.to_be_bytes();
    let parts: [&[u8]; 4] = [
        netmap.node.id.as_bytes(),
        netmap.node.network.as_bytes(),
        &version,
        content,
    ];
    parts.concat()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| {
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    })
}
