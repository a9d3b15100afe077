//! A relay small enough to read: DERP over TLS between whoever comes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use mesh_api::tls::relay_name;
use mesh_tunnel::derp::{Server, ServerEvent, encode_recv};
use mesh_types::key::SecretKey;
use mesh_types::{Relay, RelayId, WgPublicKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::authority::Ca;

type Clients = Arc<Mutex<HashMap<WgPublicKey, mpsc::Sender<Vec<u8>>>>>;

pub(crate) struct FakeRelay {
    pub(crate) relay: Relay,
    task: JoinHandle<()>,
}

impl Drop for FakeRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeRelay {
    pub(crate) async fn start(ca: &Ca) -> Self {
        Self::start_at(ca, "127.0.0.1:0").await
    }

    /// Waits until the address is free.
    pub(crate) async fn start_at(ca: &Ca, addr: &str) -> Self {
        Self::start_as(5, ca, addr).await
    }

    /// With a number of its own, to be one of several.
    pub(crate) async fn start_as(number: u8, ca: &Ca, addr: &str) -> Self {
        let id = RelayId::from_bytes([number; 16]);
        let (chain, key) = ca.server(&relay_name(id));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key.into())
            .expect("fits");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = loop {
            match TcpListener::bind(addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let addr: SocketAddr = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            let clients = Clients::default();
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, clients) = (acceptor.clone(), Arc::clone(&clients));
                open.spawn(async move {
                    let _ended = serve(acceptor, stream, clients).await;
                });
            }
        });
        let relay = Relay {
            id,
            derp: vec![addr.to_string()],
            stun: Vec::new(),
        };
        Self { relay, task }
    }
}

async fn serve(
    acceptor: tokio_rustls::TlsAcceptor,
    stream: TcpStream,
    clients: Clients,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";
    stream.write_all(answer.as_bytes()).await?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (queue, mut frames) = mpsc::channel::<Vec<u8>>(256);
    let write = async {
        while let Some(frame) = frames.recv().await {
            writer.write_all(&frame).await?;
            writer.flush().await?;
        }
        Ok::<(), std::io::Error>(())
    };
    let read = async {
        let mut server = Server::new(&SecretKey::from_bytes([8; 32]), [9; 32]);
        let mut own = None;
        let mut buf = vec![0; 64 * 1024];
        loop {
            let mut output = Vec::new();
            server.take_output(&mut output);
            if !output.is_empty() {
                let _gone = queue.send(output).await;
            }
            let len = reader.read(&mut buf).await?;
            if len == 0 {
                return Ok::<(), std::io::Error>(());
            }
            server.handle_bytes(&buf[..len]);
            loop {
                let hello = match server.poll().map_err(std::io::Error::other)? {
                    Some(ServerEvent::Hello { client }) => client,
                    Some(ServerEvent::Packet { to, payload }) => {
                        let from: WgPublicKey = own.expect("said hello first");
                        let mut frame = Vec::new();
                        encode_recv(&from, payload, &mut frame);
                        let receiver = clients.lock().expect("no panic").get(&to).cloned();
                        if let Some(receiver) = receiver {
                            // A full queue drops, like every relay's.
                            let _dropped = receiver.try_send(frame);
                        }
                        continue;
                    }
                    Some(_) => continue,
                    None => break,
                };
                own = Some(hello);
                clients
                    .lock()
                    .expect("no panic")
                    .insert(hello, queue.clone());
                server.accept();
            }
        }
    };
    tokio::select! {
        read = read => read,
        written = write => written,
    }
}
