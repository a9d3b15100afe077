//! What a process printed, line by line and with the time of arrival.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Which of its two outputs a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of output.
#[derive(Debug, Clone)]
pub struct Line {
    /// When it was complete.
    pub at: Instant,
    /// Where it was written to.
    pub stream: Stream,
    /// The text, without the line's end and without colours.
    pub text: String,
}

impl Line {
    /// The line's log level when it is one of a person's business: `WARN`, `ERROR`, or `PANIC`.
    pub fn alarm(&self) -> Option<&'static str> {
        alarm(&self.text)
    }
}

fn alarm(text: &str) -> Option<&'static str> {
    if text.contains("panicked at") {
        return Some("PANIC");
    }
    if text.starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        return match value.get("level")?.as_str()? {
            "WARN" => Some("WARN"),
            "ERROR" => Some("ERROR"),
            _ => None,
        };
    }
    text.split_whitespace().take(2).find_map(|word| match word {
        "WARN" => Some("WARN"),
        "ERROR" => Some("ERROR"),
        _ => None,
    })
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    open: usize,
}

/// The growing output of a process; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Log {
    shared: Arc<(Mutex<State>, Condvar)>,
    copy: Option<Arc<Mutex<File>>>,
}

impl Log {
    /// An empty log, copied to `copy` as it grows.
    pub(crate) fn new(copy: Option<File>) -> Self {
        Self {
            shared: Arc::default(),
            copy: copy.map(|file| Arc::new(Mutex::new(file))),
        }
    }

    /// Follows one output of a process until it closes.
    pub(crate) fn follow(
        &self,
        stream: Stream,
        from: impl Read + Send + 'static,
    ) -> JoinHandle<()> {
        self.state().open += 1;
        let log = self.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(from);
            let mut bytes = Vec::new();
            while matches!(reader.read_until(b'\n', &mut bytes), Ok(1..)) {
                let text = String::from_utf8_lossy(&bytes);
                log.push(stream, without_colours(text.trim_end_matches(['\n', '\r'])));
                bytes.clear();
            }
            log.state().open -= 1;
            log.shared.1.notify_all();
        })
    }

    fn push(&self, stream: Stream, text: String) {
        if let Some(copy) = &self.copy {
            let mut file = copy.lock().unwrap_or_else(PoisonError::into_inner);
            // A full disk must not stop the test; the lines in memory are what counts.
            drop(writeln!(file, "{text}"));
        }
        let at = Instant::now();
        self.state().lines.push(Line { at, stream, text });
        self.shared.1.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<Line> {
        self.state().lines.clone()
    }

    /// Everything written to `stream` so far, lines joined again.
    pub fn text(&self, stream: Stream) -> String {
        let state = self.state();
        let mut text = String::new();
        for line in state.lines.iter().filter(|line| line.stream == stream) {
            text.push_str(&line.text);
            text.push('\n');
        }
        text
    }

    /// The first line, past or future, for which `wanted` answers; `None` when the deadline passes
    /// or the process closed its outputs first.
    pub fn wait_for<T>(
        &self,
        within: Duration,
        mut wanted: impl FnMut(&Line) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + within;
        let mut seen = 0;
        let mut state = self.state();
        loop {
            while let Some(line) = state.lines.get(seen) {
                if let Some(value) = wanted(line) {
                    return Some(value);
                }
                seen += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.open == 0 {
                return None;
            }
            (state, _) = self
                .shared
                .1
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lines of level WARN and ERROR, and panics, that contain none of `allowed`.
    pub fn alarms(&self, allowed: &[&str]) -> Vec<String> {
        self.state()
            .lines
            .iter()
            .filter(|line| line.alarm().is_some())
            .filter(|line| !allowed.iter().any(|text| line.text.contains(text)))
            .map(|line| line.text.clone())
            .collect()
    }

    /// The last `count` lines, for a person.
    pub fn tail(&self, count: usize) -> String {
        let state = self.state();
        let from = state.lines.len().saturating_sub(count);
        let mut text = String::new();
        for line in &state.lines[from..] {
            text.push_str("  | ");
            text.push_str(&line.text);
            text.push('\n');
        }
        text
    }
}

fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            // A control sequence (ECMA-48 5.4) ends with a character from @ to ~.
            chars.next();
            for c in chars.by_ref() {
                if ('@'..='~').contains(&c) {
                    break;
                }
            }
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_recognised_in_both_formats() {
        let text = "2026-11-21T10:00:00.000Z  WARN relay: a thing odd=1";
        assert_eq!(alarm(text), Some("WARN"));
        assert_eq!(alarm("ERROR coordinator: store is down"), Some("ERROR"));
        assert_eq!(
            alarm(r#"{"timestamp":"…","level":"ERROR","fields":{}}"#),
            Some("ERROR")
        );
        assert_eq!(
            alarm("thread 'main' panicked at src/main.rs:1"),
            Some("PANIC")
        );
    }

    #[test]
    fn ordinary_lines_are_no_alarm() {
        assert_eq!(
            alarm("2026-11-21T10:00:00.000Z  INFO relay: no ERROR at all"),
            None
        );
        assert_eq!(alarm(r#"{"level":"INFO","message":"WARN"}"#), None);
        assert_eq!(alarm(""), None);
    }

    #[test]
    fn colours_are_taken_away() {
        assert_eq!(
            without_colours("\u{1b}[2mnow\u{1b}[0m \u{1b}[33m WARN\u{1b}[0m x"),
            "now  WARN x"
        );
    }

    #[test]
    fn waiting_finds_past_lines_and_ends_with_the_process() {
        let log = Log::new(None);
        let reader = log.follow(Stream::Stdout, &b"one\ntwo\n"[..]);
        reader.join().expect("reader");
        let second = Duration::from_secs(1);
        assert_eq!(
            log.wait_for(second, |line| (line.text == "two").then_some(2)),
            Some(2)
        );
        let started = Instant::now();
        assert_eq!(
            log.wait_for(second * 60, |line| (line.text == "three").then_some(3)),
            None
        );
        assert!(started.elapsed() < second * 10);
    }

    #[test]
    fn allowed_alarms_are_left_out() {
        let log = Log::new(None);
        let text: &[u8] = b"t WARN a: expected\nt ERROR b: not expected\nt INFO c: fine\n";
        log.follow(Stream::Stderr, text).join().expect("reader");
        assert_eq!(log.alarms(&["a: expected"]), ["t ERROR b: not expected"]);
    }
}
