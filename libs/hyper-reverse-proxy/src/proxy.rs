//! The proxy itself: one request in, one upstream, one response out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{HOST, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use crate::body::{Outgoing, ProxyBody, RequestBody};
use crate::connect::Connector;
use crate::error::{BadRequest, ProxyError};
use crate::headers::{Forwarded, Inbound, ResponseRules, Scheme, prepare, prepare_response};
use crate::mount::Mount;
use crate::pool::{Lease, Limits, Pool};
use crate::upgrade::{Tunnels, tunnel};
use crate::wire::ResponseHead;

/// Upstream connections and how they are made. Cheap to clone; clones share the connections.
///
/// Meant to be used on one current-thread runtime: a connection is driven by the task that uses
/// it, so tasks of several runtimes must not share a client.
#[derive(Debug)]
pub struct Client<C: Connector, B: RequestBody = Incoming> {
    pool: Arc<Pool<C, B>>,
}

impl<C: Connector, B: RequestBody> Clone for Client<C, B> {
    fn clone(&self) -> Self {
        Self {
            pool: Arc::clone(&self.pool),
        }
    }
}

impl<C: Connector, B: RequestBody> Client<C, B> {
    /// A client that dials by `connector`, with the default limits.
    pub fn new(connector: C) -> Self {
        Self::with_limits(connector, Limits::default())
    }

    /// A client that dials by `connector`.
    pub fn with_limits(connector: C, limits: Limits) -> Self {
        Self {
            pool: Arc::new(Pool::new(connector, limits)),
        }
    }

    /// The connector.
    pub fn connector(&self) -> &C {
        self.pool.connector()
    }

    /// Closes unused connections that have ended or are too old, and those to targets that `keep`
    /// turns down. Call it every few seconds.
    pub fn sweep(&self, keep: impl Fn(&C::Target) -> bool) {
        self.pool.sweep(keep);
    }

    /// How many connections wait for a request.
    pub fn idle_connections(&self) -> usize {
        self.pool.idle_count()
    }
}

/// One upstream, and where it appears outside.
#[derive(Debug, Clone)]
pub struct Upstream<T> {
    /// What the connector dials.
    pub target: T,
    /// Where it appears.
    pub mount: Mount,
    /// Its own `host:port`, so that redirects to it are recognised.
    pub authority: Option<Box<str>>,
}

/// Forwards requests. Cheap to clone; clones share connections and tunnels.
#[derive(Debug)]
pub struct ReverseProxy<C: Connector, B: RequestBody = Incoming> {
    client: Client<C, B>,
    tunnels: Tunnels,
}

impl<C: Connector, B: RequestBody> Clone for ReverseProxy<C, B> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            tunnels: self.tunnels.clone(),
        }
    }
}

impl<C: Connector<Target = SocketAddr>, B: RequestBody> ReverseProxy<C, B> {
    /// Forwards `request` of `client_ip` to `forward_uri` (`http://address:port[/base]`), the
    /// request's path appended to its path, and gives back the upstream's response.
    ///
    /// # Errors
    ///
    /// See [`ProxyError`]; [`ProxyError::status`] is the status to answer with.
    pub async fn call(
        &self,
        client_ip: IpAddr,
        forward_uri: &str,
        request: Request<B>,
    ) -> Result<Response<ProxyBody<C, B>>, ProxyError> {
        let upstream = upstream_of(forward_uri)?;
        let inbound = Inbound::new(client_ip, Scheme::Http, false);
        self.forward(&inbound, &upstream, request).await
    }
}

/// The upstream that a forward address names.
fn upstream_of(forward_uri: &str) -> Result<Upstream<SocketAddr>, BadRequest> {
    let uri: Uri = forward_uri.parse().map_err(|_| BadRequest::ForwardUri)?;
    let authority = uri.authority().ok_or(BadRequest::ForwardUri)?;
    if uri.scheme_str() != Some("http") {
        return Err(BadRequest::ForwardUri);
    }
    let host = authority.host().trim_matches(['[', ']']);
    let ip: IpAddr = host.parse().map_err(|_| BadRequest::ForwardUri)?;
    let base = format!("{}/", uri.path().trim_end_matches('/'));
    Ok(Upstream {
        target: SocketAddr::new(ip, authority.port_u16().unwrap_or(80)),
        mount: Mount::map("/", &base).map_err(|_| BadRequest::ForwardUri)?,
        authority: Some(authority.as_str().into()),
    })
}

impl<C: Connector, B: RequestBody> ReverseProxy<C, B> {
    /// A proxy over the connections of `client`.
    pub fn new(client: Client<C, B>) -> Self {
        Self {
            client,
            tunnels: Tunnels::default(),
        }
    }

    /// The upstream connections.
    pub fn client(&self) -> &Client<C, B> {
        &self.client
    }

    /// How many tunnels (WebSockets and the like) are open.
    pub fn tunnels(&self) -> usize {
        self.tunnels.count()
    }

    /// Ends all tunnels.
    pub fn close_tunnels(&self) {
        self.tunnels.close();
    }

    /// Forwards `request` to `upstream` and gives back its response. Bodies stream both ways; a
    /// protocol switch turns into a tunnel that lives on by itself.
    ///
    /// # Errors
    ///
    /// See [`ProxyError`]; [`ProxyError::status`] is the status to answer with.
    pub async fn forward(
        &self,
        inbound: &Inbound,
        upstream: &Upstream<C::Target>,
        mut request: Request<B>,
    ) -> Result<Response<ProxyBody<C, B>>, ProxyError> {
        let scheme = inbound.outer_scheme(request.headers());
        let switch = request.extensions_mut().remove::<OnUpgrade>();
        let (mut head, body) = request.into_parts();
        let asked = head.uri.clone();
        let (wanted, forwarded) = prepare(&mut head, inbound, &upstream.mount)?;
        let host = head.headers.get(HOST).cloned();
        let target = &upstream.target;
        let body = Outgoing::new(body);
        let (answer, lease) = self.exchange(target, head, forwarded, body).await?;
        let mut response = Response::new(());
        *response.status_mut() = answer.status;
        *response.headers_mut() = answer.headers;
        if let Some(reason) = answer.reason {
            response.extensions_mut().insert(reason);
        }
        let rules = ResponseRules {
            mount: &upstream.mount,
            asked: asked.path(),
            scheme,
            host: host.as_ref().and_then(|host| host.to_str().ok()),
            upstream: upstream.authority.as_deref(),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let protocol = switched_to(response.headers(), wanted.as_ref())?;
            let client = switch.ok_or(ProxyError::Upgrade)?;
            let stream = lease.into_stream().ok_or(ProxyError::Upgrade)?;
            self.client.connector().upgraded(&stream.0);
            let half_closed = self.client.pool.limits().half_closed;
            self.tunnels.spawn(tunnel(client, stream, half_closed));
            prepare_response(response.headers_mut(), rules);
            response.headers_mut().insert(
                http::header::CONNECTION,
                HeaderValue::from_static("upgrade"),
            );
            response.headers_mut().insert(UPGRADE, protocol);
            return Ok(response.map(|()| ProxyBody::empty()));
        }
        prepare_response(response.headers_mut(), rules);
        Ok(response.map(|()| ProxyBody::new(lease)))
    }

    /// Sends the request over a kept or a new connection.
    async fn exchange(
        &self,
        target: &C::Target,
        mut head: request::Parts,
        forwarded: Option<Forwarded<'_>>,
        mut body: Outgoing<B>,
    ) -> Result<(ResponseHead, Lease<C, B>), ProxyError> {
        let pool = &self.client.pool;
        while let Some(mut lease) = pool.take(target) {
            let repeatable = body.is_empty() && is_safe(&head.method);
            match lease.send(&mut head, forwarded, body).await {
                Ok(answer) => return Ok((answer, lease)),
                // A kept connection that breaks says nothing about the upstream.
                Err(failed) if matches!(failed.error, ProxyError::Upstream(_)) => {
                    match failed.unsent {
                        Some(unsent) => body = unsent,
                        None if repeatable && failed.unanswered => {
                            // Once, and where it cannot meet the end of an idle connection again.
                            body = Outgoing::empty();
                            break;
                        }
                        None => return Err(failed.error),
                    }
                }
                Err(failed) => return Err(failed.error),
            }
        }
        let mut lease = pool.connect(target).await?;
        match lease.send(&mut head, forwarded, body).await {
            Ok(answer) => Ok((answer, lease)),
            Err(failed) => Err(failed.error),
        }
    }
}

/// Whether a request with this method may be sent twice: it changes nothing (RFC 9110, 9.2.1).
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The protocol that the upstream switched to, when it is the one asked for.
fn switched_to(
    headers: &HeaderMap,
    wanted: Option<&HeaderValue>,
) -> Result<HeaderValue, ProxyError> {
    let wanted = wanted.ok_or(ProxyError::Upgrade)?;
    match headers.get(UPGRADE) {
        Some(got) if got.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()) => Ok(got.clone()),
        _ => Err(ProxyError::Upgrade),
    }
}
