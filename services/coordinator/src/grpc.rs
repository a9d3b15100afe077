//! The gRPC services: convert, call a use-case, convert back. Authorisation happens before, in
//! [`auth`]; generated message types are used here and nowhere else in this service.

mod admin;
pub(crate) mod auth;
mod control;
mod sync;
mod view;
mod watch;

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::post;
use mesh_api::pb::admin_service_server::AdminServiceServer;
use mesh_api::pb::control_service_server::ControlServiceServer;
use mesh_api::pb::gateway_service_server::GatewayServiceServer;
use mesh_api::pb::relay_service_server::RelayServiceServer;
use mesh_api::pb::ssh_service_server::SshServiceServer;
use mesh_daemon::{GrpcCalls, Shutdown, Tasks};
use tower::ServiceExt as _;

use crate::app::Core;

/// The largest message a caller may send, in bytes.
const MAX_REQUEST: usize = 256 * 1024;

/// What all services share.
#[derive(Debug, Clone)]
pub(crate) struct Grpc {
    pub(crate) core: Arc<Core>,
    pub(crate) shutdown: Shutdown,
    calls: GrpcCalls,
    streams: Arc<Mutex<Tasks>>,
}

impl Grpc {
    pub(crate) fn new(core: Arc<Core>, shutdown: Shutdown, calls: GrpcCalls) -> Self {
        Self {
            core,
            shutdown,
            calls,
            streams: Arc::new(Mutex::new(Tasks::new())),
        }
    }

    /// Spawns the task of a stream; it is aborted when the last of us is dropped.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.reap();
        // Boxed, so that what an ended stream held is given back before the next one is reaped.
        streams.spawn(name, Box::pin(task));
    }

    /// Waits for the streams to end.
    pub(crate) async fn finish(&self, limit: std::time::Duration) {
        let mut streams =
            std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner));
        streams.join_all(limit).await;
    }

    /// All services behind the table of rights.
    pub(crate) fn router(&self) -> Router {
        let control = Arc::new(control::Control {
            core: Arc::clone(&self.core),
        });
        let shared = Arc::new(self.clone());
        let sync = self.clone();
        let control =
            ControlServiceServer::from_arc(control).max_decoding_message_size(MAX_REQUEST);
        let relay = RelayServiceServer::from_arc(Arc::clone(&shared))
            .max_decoding_message_size(MAX_REQUEST);
        let ssh =
            SshServiceServer::from_arc(Arc::clone(&shared)).max_decoding_message_size(MAX_REQUEST);
        let gateway = GatewayServiceServer::from_arc(Arc::clone(&shared))
            .max_decoding_message_size(MAX_REQUEST);
        let admin = AdminServiceServer::from_arc(shared).max_decoding_message_size(MAX_REQUEST);
        let authorise =
            axum::middleware::from_fn_with_state(Arc::clone(&self.core), auth::authorise);
        Router::new()
            .route(
                "/mesh.v1.ControlService/Sync",
                post(move |request: Request| std::future::ready(sync::serve(&sync, request))),
            )
            .route_service("/mesh.v1.ControlService/{*method}", with_body(control))
            .route_service("/mesh.v1.RelayService/{*method}", with_body(relay))
            .route_service("/mesh.v1.SshService/{*method}", with_body(ssh))
            .route_service("/mesh.v1.GatewayService/{*method}", with_body(gateway))
            .route_service("/mesh.v1.AdminService/{*method}", with_body(admin))
            .route_layer(authorise)
            .layer(self.calls.clone())
    }
}

/// A tonic service with axum's body type.
fn with_body<S>(
    service: S,
) -> impl tower::Service<
    Request,
    Response = http::Response<Body>,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone
+ Send
+ Sync
+ 'static
where
    S: tower::Service<
            http::Request<Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    service.map_response(|response: http::Response<tonic::body::Body>| response.map(Body::new))
}
