//! The process's metrics as a handle, so that nothing is registered globally.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// A handle to the process's metrics registry.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    labels: Vec<(String, String)>,
}

impl Metrics {
    /// Gives the registry (with this handle's labels) to `register`, once, when a service is built.
    ///
    /// Metrics are named `mesh_<service>_<noun>_<unit>`; the registry adds `_total` to counters.
    pub fn register<R>(&self, register: impl FnOnce(&mut Registry) -> R) -> R {
        let mut registry = self.lock();
        if self.labels.is_empty() {
            return register(&mut registry);
        }
        let labels = self
            .labels
            .iter()
            .map(|(label, value)| (Cow::from(label.clone()), Cow::from(value.clone())));
        register(registry.sub_registry_with_labels(labels))
    }

    /// A handle to the same registry that adds a label to everything registered through it.
    #[must_use]
    pub fn scoped(&self, label: &str, value: &str) -> Self {
        let mut labels = self.labels.clone();
        labels.push((label.to_owned(), value.to_owned()));
        Self {
            registry: Arc::clone(&self.registry),
            labels,
        }
    }

    /// Everything, in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut encoded = String::new();
        text::encode(&mut encoded, &self.lock()).expect("writing to a String cannot fail");
        merge_families(&encoded)
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // INVARIANT: the registry stays usable when a registering closure panicked half way.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// Brings the samples of one family together under one HELP and TYPE.
///
/// Two scopes that register the same metric give two blocks of the same name, which the format
/// forbids (OpenMetrics 1.0, "MetricFamily").
fn merge_families(encoded: &str) -> String {
    struct Family<'a> {
        name: &'a str,
        head: Vec<&'a str>,
        samples: Vec<&'a str>,
    }
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut current: Option<usize> = None;
    for line in encoded.lines().filter(|line| *line != "# EOF") {
        let described = ["# HELP ", "# TYPE ", "# UNIT "]
            .iter()
            .find_map(|prefix| line.strip_prefix(prefix))
            .and_then(|rest| rest.split(' ').next());
        if let Some(name) = described {
            let index = families
                .iter()
                .position(|family| family.name == name)
                .unwrap_or_else(|| {
                    families.push(Family {
                        name,
                        head: Vec::new(),
                        samples: Vec::new(),
                    });
                    families.len() - 1
                });
            let head = &mut families[index].head;
            // One line of each kind: "# HELP" and the like are all seven characters long.
            if !head.iter().any(|known| known[..6] == line[..6]) {
                head.push(line);
            }
            current = Some(index);
        } else if let Some(index) = current {
            families[index].samples.push(line);
        }
    }
    let mut merged = String::with_capacity(encoded.len());
    for line in families
        .iter()
        .flat_map(|family| family.head.iter().chain(&family.samples))
    {
        merged.push_str(line);
        merged.push('\n');
    }
    merged.push_str("# EOF\n");
    merged
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn counted(metrics: &Metrics, by: u64) {
        let counter: Counter = Counter::default();
        metrics
            .register(|registry| registry.register("mesh_test_things", "Things", counter.clone()));
        counter.inc_by(by);
    }

    #[test]
    fn the_same_metric_of_two_parts_is_one_family() {
        let metrics = Metrics::default();
        counted(&metrics.scoped("part", "a"), 3);
        counted(&metrics.scoped("part", "b"), 4);
        assert_eq!(
            metrics.encode(),
            "# HELP mesh_test_things Things.\n\
             # TYPE mesh_test_things counter\n\
             mesh_test_things_total{part=\"a\"} 3\n\
             mesh_test_things_total{part=\"b\"} 4\n\
             # EOF\n"
        );
    }

    #[test]
    fn without_a_scope_there_is_no_label() {
        let metrics = Metrics::default();
        counted(&metrics, 1);
        assert!(metrics.encode().contains("\nmesh_test_things_total 1\n"));
    }
}
