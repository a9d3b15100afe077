use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::ClientConfig;
use rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::TlsConnector;

use super::*;
use crate::net::{accept, bind_tcp};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

fn issue(ca: &Ca, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a DNS name");
    params.extended_key_usages = vec![usage];
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2045, 1, 1);
    (
        params.signed_by(&key, ca).expect("signed").pem(),
        key.serialize_pem(),
    )
}

fn server_slot(ca: &Ca) -> CertificateSlot {
    let (chain, key) = issue(ca, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    CertificateSlot::from_pem(&chain, &key).expect("they belong together")
}

fn client_config(ca: &Ca, own: Option<&(String, String)>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has both")
        .with_root_certificates(roots_from_pem(&ca.pem()).expect("a root"));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let (chain, key) = read_pem(chain, key).expect("PEM");
            builder
                .with_client_auth_cert(chain, key)
                .expect("they belong together")
        }
    };
    config.alpn_protocols = vec![ALPN_HTTP11.to_vec(), ALPN_H2.to_vec()];
    Arc::new(config)
}

/// What the server sees of one connection: the client's certificate if any, and the ALPN name.
async fn meet(
    server: &Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> io::Result<(bool, Option<Vec<u8>>, CertificateDer<'static>)> {
    let listener = bind_tcp(([127, 0, 0, 1], 0).into(), "a test", "").expect("bound");
    let addr = listener.local_addr()?;
    let name = ServerName::try_from("localhost").expect("a name");
    let dial = async {
        let stream = TcpStream::connect(addr).await?;
        TlsConnector::from(client).connect(name, stream).await
    };
    let serve = async { handshake(server, accept(&listener).await.0).await };
    let (dialled, served) = tokio::join!(dial, serve);
    let (served, dialled) = (served?, dialled?);
    let seen = dialled
        .get_ref()
        .1
        .peer_certificates()
        .expect("a server shows one")[0]
        .clone();
    let connection = served.get_ref().1;
    let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    Ok((
        connection.peer_certificates().is_some(),
        alpn,
        seen.into_owned(),
    ))
}

#[tokio::test]
async fn a_replaced_certificate_serves_the_next_connection() {
    let ca = ca();
    let slot = server_slot(&ca);
    let first = slot.leaf();
    let server = server_config(
        slot.clone(),
        ClientAuth::None,
        &[ALPN_H2, ALPN_HTTP11],
        None,
    )
    .expect("good settings");
    let (_, alpn, seen) = meet(&server, client_config(&ca, None)).await.expect("met");
    assert_eq!((alpn.as_deref(), seen), (Some(ALPN_H2), first.clone()));

    let (chain, key) = issue(&ca, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let (other_chain, _) = issue(&ca, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
    slot.replace_pem(&other_chain, &key)
        .expect_err("a key of another certificate");
    assert_eq!(slot.leaf(), first);
    slot.replace_pem(&chain, &key)
        .expect("they belong together");
    let (_, _, seen) = meet(&server, client_config(&ca, None)).await.expect("met");
    assert_eq!(seen, slot.leaf());
    assert_ne!(seen, first);
}

#[tokio::test]
async fn an_optional_certificate_must_still_be_good() {
    let (ca, stranger) = (ca(), ca());
    let roots = roots_from_pem(&ca.pem()).expect("a root");
    let server = server_config(server_slot(&ca), ClientAuth::Optional(roots), &[], None)
        .expect("good settings");
    let known = issue(&ca, "node", ExtendedKeyUsagePurpose::ClientAuth);
    let foreign = issue(&stranger, "node", ExtendedKeyUsagePurpose::ClientAuth);
    assert!(
        !meet(&server, client_config(&ca, None))
            .await
            .expect("anonymous")
            .0
    );
    assert!(
        meet(&server, client_config(&ca, Some(&known)))
            .await
            .expect("known")
            .0
    );
    meet(&server, client_config(&ca, Some(&foreign)))
        .await
        .expect_err("another CA's");
}

#[derive(Debug)]
struct Year2060;

impl TimeProvider for Year2060 {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            90 * 31_557_600,
        )))
    }
}

#[tokio::test]
async fn the_clock_that_was_given_decides_about_expiry() {
    let ca = ca();
    let known = issue(&ca, "node", ExtendedKeyUsagePurpose::ClientAuth);
    let roots = roots_from_pem(&ca.pem()).expect("a root");
    let required = |clock| {
        let clients = ClientAuth::Required(roots.clone());
        server_config(server_slot(&ca), clients, &[], clock).expect("good settings")
    };
    assert!(
        meet(&required(None), client_config(&ca, Some(&known)))
            .await
            .expect("valid")
            .0
    );
    let late = required(Some(Arc::new(Year2060)));
    let refused = meet(&late, client_config(&ca, Some(&known)))
        .await
        .expect_err("expired");
    assert!(refused.to_string().contains("xpired"), "{refused}");
    meet(&required(None), client_config(&ca, None))
        .await
        .expect_err("none shown");
}

#[test]
fn pem_texts_without_content_are_refused() {
    assert!(matches!(roots_from_pem(""), Err(TlsError::NoCertificate)));
    assert!(matches!(
        CertificateSlot::from_pem("", ""),
        Err(TlsError::Pem { .. })
    ));
}
