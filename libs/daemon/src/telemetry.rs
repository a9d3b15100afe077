//! Logs: the one subscriber of the process, as text or as JSON lines, on standard error. JSON lines
//! name the trace and span that they were written in.
//!
//! Levels: ERROR means a person must act, WARN is odd but working, INFO is a change of state that
//! a user cares about, DEBUG is for branches. Secrets are never logged.

use std::fmt;
use std::io::IsTerminal as _;

use mesh_trace::{ExportError, Exporter};
use serde::{Deserialize, Serialize};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Json, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use crate::handles::Handles;

/// Libraries that tell too much; a directive for the same target in the level wins over these.
///
/// boringtun's own messages are replaced by our events; sqlx warns about statements that are slow
/// on a busy disk, which nobody must act on.
const QUIET: &str = "boringtun=off,smoltcp=warn,russh=error,h2=warn,hyper=warn,hyper_util=warn,\
    tower=warn,tonic=warn,rustls=warn,tokio_util=warn,sqlx=error,sea_orm=warn,\
    sea_orm_migration=warn,fast_socks5=warn,mio=warn,axum=warn";

crate::settings! {
    /// The `[log]` section.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct LogConfig {
        /// A level, or directives such as `info,mesh_node=debug`.
        pub level: String,
        /// Text for people or JSON for machines.
        pub format: LogFormat,
    }
}

crate::settings! {
    /// How a line looks.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum LogFormat {
        /// For people; in colour on a terminal unless `NO_COLOR` is set.
        Text,
        /// One JSON object per line.
        Json,
    }
}

#[expect(
    clippy::derivable_impls,
    reason = "settings! keeps no #[default] on a variant"
)]
impl Default for LogFormat {
    fn default() -> Self {
        Self::Text
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is neither a level nor a list of directives.
    #[error(
        "log level {level:?} is neither a level (error, warn, info, debug, trace) nor directives such as info,mesh_node=debug"
    )]
    Level {
        /// What was given.
        level: String,
        /// What the parser says.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber already.
    #[error("logging is set up already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Changes the log level of the running process.
#[derive(Clone)]
pub struct LogHandle(reload::Handle<EnvFilter, Registry>);

impl LogHandle {
    /// Replaces the level; the quiet libraries stay quiet.
    ///
    /// # Errors
    /// When `level` cannot be read.
    pub fn set_level(&self, level: &str) -> Result<(), TelemetryError> {
        let filter = filter(level)?;
        // The subscriber is gone only when the process ends; there is nothing to tell then.
        let _ = self.0.reload(filter);
        Ok(())
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogHandle")
    }
}

/// Installs the process's subscriber. Only a `main` calls this, once. `RUST_LOG`, when set, wins
/// over the configured level.
///
/// # Errors
/// When the level cannot be read or a subscriber is installed already.
pub fn init(config: &LogConfig) -> Result<LogHandle, TelemetryError> {
    let mut config = config.clone();
    if let Ok(level) = std::env::var("RUST_LOG")
        && !level.is_empty()
    {
        config.level = level;
    }
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let color = std::io::stderr().is_terminal() && !no_color;
    let (subscriber, handle) = build(&config, color, std::io::stderr)?;
    subscriber.try_init().map_err(TelemetryError::Twice)?;
    crate::config::log_relaxed();
    Ok(handle)
}

/// The handles of a process with one service, whose spans go to the collector that the environment
/// names (`OTEL_EXPORTER_OTLP_ENDPOINT`), if any. [`Exporter::shutdown`] sends the last of them.
///
/// Must be called within a runtime.
///
/// # Errors
/// When a collector is named that cannot be used.
pub fn handles(service: &'static str) -> Result<(Handles, Exporter), ExportError> {
    let exporter = Exporter::from_env()?;
    let tracer = exporter.tracer(service, "")?;
    let handles = Handles {
        program: service,
        ..Handles::default()
    };
    Ok((handles.traced(tracer), exporter))
}

/// A subscriber that writes elsewhere, for tests (`tracing::subscriber::with_default`).
///
/// # Errors
/// When the level cannot be read.
pub fn subscriber<W>(
    config: &LogConfig,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    build(config, false, writer).map(|(subscriber, _)| subscriber)
}

type BoxedSubscriber = Box<dyn Subscriber + Send + Sync>;

fn build<W>(
    config: &LogConfig,
    color: bool,
    writer: W,
) -> Result<(BoxedSubscriber, LogHandle), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(color);
    let lines = match config.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .map_event_format(WithTrace)
            .boxed(),
    };
    let subscriber = Registry::default().with(lines.with_filter(filter));
    Ok((Box::new(subscriber), LogHandle(handle)))
}

/// JSON lines that begin with the ids of the span they were written in, when there is one.
struct WithTrace(Format<Json>);

impl<S, N> FormatEvent<S, N> for WithTrace
where
    S: Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(ids) = mesh_trace::current_ids() else {
            return self.0.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => {
                let (trace, span) = (ids.trace, ids.span);
                write!(
                    writer,
                    r#"{{"trace_id":"{trace}","span_id":"{span}",{rest}"#
                )
            }
            None => writer.write_str(&line),
        }
    }
}

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let refused = |source| TelemetryError::Level {
        level: level.to_owned(),
        source,
    };
    // A misspelt level alone would be taken for the name of a module.
    let bare = level
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains(['=', '[', ':']));
    let known = ["error", "warn", "info", "debug", "trace", "off"];
    let has_level = bare.is_some_and(|part| known.contains(&part.to_ascii_lowercase().as_str()));
    let first = if has_level { "" } else { "info," };
    if let Some(word) = bare
        && !has_level
    {
        // Gives the parser's own error for a word that is no level.
        if let Err(source) = EnvFilter::builder().parse(format!("mesh={word}")) {
            return Err(refused(source));
        }
    }
    EnvFilter::builder()
        .parse(format!("{first}{QUIET},{level}"))
        .map_err(refused)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let config = LogConfig {
            level: level.to_owned(),
            format,
        };
        let writer = captured.clone();
        let subscriber = subscriber(&config, move || writer.clone()).expect("a good level");
        tracing::subscriber::with_default(subscriber, log);
        let bytes = captured.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn noisy_libraries_are_quiet_unless_asked_for() {
        let noise = || {
            tracing::info!(target: "h2::codec", "frame");
            tracing::error!(target: "boringtun::noise", "handshake");
            tracing::info!(target: "mesh_node", "joined");
        };
        let quiet = logged("debug", LogFormat::Text, noise);
        assert!(
            quiet.contains("joined") && !quiet.contains("frame"),
            "{quiet}"
        );
        assert!(!quiet.contains("handshake"), "{quiet}");
        let loud = logged("info,h2=trace", LogFormat::Text, noise);
        assert!(loud.contains("frame"), "{loud}");
        let only_directives = logged("mesh_types=debug", LogFormat::Text, noise);
        assert!(only_directives.contains("joined"), "{only_directives}");
    }

    #[test]
    fn a_json_line_has_level_and_fields_at_the_top() {
        let line = logged("info", LogFormat::Json, || {
            tracing::warn!(node_id = "n1", "odd")
        });
        let value: serde_json::Value = serde_json::from_str(line.trim()).expect("one JSON line");
        assert_eq!(value["level"], "WARN");
        assert_eq!(value["message"], "odd");
        assert_eq!(value["node_id"], "n1");
    }

    #[tokio::test]
    async fn a_json_line_names_the_span_it_was_written_in() {
        // Nobody takes the spans; their ids are made all the same.
        let exporter = Exporter::to("http://127.0.0.1:9".to_owned(), None);
        let exporter = exporter.expect("a URL");
        let tracer = exporter.tracer("test", "").expect("a tracer");
        let span = tracer.start(mesh_trace::Kind::Internal, "work");
        let parent = span.parent().expect("a span").to_string();
        let captured = Captured::default();
        let config = LogConfig {
            level: "info".to_owned(),
            format: LogFormat::Json,
        };
        let writer = captured.clone();
        let subscriber = subscriber(&config, move || writer.clone()).expect("a good level");
        let _quiet = tracing::subscriber::set_default(subscriber);
        span.scope(async { tracing::info!(answer = 42, "inside") })
            .await;
        tracing::info!("outside");
        let bytes = captured.0.lock().expect("not poisoned").clone();
        let text = String::from_utf8(bytes).expect("text");
        let mut lines = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("one JSON line"));
        let inside = lines.next().expect("a line");
        let ids = format!(
            "00-{}-{}-01",
            text_of(&inside, "trace_id"),
            text_of(&inside, "span_id")
        );
        assert_eq!(ids, parent);
        assert_eq!(inside["answer"], 42);
        assert_eq!(
            lines.next().expect("a line")["trace_id"],
            serde_json::Value::Null
        );
    }

    fn text_of(line: &serde_json::Value, key: &str) -> String {
        line[key].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for level in ["verbose", "mesh_node=loud"] {
            let refused = filter(level).expect_err(level);
            assert!(refused.to_string().contains("neither a level"), "{refused}");
        }
    }
}
