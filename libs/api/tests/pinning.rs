//! Which servers a pinned client accepts, over real TLS on loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_api::client::{ALPN_H2, AttemptError, connect_tls};
use mesh_api::tls::{COORDINATOR_NAME, Pin, client_config, fingerprint};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().expect("randomness");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&key).expect("signs").der().clone();
    Authority {
        issuer: Issuer::new(params, key),
        der,
    }
}

/// A server on loopback with a certificate of `authority`; answers TLS until it is dropped.
async fn server(
    authority: &Authority,
    name: &str,
    until: i32,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let key = KeyPair::generate().expect("randomness");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    let leaf = params.signed_by(&key, &authority.issuer).expect("signs");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone(), authority.der.clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .expect("fits");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let _handshake = acceptor.accept(tcp).await;
        }
    });
    (addr, task)
}

async fn dial(addr: SocketAddr, pin: Pin) -> Result<(), AttemptError> {
    let tls = client_config(pin, None, &[ALPN_H2]).expect("a configuration");
    match connect_tls(&[addr.to_string()], COORDINATOR_NAME, &tls).await {
        Ok(_) => Ok(()),
        Err(mut error) => Err(error.attempts.remove(0).1),
    }
}

#[tokio::test]
async fn the_tokens_fingerprint_and_the_stored_ca_both_lead_to_the_server() {
    let ours = authority();
    let (addr, _task) = server(&ours, COORDINATOR_NAME, 2100).await;
    let pin = fingerprint(&ours.der).expect("a certificate");
    dial(addr, Pin::Fingerprint(pin)).await.expect("accepted");
    dial(addr, Pin::Ca(ours.der.clone()))
        .await
        .expect("accepted");
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused_as_such() {
    let (ours, other) = (authority(), authority());
    let (addr, _task) = server(&other, COORDINATOR_NAME, 2100).await;
    let pin = fingerprint(&ours.der).expect("a certificate");
    for pin in [Pin::Fingerprint(pin), Pin::Ca(ours.der.clone())] {
        assert!(matches!(
            dial(addr, pin).await,
            Err(AttemptError::WrongCa(_))
        ));
    }
}

#[tokio::test]
async fn a_name_other_than_the_roles_is_refused() {
    let ours = authority();
    let (addr, _task) = server(&ours, "relay-x.mesh.internal", 2100).await;
    assert!(dial(addr, Pin::Ca(ours.der.clone())).await.is_err());
}

#[tokio::test]
async fn an_expired_server_points_at_the_clock() {
    let ours = authority();
    let (addr, _task) = server(&ours, COORDINATOR_NAME, 2021).await;
    assert!(matches!(
        dial(addr, Pin::Ca(ours.der.clone())).await,
        Err(AttemptError::Clock(_))
    ));
}

#[tokio::test]
async fn every_unreachable_address_is_named() {
    let tls = client_config(Pin::Fingerprint([0; 32]), None, &[]).expect("a configuration");
    let addrs = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    let error = connect_tls(&addrs, COORDINATOR_NAME, &tls)
        .await
        .expect_err("nobody there");
    let text = error.to_string();
    assert!(
        text.contains("127.0.0.1:1") && text.contains("127.0.0.1:2"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_no_address_is_told_as_such_and_not_as_a_name() {
    let tls = client_config(Pin::Fingerprint([0; 32]), None, &[]).expect("a configuration");
    for addr in [
        "127.0.0.1",
        "localhost",
        "localhost:",
        "localhost:99999",
        "::1",
        "fd00::1",
        ":8080x",
    ] {
        let error = connect_tls(&[addr.to_owned()], COORDINATOR_NAME, &tls)
            .await
            .expect_err("no address");
        let attempt = &error.attempts[0].1;
        assert!(
            matches!(attempt, AttemptError::Address(_)),
            "{addr}: {attempt:?}"
        );
        assert!(error.to_string().contains("HOST:PORT"), "{error}");
    }
}

#[tokio::test]
async fn a_port_that_speaks_no_tls_is_told_apart() {
    use tokio::io::AsyncWriteExt as _;

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let _task = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _sent = tcp.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await;
        }
    });
    let outcome = dial(addr, Pin::Fingerprint([0; 32])).await;
    assert!(
        matches!(outcome, Err(AttemptError::NotTls(_))),
        "{outcome:?}"
    );
}
