//! The TLS port, which knows the certificate shown on each connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_api::pb::control_service_server::ControlServiceServer;
use mesh_api::tls::COORDINATOR_NAME;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

use super::Shared;
use super::calls::Service;

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(shared.ca.der.clone()).expect("a CA");
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .expect("roots");
    let (chain, key) = shared.ca.server(COORDINATOR_NAME);
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key.into())
        .expect("fits");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (ready, incoming) = mpsc::channel::<io::Result<Accepted>>(16);
    let accept = async move {
        let mut handshakes = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            handshakes.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _gone = ready.send(Ok(Accepted(stream))).await;
                }
            });
        }
    };
    let service = Arc::clone(&shared);
    let grpc = tonic::transport::Server::builder()
        .add_service(ControlServiceServer::new(Service(service)))
        .serve_with_incoming(ReceiverStream::new(incoming));
    tokio::select! {
        () = accept => {}
        _ended = grpc => {}
    }
}

struct Accepted(TlsStream<TcpStream>);

/// The certificate shown on a connection.
#[derive(Clone)]
pub(super) struct Shown(pub(super) Option<CertificateDer<'static>>);

impl tonic::transport::server::Connected for Accepted {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        let certificates = self.0.get_ref().1.peer_certificates();
        Shown(
            certificates
                .and_then(|chain| chain.first())
                .map(|cert| cert.clone().into_owned()),
        )
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
