//! One request to Kubernetes' API: HTTP/1.1 by TLS, on a connection of its own.

use std::fmt;
use std::net::Ipv6Addr;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_daemon::Task;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::PublishError;
use super::account::Account;
use super::answer::{Answer, Done, Failure, judge, retry_after};
use super::secret::Secret;

/// Variables that Kubernetes sets in every container.
const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";
/// What the API answers is the object with what it keeps of it besides, or a status.
const LONGEST_ANSWER: usize = 1024 * 1024;

/// Where the API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// A name or an address; of IPv6 without brackets.
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Server {
    /// As Kubernetes tells a container.
    pub(super) fn from_environment(
        variable: impl Fn(&'static str) -> Option<String>,
    ) -> Result<Self, PublishError> {
        let read = |name| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.ok_or(PublishError::NotInPod { variable: name })
        };
        let (host, port) = (read(HOST_VARIABLE)?, read(PORT_VARIABLE)?);
        Self::new(&host, &port).ok_or(PublishError::Address { host, port })
    }

    fn new(host: &str, port: &str) -> Option<Self> {
        let port = port.parse().ok().filter(|port| *port != 0)?;
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        let host = bare.unwrap_or(host).to_owned();
        let name = ServerName::try_from(host.clone()).ok()?;
        Some(Self { host, port, name })
    }

    /// Applies a Secret once. How long it may take is the caller's business.
    pub(super) async fn apply(&self, account: &Account, secret: &Secret) -> Result<Done, Failure> {
        let request = self.request(account, secret)?;
        let stream = self.connect(account).await?;
        let broken = |error: hyper::Error| {
            Failure::passing(format!(
                "the connection broke off: {}",
                mesh_daemon::report::chain(&error)
            ))
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // How it ends is known by the answer.
        let _connection = Task::spawn("kubernetes-api", async move { drop(connection.await) });
        let (head, body) = sender
            .send_request(request)
            .await
            .map_err(broken)?
            .into_parts();
        let wait = retry_after(&head.headers);
        let body = Limited::new(body, LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| Failure::passing(format!("half an answer: {error}")))?;
        let body = Zeroizing::new(body.to_bytes().to_vec());
        judge(
            secret,
            self,
            &Answer {
                status: head.status,
                wait,
                body: &body,
            },
        )
    }

    fn request(
        &self,
        account: &Account,
        secret: &Secret,
    ) -> Result<Request<Full<Bytes>>, PublishError> {
        let token = account.token()?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.expose()));
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|_| PublishError::Token)?;
        bearer.set_sensitive(true);
        let mut request = Request::new(Full::from(secret.object()));
        *request.method_mut() = Method::PATCH;
        *request.uri_mut() = secret
            .path()
            .parse()
            .map_err(|_| PublishError::Namespace(secret.namespace.clone()))?;
        let headers = request.headers_mut();
        let host = HeaderValue::from_str(&self.to_string());
        headers.insert(HOST, host.expect("a server's name is visible ASCII"));
        headers.insert(AUTHORIZATION, bearer);
        let kind = HeaderValue::from_static("application/apply-patch+yaml");
        headers.insert(CONTENT_TYPE, kind);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static("coordinator"));
        Ok(request)
    }

    async fn connect(&self, account: &Account) -> Result<TlsStream<TcpStream>, Failure> {
        let connector = TlsConnector::from(account.tls()?);
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await;
        let tcp =
            tcp.map_err(|error| Failure::passing(format!("it cannot be reached: {error}")))?;
        let connected = connector.connect(self.name.clone(), tcp).await;
        connected.map_err(|error| {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
            match tls {
                Some(tls @ rustls::Error::InvalidCertificate(_)) => PublishError::Untrusted {
                    server: self.to_string(),
                    authority: account.authority(),
                    source: tls.clone(),
                }
                .into(),
                Some(tls) => Failure::passing(format!("TLS with it fails: {tls}")),
                None => Failure::passing(format!("TLS with it breaks off: {error}")),
            }
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.parse::<Ipv6Addr>().is_ok() {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(host: Option<&str>, port: Option<&str>) -> Result<String, String> {
        let variable = |name| {
            let value = if name == HOST_VARIABLE { host } else { port };
            value.map(str::to_owned)
        };
        let server = Server::from_environment(variable);
        server.map(|it| it.to_string()).map_err(|it| it.to_string())
    }

    #[test]
    fn the_api_is_where_the_environment_says() {
        for (host, said) in [
            ("10.96.0.1", "10.96.0.1:443"),
            ("fd00:10:96::1", "[fd00:10:96::1]:443"),
            ("[fd00:10:96::1]", "[fd00:10:96::1]:443"),
            ("api.example.org", "api.example.org:443"),
        ] {
            assert_eq!(server(Some(host), Some("443")).as_deref(), Ok(said));
        }
    }

    #[test]
    fn elsewhere_than_in_a_pod_is_told() {
        for (host, port, said) in [
            (None, Some("443"), "KUBERNETES_SERVICE_HOST is not set"),
            (Some(""), Some("443"), "KUBERNETES_SERVICE_HOST is not set"),
            (Some("h"), None, "KUBERNETES_SERVICE_PORT is not set"),
        ] {
            let error = server(host, port).expect_err("no pod");
            assert!(error.contains(said), "{error}");
            assert!(error.contains("not in a pod of Kubernetes"), "{error}");
        }
        for (host, port) in [("h", "0"), ("h", "x"), ("a b", "443"), ("h:1", "443")] {
            let error = server(Some(host), Some(port)).expect_err("no address");
            assert!(error.contains("lead to no API"), "{error}");
        }
    }
}
