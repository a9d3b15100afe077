//! Certificate requests (PKCS#10, RFC 2986) as they come from machines that nobody knows yet.
//!
//! [`crate::identity::Identity::csr_der`] writes them.

use mesh_types::IdentityPublicKey;
use rcgen::CertificateSigningRequestParams;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;

const AUTHORITY: &str = "the rights of a certificate authority";

/// Why a certificate request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It is no PKCS#10 request, its signature does not fit, or its key is not P-256.
    #[error("the certificate request is not valid: {0}")]
    Invalid(&'static str),
    /// It asks for rights that only the coordinator gives.
    #[error(
        "the certificate request asks for {0}: names and rights are decided by the coordinator; send a request with nothing but the public key"
    )]
    Rights(&'static str),
}

/// The public key of a certificate request, once its own signature holds and it asks for nothing.
///
/// # Errors
/// It is no such request, or asks for more.
pub fn key_of_request(der: &[u8]) -> Result<IdentityPublicKey, CsrError> {
    // It checks the signature; what is asked for it tells only in part (of two extensions of one
    // kind the last).
    CertificateSigningRequestParams::from_der(&der.into()).map_err(|error| match error {
        rcgen::Error::UnsupportedExtension => CsrError::Rights("extensions"),
        rcgen::Error::InvalidCertificationRequestSignature => {
            CsrError::Invalid("its signature was made by another key")
        }
        _ => CsrError::Invalid("it cannot be read as PKCS#10"),
    })?;
    let (_, parsed) = X509CertificationRequest::from_der(der)
        .map_err(|_| CsrError::Invalid("it cannot be read as PKCS#10"))?;
    let info = &parsed.certification_request_info;
    if let Some(attribute) = info.iter_attributes().next() {
        return Err(CsrError::Rights(asked(attribute.parsed_attribute())));
    }
    IdentityPublicKey::from_spki_der(info.subject_pki.raw)
        .map_err(|_| CsrError::Invalid("its key is not ECDSA P-256"))
}

/// What an attribute asks for.
fn asked(attribute: &ParsedCriAttribute<'_>) -> &'static str {
    let ParsedCriAttribute::ExtensionRequest(request) = attribute else {
        return "attributes";
    };
    let mut extensions = request.extensions.iter();
    let named = extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::BasicConstraints(limits) if limits.ca => Some(AUTHORITY),
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() => Some(AUTHORITY),
        ParsedExtension::ExtendedKeyUsage(_) => Some("the rights of a server"),
        ParsedExtension::SubjectAlternativeName(_) => Some("names of its own"),
        _ => None,
    });
    named.unwrap_or("extensions")
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa,
        KeyPair, KeyUsagePurpose, SanType,
    };

    use super::*;
    use crate::identity::Identity;

    fn request(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        change(&mut params);
        params
            .serialize_request(&key)
            .expect("a request")
            .der()
            .to_vec()
    }

    #[test]
    fn only_the_key_of_a_request_is_taken() {
        let key = Identity::generate().expect("a key");
        let csr = key.csr_der().expect("a request");
        assert_eq!(key_of_request(&csr).as_ref(), Ok(key.public_key()));
    }

    #[test]
    fn a_request_that_asks_for_rights_is_refused_by_name() {
        let refused = |change: fn(&mut CertificateParams)| key_of_request(&request(change));
        assert_eq!(
            refused(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            Err(CsrError::Rights("the rights of a server"))
        );
        assert_eq!(
            refused(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            Err(CsrError::Rights("the rights of a certificate authority"))
        );
        assert_eq!(
            refused(|p| {
                let name = "coordinator.mesh.internal".try_into().expect("a name");
                p.subject_alt_names = vec![SanType::DnsName(name)];
            }),
            Err(CsrError::Rights("names of its own"))
        );
        assert_eq!(
            refused(|p| {
                let id_ce_key_usage = [2, 5, 29, 15];
                let sign_messages = vec![3, 2, 7, 0x80];
                let twice = CustomExtension::from_oid_content(&id_ce_key_usage, sign_messages);
                p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
                p.custom_extensions = vec![twice];
            }),
            Err(CsrError::Rights("the rights of a certificate authority"))
        );
        assert_eq!(
            refused(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
            Err(CsrError::Rights("extensions"))
        );
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        let mut csr = Identity::generate()
            .expect("a key")
            .csr_der()
            .expect("a request");
        let other = Identity::generate().expect("a key");
        let spki = other.public_key().as_spki_der();
        let at = csr
            .windows(27)
            .position(|window| window == &spki[..27])
            .expect("the request holds a P-256 key");
        csr[at..at + spki.len()].copy_from_slice(spki);
        assert!(matches!(key_of_request(&csr), Err(CsrError::Invalid(_))));
        assert!(matches!(key_of_request(b"junk"), Err(CsrError::Invalid(_))));
    }
}
