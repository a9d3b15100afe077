//! The state directory: everything one node identity keeps on disk, and nothing else does.
//!
//! One directory (0700) belongs to one identity and is used by one process at a time. The private
//! keys in it (`node.key`, 0600) are made here and never leave it. Every file is replaced whole
//! (write, sync, rename), so that a crash leaves the old one or the new one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_api::identity::Identity;
use mesh_types::key::SecretKey;
use mesh_types::{
    DiscoPublicKey, IdentityPublicKey, NetworkId, NetworkName, NodeId, NodeName, OverlayAddrs,
    RelayId, Role, WgPublicKey,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

mod files;
mod keys;
mod netmap;
mod whole;

pub use netmap::StoredNetmap;

use files::{at, check_owner, check_version, lock, make_private, read, remove, write};
use keys::Keys;

/// The format this program reads and writes.
const FORMAT: u32 = 1;
const VERSION_FILE: &str = "version";
const LOCK_FILE: &str = "lock";
const KEY_FILE: &str = "node.key";
const CERT_FILE: &str = "node.crt";
const CA_FILE: &str = "ca.crt";
const ENROLMENT_FILE: &str = "node.json";
const NETMAP_FILE: &str = "netmap";
/// A node that has all of these has joined; the first of them is written last.
const ENROLLED: [&str; 3] = [ENROLMENT_FILE, CERT_FILE, CA_FILE];

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process holds its lock.
    #[error(
        "another process (pid {pid}) uses this state directory: {}; stop it, or choose another \
         directory", .path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process id written by the holder, or `unknown`.
        pid: String,
    },
    /// Its format is one this program does not know.
    #[error(
        "the state directory {} is of format {found}, this program knows format {FORMAT}: use the \
         program that wrote it, or another directory", .path.display()
    )]
    OtherVersion {
        /// The directory.
        path: PathBuf,
        /// What its version file says, shortened.
        found: String,
    },
    /// It belongs to another user of the machine.
    #[error(
        "the state directory {} belongs to another user (uid {owner}, this process is uid {own}): \
         run as that user, or choose another directory", .path.display()
    )]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who this process runs as.
        own: u32,
    },
    /// It is readable by others and holds files that are not ours, so its mode is left alone.
    #[error(
        "{} is open to other users and holds other files: give a directory of its own, or run \
         'chmod 700' on it", .path.display()
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
    },
    /// It is there but not a directory.
    #[error("{} is not a directory", .path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A file in it cannot be understood.
    #[error("{} is damaged: {reason}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong and what helps.
        reason: &'static str,
    },
    /// The system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Who this node is, as the coordinator settled it at enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its id. A relay's id has the same bytes; see [`Enrolled::relay`].
    pub node: NodeId,
    /// Its name when it enrolled; the netmap has the current one.
    pub name: NodeName,
    /// Its role.
    pub role: Role,
    /// Its network; a relay has none.
    pub network: Option<NetworkName>,
    /// Its network's id; a relay has none.
    pub network_id: Option<NetworkId>,
    /// Its overlay addresses; a relay has none.
    pub addrs: Option<OverlayAddrs>,
    /// Path prefix of its console at the gateway.
    pub console_prefix: String,
    /// Who made the join token.
    pub owner: String,
    /// Where the coordinator is: `host:port` each, tried in order.
    pub coordinators: Vec<String>,
}

impl Enrolled {
    /// The relay's id, when this is a relay.
    pub fn relay(&self) -> Option<RelayId> {
        (self.role == Role::Relay).then(|| RelayId::from_bytes(self.node.to_bytes()))
    }
}

/// An open state directory; a cheap handle. The lock is held until the last clone is dropped.
#[derive(Debug, Clone)]
pub struct StateDir {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    keys: Keys,
    // Held for its lock.
    _lock: File,
}

impl StateDir {
    /// Opens the directory, made (0700) when it is not there, and takes its lock. The private keys
    /// are made when it has none.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateDirError> {
        let path = path.into();
        make_private(&path)?;
        let lock = lock(&path)?;
        check_version(&path)?;
        let keys = match whole::keys(&path)? {
            Some(keys) => keys,
            None => {
                let keys = Keys::generate().map_err(|_| StateDirError::Io {
                    action: "make keys for",
                    path: path.clone(),
                    source: io::Error::other("the system gave no randomness"),
                })?;
                write(&path.join(KEY_FILE), &keys.to_text())?;
                keys
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                path,
                keys,
                _lock: lock,
            }),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The identity key pair.
    pub fn identity(&self) -> &Identity {
        &self.inner.keys.identity
    }

    /// The identity's public key.
    pub fn identity_public(&self) -> &IdentityPublicKey {
        self.inner.keys.identity.public_key()
    }

    /// The WireGuard private key.
    pub fn wg_key(&self) -> &SecretKey {
        &self.inner.keys.wireguard
    }

    /// The disco private key.
    pub fn disco_key(&self) -> &SecretKey {
        &self.inner.keys.disco
    }

    /// The WireGuard public key.
    pub fn wg_public(&self) -> WgPublicKey {
        mesh_tunnel::wg_public_key(self.wg_key())
    }

    /// The disco public key.
    pub fn disco_public(&self) -> DiscoPublicKey {
        mesh_tunnel::disco_public_key(self.disco_key())
    }

    /// Whether an enrolment is stored.
    pub fn is_enrolled(&self) -> bool {
        ENROLLED.iter().all(|file| self.file(file).exists())
    }

    /// Whether an enrolment is stored in the directory at `path`. Makes and locks nothing; a
    /// directory that is not there holds none.
    ///
    /// # Errors
    ///
    /// It belongs to another user, is no directory, or the system does not let us look.
    pub fn is_enrolled_at(path: &Path) -> Result<bool, StateDirError> {
        let meta = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            looked => at("look at", path, looked)?,
        };
        check_owner(path, &meta)?;
        if !meta.is_dir() {
            return Err(StateDirError::NotADirectory {
                path: path.to_owned(),
            });
        }
        for name in ENROLLED {
            let file = path.join(name);
            if !at("look at", &file, file.try_exists())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// As [`StateDir::is_enrolled_at`], and reads what is stored of the enrolment: a program that
    /// does not run may be one that cannot start.
    ///
    /// # Errors
    ///
    /// The same; and [`StateDirError::Damaged`] of the first file that is not what was written.
    pub fn check_at(path: &Path) -> Result<bool, StateDirError> {
        if !Self::is_enrolled_at(path)? {
            return Ok(false);
        }
        whole::keys(path)?;
        whole::certificates(path)?;
        whole::enrolment(path)?;
        Ok(true)
    }

    /// The enrolment in the directory at `path`, with its CA (DER). Makes and locks nothing, so that
    /// it may be asked beside the program that runs there.
    ///
    /// # Errors
    ///
    /// As of [`StateDir::check_at`].
    pub fn enrolment_at(
        path: &Path,
    ) -> Result<Option<(Enrolled, CertificateDer<'static>)>, StateDirError> {
        if !Self::is_enrolled_at(path)? {
            return Ok(None);
        }
        let ca = whole::certificates(path)?.map(|(_, ca)| ca);
        Ok(whole::enrolment(path)?.zip(ca))
    }

    /// Who this node is; `None` before its enrolment.
    pub fn enrolment(&self) -> Result<Option<Enrolled>, StateDirError> {
        if !self.is_enrolled() {
            return Ok(None);
        }
        whole::enrolment(self.path())
    }

    /// Stores an enrolment. The file that says who this node is comes last, so that a crash in
    /// between counts as not enrolled.
    pub fn store_enrolment(
        &self,
        enrolled: &Enrolled,
        certificate: &[u8],
        ca: &[u8],
    ) -> Result<(), StateDirError> {
        self.store_certificate(certificate, ca)?;
        let mut json = serde_json::to_vec_pretty(enrolled).map_err(|error| StateDirError::Io {
            action: "encode",
            path: self.file(ENROLMENT_FILE),
            source: error.into(),
        })?;
        json.push(b'\n');
        write(&self.file(ENROLMENT_FILE), &json)
    }

    /// Stores a renewed certificate (both DER).
    pub fn store_certificate(&self, certificate: &[u8], ca: &[u8]) -> Result<(), StateDirError> {
        write(&self.file(CA_FILE), keys::to_pem(ca).as_bytes())?;
        write(&self.file(CERT_FILE), keys::to_pem(certificate).as_bytes())
    }

    /// The node's certificate and its CA (both DER); `None` before the enrolment.
    pub fn certificates(
        &self,
    ) -> Result<Option<(CertificateDer<'static>, CertificateDer<'static>)>, StateDirError> {
        whole::certificates(self.path())
    }

    /// A service's own small file in this directory; `None` when it is not there.
    ///
    /// `name` is a plain file name.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateDirError> {
        read(&self.file(name))
    }

    /// Replaces a service's own small file (0600), atomically.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateDirError> {
        write(&self.file(name), bytes)
    }

    /// Removes keys, certificates and everything learnt, for good. The directory stays.
    pub fn wipe(&self) -> Result<(), StateDirError> {
        // Who we are goes first: what is left after a crash counts as not enrolled.
        [ENROLMENT_FILE, CERT_FILE, NETMAP_FILE, CA_FILE, KEY_FILE]
            .iter()
            .try_for_each(|file| remove(&self.file(file)))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.inner.path.join(name)
    }
}

#[cfg(test)]
mod tests;
