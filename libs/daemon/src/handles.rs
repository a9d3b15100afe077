//! What a service is handed when it is built.

use mesh_trace::Tracer;

use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// The process's metrics, readiness and traces, passed to every `App::build`.
#[derive(Debug, Clone, Default)]
pub struct Handles {
    /// The process's name, for `/version`; empty in tests.
    pub program: &'static str,
    /// Where to register metrics.
    pub metrics: Metrics,
    /// Where to say what is not ready yet.
    pub readiness: Readiness,
    /// Makes the service's spans; off unless they are exported.
    pub tracer: Tracer,
}

impl Handles {
    /// The same process, seen by one of its parts: metrics get the label `part`, readiness names
    /// the prefix `part/`. For a process that runs several services, or one of them twice.
    #[must_use]
    pub fn scoped(&self, part: &str) -> Self {
        Self {
            program: self.program,
            metrics: self.metrics.scoped("part", part),
            readiness: self.readiness.scoped(part),
            tracer: self.tracer.clone(),
        }
    }

    /// The same with another tracer, for a service of its own name.
    #[must_use]
    pub fn traced(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }
}
