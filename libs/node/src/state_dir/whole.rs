//! The files of an identity as they are read: each is what was written, or named as damaged. None of
//! them is made anew, for the identity would be lost.

use std::path::Path;

use mesh_api::tls;
use rustls::pki_types::CertificateDer;

use super::files::{at, read};
use super::keys::{self, Keys};
use super::{CA_FILE, CERT_FILE, ENROLLED, ENROLMENT_FILE, Enrolled, KEY_FILE, StateDirError};

/// The private keys in the directory at `dir`; `None` where there are none and nothing that belongs
/// to any.
pub(super) fn keys(dir: &Path) -> Result<Option<Keys>, StateDirError> {
    let path = dir.join(KEY_FILE);
    let Some(bytes) = read(&path)? else {
        // The key is written before all of these and removed after them, so that a crash leaves
        // none of them without it.
        for file in ENROLLED.map(|name| dir.join(name)) {
            if at("look at", &file, file.try_exists())? {
                return Err(StateDirError::Damaged {
                    path,
                    reason: "it is gone, and with it this node's keys; restore it from a backup, \
                             or empty the directory and join again",
                });
            }
        }
        return Ok(None);
    };
    match Keys::parse(&bytes) {
        Some(keys) => Ok(Some(keys)),
        None => Err(StateDirError::Damaged {
            path,
            reason: "it does not hold this node's keys; restore it from a backup, or empty the \
                     directory and join again",
        }),
    }
}

/// The node's certificate and its CA (both DER) in the directory at `dir`; `None` where one is
/// missing.
pub(super) fn certificates(
    dir: &Path,
) -> Result<Option<(CertificateDer<'static>, CertificateDer<'static>)>, StateDirError> {
    let one = |file: &str| {
        let path = dir.join(file);
        let Some(bytes) = read(&path)? else {
            return Ok(None);
        };
        let der = keys::from_pem(&bytes).filter(|der| tls::validity(der).is_some());
        match der {
            Some(der) => Ok(Some(CertificateDer::from(der))),
            None => Err(StateDirError::Damaged {
                path,
                reason: "it is not a certificate; restore it from a backup, or empty the directory \
                         and join again",
            }),
        }
    };
    Ok(one(CERT_FILE)?.zip(one(CA_FILE)?))
}

/// Who the node in the directory at `dir` is; `None` where nothing says so.
pub(super) fn enrolment(dir: &Path) -> Result<Option<Enrolled>, StateDirError> {
    let path = dir.join(ENROLMENT_FILE);
    let Some(bytes) = read(&path)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(enrolled) => Ok(Some(enrolled)),
        Err(_) => Err(StateDirError::Damaged {
            path,
            reason: "it does not say who this node is; restore it from a backup, or empty the \
                     directory and join again",
        }),
    }
}
