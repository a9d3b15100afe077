//! Where spans go: an OTLP collector, by gRPC.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tonic::transport::{Certificate, ClientTlsConfig};

use crate::span::Tracer;

/// How long the last spans may take to leave at the end of a process.
pub const FLUSH: Duration = Duration::from_secs(2);

/// Where spans go, most specific first (OpenTelemetry Protocol Exporter, "Endpoint URLs").
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// Whom to trust for `https`.
const CERTIFICATES: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];
const SERVICE_NAME: &str = "service.name";

/// The collector cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The endpoint is no URL, or something else in the environment does not fit.
    #[error("traces cannot be exported to {endpoint}: check OTEL_EXPORTER_OTLP_ENDPOINT")]
    Build {
        /// The endpoint.
        endpoint: String,
        /// What is wrong.
        #[source]
        source: ExporterBuildError,
    },
    /// `https` without anybody to trust.
    #[error(
        "traces cannot be exported to {endpoint}: name the collector's CA (PEM) in \
         OTEL_EXPORTER_OTLP_CERTIFICATE"
    )]
    NoCertificate {
        /// The endpoint.
        endpoint: String,
    },
    /// The CA's file cannot be read.
    #[error("cannot read OTEL_EXPORTER_OTLP_CERTIFICATE {}", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Exports the spans of a process's services. Clones export to the same place.
///
/// What is sent: at most 2048 spans wait for each service (`OTEL_BSP_MAX_QUEUE_SIZE`), further ones
/// are dropped; a thread of its own sends them. A collector that does not answer never holds
/// anything up, and is told of once, when it starts and when it ends.
#[derive(Clone, Default)]
pub struct Exporter(Option<Arc<Target>>);

struct Target {
    endpoint: String,
    ca: Option<Vec<u8>>,
    providers: Mutex<Vec<SdkTracerProvider>>,
}

impl Exporter {
    /// As the environment says; off without an endpoint, or with `OTEL_SDK_DISABLED=true`.
    ///
    /// # Errors
    /// When the endpoint is set and cannot be used.
    pub fn from_env() -> Result<Self, ExportError> {
        let off = first_of(&["OTEL_SDK_DISABLED"]).is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let Some(endpoint) = first_of(&ENDPOINTS).filter(|_| !off) else {
            return Ok(Self(None));
        };
        let ca = match first_of(&CERTIFICATES).map(PathBuf::from) {
            Some(path) => {
                let read = fs::read(&path);
                Some(read.map_err(|source| ExportError::Certificate { path, source })?)
            }
            None => None,
        };
        Self::to(endpoint, ca)
    }

    /// To this collector (`http://host:4317`), trusting `ca` (PEM) for `https`.
    ///
    /// # Errors
    /// When the endpoint cannot be used.
    pub fn to(endpoint: String, ca: Option<Vec<u8>>) -> Result<Self, ExportError> {
        if endpoint.starts_with("https:") && ca.is_none() {
            return Err(ExportError::NoCertificate { endpoint });
        }
        Ok(Self(Some(Arc::new(Target {
            endpoint,
            ca,
            providers: Mutex::default(),
        }))))
    }

    /// The tracer of a service, off when nothing is exported. `OTEL_SERVICE_NAME`, when set, is
    /// every service's name; `instance` tells services of one name in one process apart.
    ///
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// When the endpoint is no URL.
    pub fn tracer(&self, service: &'static str, instance: &str) -> Result<Tracer, ExportError> {
        let Some(target) = &self.0 else {
            return Ok(Tracer::off());
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Watched {
                to: target.exporter()?,
                service,
                failing: AtomicBool::new(false),
            })
            .with_resource(resource(service, instance))
            .build();
        let tracer = Tracer::new(provider.tracer(service));
        target.lock().push(provider);
        Ok(tracer)
    }

    /// Sends what is left, within `limit`; after this no span is exported any more.
    pub async fn shutdown(&self, limit: Duration) {
        let Some(target) = &self.0 else { return };
        let providers = std::mem::take(&mut *target.lock());
        let ends: Vec<_> = providers
            .into_iter()
            // It waits for the exporting thread, so it must not hold up the runtime.
            .map(|provider| {
                tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit))
            })
            .collect();
        let all = futures_util::future::join_all(ends);
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::debug!("the last spans did not leave in time");
        }
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.0.as_ref().map(|target| &target.endpoint);
        f.debug_tuple("Exporter").field(&endpoint).finish()
    }
}

impl Target {
    fn exporter(&self) -> Result<opentelemetry_otlp::SpanExporter, ExportError> {
        let mut builder = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(self.endpoint.clone());
        if let Some(ca) = &self.ca {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            builder = builder.with_tls_config(tls);
        }
        builder.build().map_err(|source| ExportError::Build {
            endpoint: self.endpoint.clone(),
            source,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SdkTracerProvider>> {
        // INVARIANT: nothing panics while it is held.
        self.providers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The environment's resource, with our name unless it names one.
fn resource(service: &'static str, instance: &str) -> Resource {
    let named = first_of(&["OTEL_SERVICE_NAME"]).is_some()
        || first_of(&["OTEL_RESOURCE_ATTRIBUTES"])
            .is_some_and(|list| list.split(',').any(names_service));
    let mut builder = Resource::builder();
    if !named {
        builder = builder.with_attribute(KeyValue::new(SERVICE_NAME, service));
    }
    if !instance.is_empty() {
        let instance = KeyValue::new("service.instance.id", instance.to_owned());
        builder = builder.with_attribute(instance);
    }
    builder.build()
}

fn names_service(pair: &str) -> bool {
    pair.split_once('=')
        .is_some_and(|(key, _)| key.trim() == SERVICE_NAME)
}

/// The first of these variables that is set and not empty.
fn first_of(names: &[&str]) -> Option<String> {
    names
        .iter()
        .filter_map(|name| env::var(name).ok())
        .find(|value| !value.is_empty())
}

/// Says when a collector stops and starts to take spans, instead of each time.
#[derive(Debug)]
struct Watched {
    to: opentelemetry_otlp::SpanExporter,
    service: &'static str,
    failing: AtomicBool,
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.to.export(batch).await;
        let failed = result.is_err();
        if self.failing.swap(failed, Ordering::Relaxed) != failed {
            let service = self.service;
            match &result {
                Err(error) => {
                    tracing::info!(service, %error, "the trace collector takes no spans: they are dropped");
                }
                Ok(()) => tracing::info!(service, "the trace collector takes spans again"),
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.to.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.to.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.to.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::span::Kind;

    #[test]
    fn https_needs_a_ca_and_a_bad_url_is_refused() {
        let refused = Exporter::to("https://collector:4317".to_owned(), None);
        let text = refused.expect_err("no CA").to_string();
        assert!(text.contains("OTEL_EXPORTER_OTLP_CERTIFICATE"), "{text}");
        let exporter = Exporter::to("not a url".to_owned(), None).expect("not looked at yet");
        let text = exporter.tracer("test", "").expect_err("bad").to_string();
        assert!(text.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{text}");
    }

    #[test]
    fn a_name_of_the_environment_wins() {
        assert!(names_service(" service.name=x"));
        assert!(!names_service("deployment.environment=x"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_dead_collector_holds_nothing_up() {
        // Nothing listens on the discard port here.
        let exporter = Exporter::to("http://127.0.0.1:9".to_owned(), None).expect("a URL");
        let tracer = exporter.tracer("test", "one").expect("a tracer");
        let started = Instant::now();
        for _ in 0..5000 {
            drop(tracer.start(Kind::Internal, "work"));
        }
        assert!(started.elapsed() < Duration::from_secs(2), "spans waited");
        exporter.shutdown(FLUSH).await;
        assert!(started.elapsed() < Duration::from_secs(6), "the end waited");
    }

    #[tokio::test]
    async fn without_a_collector_all_is_off() {
        let off = Exporter::default();
        assert!(!off.tracer("test", "").expect("off").is_on());
        off.shutdown(FLUSH).await;
    }
}
