//! The first operator's credential in the state directory: its key, its certificate, and where the
//! coordinator is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_api::identity::Identity;
use mesh_api::uri::Subject;
use mesh_daemon::{private_dir, read_private, write_private};
use mesh_types::{OperatorId, Timestamp};
use zeroize::Zeroizing;

use super::{BootstrapError, FIRST_OPERATOR};
use crate::ca::Ca;
use crate::record::OperatorRecord;
use crate::seal::Sealer;
use crate::store::Store;

/// The credential is made anew when less than this is left of it.
const OPERATOR_RENEW: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Where the first operator's credential is.
pub(crate) fn operator_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("operator")
}

/// Notes the coordinator's addresses beside the first operator's credential, if that is here.
pub(in crate::app) fn write_addresses(
    state_dir: &Path,
    addresses: &[String],
) -> Result<(), BootstrapError> {
    let dir = operator_dir(state_dir);
    if !dir.is_dir() {
        return Ok(());
    }
    let path = dir.join("addrs");
    write_private(&path, addresses.join("\n").as_bytes()).map_err(BootstrapError::Dir)
}

/// The name under which the key of an operator that this program made is sealed.
pub(super) fn operator_secret(operator: OperatorId) -> String {
    format!("operator-key/{operator}")
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    use base64::Engine as _;

    let body = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut text = Zeroizing::new(format!("-----BEGIN {label}-----\n"));
    for at in (0..body.len()).step_by(64) {
        text.push_str(&body[at..body.len().min(at + 64)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn write_operator_files(
    state_dir: &Path,
    ca: &Ca,
    operator: &OperatorRecord,
    certificate: &[u8],
    key: Option<&Identity>,
) -> Result<(), BootstrapError> {
    let dir = operator_dir(state_dir);
    private_dir(&dir).map_err(BootstrapError::Dir)?;
    let write = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        write_private(&path, content).map_err(BootstrapError::Dir)
    };
    if let Some(key) = key {
        write("operator.key", pem("PRIVATE KEY", key.pkcs8()).as_bytes())?;
    }
    write("operator.crt", pem("CERTIFICATE", certificate).as_bytes())?;
    write("ca.crt", pem("CERTIFICATE", ca.certificate()).as_bytes())?;
    write("id", operator.id.to_string().as_bytes())
}

/// A certificate in the operator's directory, in DER; `None` where there is none.
fn on_file(state_dir: &Path, name: &str) -> Result<Option<Vec<u8>>, BootstrapError> {
    let pem = read_private(operator_dir(state_dir).join(name)).map_err(BootstrapError::Dir)?;
    Ok(pem.and_then(|bytes| {
        let text = String::from_utf8(bytes).ok()?;
        let (_, read) = x509_parser::pem::parse_x509_pem(text.as_bytes()).ok()?;
        (read.label == "CERTIFICATE").then_some(read.contents)
    }))
}

/// The certificate of the authority that a coordinator had who worked from this state directory.
pub(super) fn authority_on_file(state_dir: &Path) -> Result<Option<Vec<u8>>, BootstrapError> {
    on_file(state_dir, "ca.crt")
}

/// Until when the certificate in the operator's directory is good: that of this key, of our
/// authority. What the database says of its dates is no help: the file may be lost, or of a state
/// directory that somebody put back, or another process may have renewed it elsewhere.
fn certificate_on_file(
    state_dir: &Path,
    ca: &Ca,
    operator: &OperatorRecord,
) -> Result<Option<Timestamp>, BootstrapError> {
    if authority_on_file(state_dir)?.as_deref() != Some(ca.certificate().as_ref()) {
        return Ok(None);
    }
    let Some(certificate) = on_file(state_dir, "operator.crt")? else {
        return Ok(None);
    };
    let good = x509_parser::parse_x509_certificate(&certificate).ok();
    Ok(good.and_then(|(_, certificate)| {
        let is_its = certificate.public_key().raw == operator.identity.as_spki_der();
        let until = certificate.validity().not_after.timestamp();
        is_its.then_some(Timestamp::from_secs(until))
    }))
}

/// Keeps the first operator's credential in the state directory: writes what is missing of it,
/// and renews its certificate while the coordinator has it at hand, so that the machine that runs
/// the coordinator never locks itself out.
pub(super) async fn keep_operator_files(
    store: &Store,
    sealer: &Sealer,
    ca: &Ca,
    state_dir: &Path,
    now: Timestamp,
) -> Result<(), BootstrapError> {
    let path = operator_dir(state_dir).join("id");
    let operators = store.operator_list().await?;
    let mut active = operators
        .into_iter()
        .filter(|operator| operator.revoked_at.is_none());
    let id = read_private(&path).map_err(BootstrapError::Dir)?;
    let id = id.map(|id| String::from_utf8_lossy(&id).trim().parse::<OperatorId>());
    let operator = active.find(|operator| match &id {
        Some(id) => Ok(operator.id) == *id,
        None => operator.name == FIRST_OPERATOR,
    });
    let Some(operator) = operator else {
        return Ok(());
    };
    let has_key = operator_dir(state_dir).join("operator.key").exists();
    let on_file = certificate_on_file(state_dir, ca, &operator)?;
    let is_good = on_file.is_some_and(|until| now.plus(OPERATOR_RENEW) < until);
    if has_key && id.is_some() && is_good {
        return Ok(());
    }
    let key = if has_key && id.is_some() {
        None
    } else {
        let name = operator_secret(operator.id);
        // Its key is kept elsewhere.
        let Some(sealed) = store.secret_show(&name).await? else {
            return Ok(());
        };
        let key = sealer.open(&name, &sealed.sealed)?;
        Some(Identity::from_pkcs8(&key).map_err(|_| BootstrapError::OperatorKey)?)
    };
    let issued = ca.issue(
        &Subject::Operator(operator.id),
        None,
        &operator.identity,
        now,
    )?;
    let operator = OperatorRecord {
        certificate_not_after: issued.not_after,
        ..operator
    };
    let txn = store.write().await?;
    // A coordinator beside may have revoked it since it was read.
    if !txn.operator_renew(operator.id, issued.not_after).await? {
        return txn.rollback().await.map_err(BootstrapError::from);
    }
    txn.commit().await?;
    write_operator_files(state_dir, ca, &operator, &issued.certificate, key.as_ref())
}
