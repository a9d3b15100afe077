//! A stand-in of Kubernetes' API that knows Secrets: TLS by an authority of its own, the rights that
//! the manifests give, and answers as the real one gives them.
//!
//! Facts: Kubernetes' API reference on server-side apply and on accessing the API from a pod. Who
//! applies an object must be allowed to `patch` it; when there is none yet also to `create` one of
//! that name.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use super::manifest::Manifest;

mod request;
mod state;

use request::Request;
use state::State;

/// What bearer tokens of the run look like; each account has one.
const BEARER: &str = "token-of-the-stand-in";
/// How long a client may take with one step.
const LIMIT: Duration = Duration::from_secs(20);
/// Longer bodies are nobody's.
const LONGEST: u64 = 1 << 20;

/// A served API. It ends when this is dropped.
pub(super) struct Api {
    address: SocketAddr,
    authority: String,
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Api {
    /// Serves at this address of ours, with the namespaces, Roles and accounts of the manifest.
    pub(super) fn serve(ip: IpAddr, manifest: &Manifest) -> Result<Self> {
        let authority = authority()?;
        let config = Arc::new(certified(&authority, ip)?);
        let listener = TcpListener::bind((ip, 0)).context("bind the stand-in of the API")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::of(manifest)));
        let ends = Arc::new(AtomicBool::new(false));
        let (serves, ended) = (Arc::clone(&state), Arc::clone(&ends));
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Acquire) {
                    return;
                }
                // A client that breaks off, or does not trust us, has its own say about it.
                drop(stream.and_then(|stream| talk(stream, &config, &serves)));
            }
        });
        Ok(Self {
            address,
            authority: authority.pem(),
            state,
            ends,
            serving: Some(serving),
        })
    }

    /// What Kubernetes sets in every container.
    pub(super) fn environment(&self) -> [(&'static str, String); 2] {
        [
            ("KUBERNETES_SERVICE_HOST", self.address.ip().to_string()),
            ("KUBERNETES_SERVICE_PORT", self.address.port().to_string()),
        ]
    }

    /// Writes the files of an account, as Kubernetes does for a pod of that namespace.
    pub(super) fn account(&self, dir: &Path, namespace: &str, name: &str) -> Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("token"), bearer(namespace, name))?;
        fs::write(dir.join("ca.crt"), &self.authority)?;
        fs::write(dir.join("namespace"), namespace)?;
        Ok(())
    }

    /// From now on pods are told of an authority that is not the API's.
    pub(super) fn forget_authority(&mut self) -> Result<()> {
        self.authority = authority()?.pem();
        Ok(())
    }

    /// From now on nobody may do anything.
    pub(super) fn forbid(&self) {
        self.state().forbid();
    }

    /// Every Secret that was published, as the whole object.
    pub(super) fn secrets(&self) -> Vec<Value> {
        self.state().secrets().cloned().collect()
    }

    /// What a Secret holds under a key.
    pub(super) fn content(&self, namespace: &str, name: &str, key: &str) -> Option<Vec<u8>> {
        self.state().content(namespace, name, key)
    }

    /// How many requests were taken, and how often one of them changed a Secret.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.state().counts()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // Wakes the thread that waits for a connection.
        let woken = TcpStream::connect(self.address);
        if let (Ok(_), Some(serving)) = (woken, self.serving.take()) {
            drop(serving.join());
        }
    }
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn certified(authority: &CertifiedIssuer<'_, KeyPair>, ip: IpAddr) -> Result<ServerConfig> {
    let key = KeyPair::generate()?;
    let own = CertificateParams::new([ip.to_string()])?.signed_by(&key, authority)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)?,
    )
}

fn bearer(namespace: &str, name: &str) -> String {
    format!("{BEARER}.{namespace}.{name}")
}

/// One request and its answer.
fn talk(stream: TcpStream, config: &Arc<ServerConfig>, state: &Mutex<State>) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(tls, stream));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.by_ref().take(LONGEST).read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let mut request = Request::parse(&head).ok_or(io::ErrorKind::InvalidData)?;
    let length = request.header("content-length").parse().unwrap_or(0);
    stream
        .by_ref()
        .take(LONGEST.min(length))
        .read_to_end(&mut request.body)?;
    let (code, answer) = state
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .judge(&request);
    let answer = answer.to_string();
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{answer}",
        answer.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}
