//! Whether a user certificate lets its holder in: a pure decision (OpenSSH's PROTOCOL.certkeys).

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_types::Timestamp;
use russh::keys::ssh_key::HashAlg;

use crate::key::{Certificate, PublicKey};

/// Why a certificate does not let its holder in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Signed by nobody this server trusts, or the signature is wrong.
    #[error("the certificate is not signed by an authority this node trusts")]
    UntrustedAuthority,
    /// A host certificate, used as a user's.
    #[error("the certificate is not a user certificate")]
    NotForUsers,
    /// Not valid yet; the clocks may differ.
    #[error("the certificate is not valid yet (check the clocks)")]
    NotYetValid,
    /// No longer valid.
    #[error("the certificate has expired (check the clocks)")]
    Expired,
    /// Made for another user.
    #[error("the certificate is not for user {0:?}")]
    OtherPrincipal(String),
    /// Used from an address that it does not list.
    #[error("the certificate may not be used from {0}")]
    OtherSource(IpAddr),
    /// It lists no source addresses at all, or unreadable ones.
    #[error("the certificate has no usable list of source addresses")]
    NoSource,
    /// A critical option that this server does not know; it must refuse.
    #[error("the certificate has the critical option {0:?}, which this node does not know")]
    UnknownCriticalOption(String),
}

/// What the certificate grants besides running commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// A pseudo-terminal may be asked for.
    pub pty: bool,
}

/// Decides about `certificate`, used to log in as `user` from `peer` at `now`.
///
/// The proof that the caller holds the certified key is the transport's.
///
/// # Errors
///
/// [`Refusal`] says what does not fit; nothing unknown is let through.
pub fn admit(
    certificate: &Certificate,
    user: &str,
    peer: IpAddr,
    authorities: &[PublicKey],
    now: Timestamp,
) -> Result<Grant, Refusal> {
    let cert = &certificate.0;
    let seconds = u64::try_from(now.as_secs()).unwrap_or(0);
    if !authorities
        .iter()
        .any(|ca| ca.0.key_data() == cert.signature_key())
    {
        return Err(Refusal::UntrustedAuthority);
    }
    if seconds < cert.valid_after() {
        return Err(Refusal::NotYetValid);
    }
    if seconds >= cert.valid_before() {
        return Err(Refusal::Expired);
    }
    let fingerprints: Vec<_> = authorities
        .iter()
        .map(|ca| ca.0.fingerprint(HashAlg::Sha256))
        .collect();
    cert.validate_at(seconds, &fingerprints)
        .map_err(|_| Refusal::UntrustedAuthority)?;
    if !cert.cert_type().is_user() {
        return Err(Refusal::NotForUsers);
    }
    // An empty list means "everybody" to OpenSSH; here it means nobody.
    if !cert.valid_principals().iter().any(|name| name == user) {
        return Err(Refusal::OtherPrincipal(user.chars().take(40).collect()));
    }
    let mut source = None;
    for (name, value) in cert.critical_options().iter() {
        match name.as_str() {
            "source-address" => source = Some(value.as_str()),
            other => {
                return Err(Refusal::UnknownCriticalOption(
                    other.chars().take(40).collect(),
                ));
            }
        }
    }
    let listed = source.and_then(parse_sources).ok_or(Refusal::NoSource)?;
    let peer = peer.to_canonical();
    if !listed.iter().any(|net| net.contains(&peer)) {
        return Err(Refusal::OtherSource(peer));
    }
    Ok(Grant {
        pty: cert.extensions().contains_key("permit-pty"),
    })
}

/// A comma-separated list of addresses and CIDR prefixes; `None` when a part is neither.
fn parse_sources(list: &str) -> Option<Vec<IpNet>> {
    list.split(',')
        .map(|part| {
            let part = part.trim();
            part.parse::<IpNet>()
                .ok()
                .or_else(|| part.parse::<IpAddr>().ok().map(IpNet::from))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use russh::keys::ssh_key::certificate::{Builder, CertType};

    use super::*;
    use crate::ca::{BACKDATE, CertificateRequest, UserCa, VALIDITY};
    use crate::key::PrivateKey;

    const PEER: &str = "100.64.0.7";

    fn now() -> Timestamp {
        Timestamp::from_secs(1_800_000_000)
    }

    fn peer() -> IpAddr {
        PEER.parse().unwrap()
    }

    fn issue(ca: &UserCa) -> Certificate {
        let request = CertificateRequest {
            public_key: PrivateKey::generate().public_key(),
            principal: "deploy".parse().unwrap(),
            key_id: "operator".into(),
            serial: 7,
            source_addresses: vec![peer(), "fd7a:115c:a1e0::7".parse().unwrap()],
        };
        ca.sign(&request, now()).unwrap()
    }

    /// A certificate with anything in it, as a careless or hostile authority would make it.
    fn craft(ca: &PrivateKey, shape: impl FnOnce(&mut Builder)) -> Certificate {
        let subject = PrivateKey::generate().public_key();
        let mut builder = Builder::new(
            [1u8; 16],
            subject.0.key_data().clone(),
            1_799_999_000,
            1_800_001_000,
        )
        .unwrap();
        shape(&mut builder);
        Certificate(builder.sign(&*ca.0).unwrap())
    }

    #[test]
    fn what_the_authority_issues_is_admitted_from_both_addresses() {
        let ca = UserCa::generate();
        let cert = issue(&ca);
        let cas = [ca.public_key()];
        let granted = admit(&cert, "deploy", peer(), &cas, now());
        assert_eq!(granted, Ok(Grant { pty: true }));
        let v6 = "fd7a:115c:a1e0::7".parse().unwrap();
        assert!(admit(&cert, "deploy", v6, &cas, now()).is_ok());
        assert_eq!(cert.serial(), 7);
        assert_eq!(cert.valid_until(), now().plus(VALIDITY));
    }

    #[test]
    fn every_kind_of_misuse_has_its_own_refusal() {
        let ca = UserCa::generate();
        let cert = issue(&ca);
        let cas = [ca.public_key()];
        let strangers = [UserCa::generate().public_key()];
        let elsewhere: IpAddr = "100.64.0.8".parse().unwrap();
        let early = now().minus(BACKDATE + Duration::from_secs(1));
        let late = now().plus(VALIDITY);
        for (user, from, cas, at, refusal) in [
            (
                "deploy",
                peer(),
                &strangers[..],
                now(),
                Refusal::UntrustedAuthority,
            ),
            (
                "deploy",
                peer(),
                &[][..],
                now(),
                Refusal::UntrustedAuthority,
            ),
            (
                "root",
                peer(),
                &cas[..],
                now(),
                Refusal::OtherPrincipal("root".into()),
            ),
            (
                "deploy",
                elsewhere,
                &cas[..],
                now(),
                Refusal::OtherSource(elsewhere),
            ),
            ("deploy", peer(), &cas[..], early, Refusal::NotYetValid),
            ("deploy", peer(), &cas[..], late, Refusal::Expired),
        ] {
            assert_eq!(admit(&cert, user, from, cas, at), Err(refusal));
        }
    }

    #[test]
    fn certificates_no_honest_authority_makes_are_refused() {
        let ca = PrivateKey::generate();
        let cas = [ca.public_key()];
        let decide = |cert: &Certificate| admit(cert, "deploy", peer(), &cas, now());
        let everyone = craft(&ca, |b| {
            b.all_principals_valid().unwrap();
            b.critical_option("source-address", PEER).unwrap();
        });
        assert_eq!(
            decide(&everyone),
            Err(Refusal::OtherPrincipal("deploy".into()))
        );
        let anywhere = craft(&ca, |b| {
            b.valid_principal("deploy").unwrap();
        });
        assert_eq!(decide(&anywhere), Err(Refusal::NoSource));
        let unreadable = craft(&ca, |b| {
            b.valid_principal("deploy").unwrap();
            b.critical_option("source-address", "100.64.0.0/10,!")
                .unwrap();
        });
        assert_eq!(decide(&unreadable), Err(Refusal::NoSource));
        let forced = craft(&ca, |b| {
            b.valid_principal("deploy").unwrap();
            b.critical_option("source-address", PEER).unwrap();
            b.critical_option("force-command", "true").unwrap();
        });
        let unknown = Refusal::UnknownCriticalOption("force-command".into());
        assert_eq!(decide(&forced), Err(unknown));
        let host = craft(&ca, |b| {
            b.cert_type(CertType::Host).unwrap();
            b.valid_principal("deploy").unwrap();
        });
        assert_eq!(decide(&host), Err(Refusal::NotForUsers));
    }

    #[test]
    fn a_certificate_without_permit_pty_grants_no_terminal() {
        let ca = PrivateKey::generate();
        let cert = craft(&ca, |b| {
            b.valid_principal("deploy").unwrap();
            b.critical_option("source-address", "100.64.0.0/10")
                .unwrap();
        });
        let granted = admit(&cert, "deploy", peer(), &[ca.public_key()], now());
        assert_eq!(granted, Ok(Grant { pty: false }));
    }
}
