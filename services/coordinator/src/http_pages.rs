//! What the TLS port answers to browsers and probes.

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use mesh_daemon::build_info::{self, VERSION};
use tonic::Status;

/// `/health`, `/version`, and a text for everything else.
pub(crate) fn router() -> Router {
    Router::new()
        .route("/health", get(async || "OK"))
        .route("/version", get(version))
        .fallback(other)
}

async fn version() -> impl IntoResponse {
    axum::Json(build_info::manifest("coordinator"))
}

async fn other(request: Request) -> Response {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        let text = "there is no such service; is the program newer than the coordinator?";
        return Status::unimplemented(text).into_http::<axum::body::Body>();
    }
    let text = format!(
        "Wonder Mesh coordinator {VERSION}\n\n\
         This port is for programs: nodes join here, and 'mesh' talks to it.\n\
         Workers' consoles are at the traffic-gateway, by default on port 8081.\n"
    );
    let status = if request.uri().path() == "/" {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    };
    (status, text).into_response()
}
