//! The certificate authority of a test.

use std::time::{Duration, SystemTime};

use mesh_types::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

pub(crate) struct Ca {
    key: KeyPair,
    params: CertificateParams,
    pub(crate) der: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let der = params
            .self_signed(&key)
            .expect("a certificate")
            .der()
            .clone();
        Self { key, params, der }
    }

    /// A serverAuth certificate with this name: chain and key.
    pub(crate) fn server(
        &self,
        name: &str,
    ) -> (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issuer = Issuer::from_params(&self.params, &self.key);
        let der = params
            .signed_by(&key, &issuer)
            .expect("a certificate")
            .der()
            .clone();
        (
            vec![der, self.der.clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()),
        )
    }

    pub(crate) fn node(&self, csr: &[u8], node: NodeId, life: Duration) -> Vec<u8> {
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).expect("a CSR");
        let mut params = CertificateParams::default();
        let uri = format!("mesh://default/{node}").try_into().expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (SystemTime::now() - Duration::from_secs(1)).into();
        params.not_after = (SystemTime::now() + life).into();
        let issuer = Issuer::from_params(&self.params, &self.key);
        params
            .signed_by(&csr.public_key, &issuer)
            .expect("a certificate")
            .der()
            .to_vec()
    }
}
