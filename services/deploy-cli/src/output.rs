//! What is printed: live output while commands run, results at the end.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write};

use bytes::Bytes;
use mesh_ssh::report::{TargetReport, TargetState};
use mesh_ssh::{ExecEvent, Exit};

/// At most this much of each stream is kept for `--json`.
const KEPT: usize = 1024 * 1024;
/// A line without an end is shown when it is this long.
const LONGEST_LINE: usize = 64 * 1024;
/// ANSI foreground colours that are readable on light and dark ground.
const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// Prints a warning to standard error.
pub fn warn(text: &str) {
    eprintln!("warning: {text}");
}

/// How live output is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// Not at all: it is kept for the results.
    Kept,
    /// As it comes, byte by byte: there is one target.
    Plain,
    /// In whole lines, each with its target in front.
    Prefixed {
        /// Whether the target is coloured.
        colour: bool,
    },
}

impl Live {
    /// Colour on a terminal, unless `NO_COLOR` is set and not empty.
    pub fn prefixed() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::Prefixed {
            colour: wanted && std::io::stdout().is_terminal(),
        }
    }
}

#[derive(Debug, Default)]
struct Stream {
    line: Vec<u8>,
    kept: Vec<u8>,
    truncated: bool,
}

impl Stream {
    fn keep(&mut self, data: &[u8]) {
        let room = KEPT - self.kept.len();
        self.truncated |= data.len() > room;
        self.kept.extend(&data[..data.len().min(room)]);
    }

    /// Adds data and gives out the lines that are whole now.
    fn lines(&mut self, data: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in data.split_inclusive(|&byte| byte == b'\n') {
            self.line.extend(part);
            if part.ends_with(b"\n") || self.line.len() >= LONGEST_LINE {
                lines.push(std::mem::take(&mut self.line));
            }
        }
        lines
    }
}

/// Shows and keeps what commands write.
pub struct Display<O, E> {
    live: Live,
    labels: Vec<String>,
    width: usize,
    streams: Vec<[Stream; 2]>,
    out: O,
    err: E,
}

impl<O: Write, E: Write> Display<O, E> {
    /// For the targets of these labels.
    pub fn new(live: Live, labels: Vec<String>, out: O, err: E) -> Self {
        let width = labels.iter().map(String::len).max().unwrap_or(0);
        let streams = labels.iter().map(|_| Default::default()).collect();
        Self {
            live,
            labels,
            width,
            streams,
            out,
            err,
        }
    }

    /// Takes in one event. Output that cannot be written any more is dropped: the commands go on.
    pub fn event(&mut self, index: usize, event: &ExecEvent) {
        match event {
            ExecEvent::Stdout(data) => self.data(index, 0, data),
            ExecEvent::Stderr(data) => self.data(index, 1, data),
            ExecEvent::Exit(_) => {}
        }
    }

    fn data(&mut self, index: usize, which: usize, data: &Bytes) {
        match self.live {
            Live::Kept => self.streams[index][which].keep(data),
            Live::Plain => self.put(which, data),
            Live::Prefixed { .. } => {
                for line in self.streams[index][which].lines(data) {
                    self.put_line(index, which, &line);
                }
            }
        }
    }

    fn put_line(&mut self, index: usize, which: usize, line: &[u8]) {
        let label = format!("{:width$}", self.labels[index], width = self.width);
        let colour = matches!(self.live, Live::Prefixed { colour: true });
        let mut text = if colour {
            let code = COLOURS[index % COLOURS.len()];
            format!("\x1b[{code}m{label} |\x1b[0m ").into_bytes()
        } else {
            format!("{label} | ").into_bytes()
        };
        text.extend(line);
        if !line.ends_with(b"\n") {
            text.push(b'\n');
        }
        self.put(which, &text);
    }

    fn put(&mut self, which: usize, data: &[u8]) {
        let written = if which == 0 {
            self.out.write_all(data).and_then(|()| self.out.flush())
        } else {
            self.err.write_all(data).and_then(|()| self.err.flush())
        };
        // A reader that has gone (head, less) wants no more; that is no failure of the commands.
        drop(written);
    }

    /// Shows what is left of unfinished lines, and moves what was kept into the results.
    pub fn finish(mut self, results: &mut [TargetReport]) {
        for index in 0..self.labels.len() {
            for which in 0..2 {
                let rest = std::mem::take(&mut self.streams[index][which].line);
                if !rest.is_empty() {
                    self.put_line(index, which, &rest);
                }
            }
        }
        if self.live != Live::Kept {
            return;
        }
        for (result, [out, err]) in results.iter_mut().zip(self.streams) {
            let text = |stream: &Stream| String::from_utf8_lossy(&stream.kept).into_owned();
            result.truncated = out.truncated || err.truncated;
            result.stdout = Some(text(&out));
            result.stderr = Some(text(&err));
        }
    }
}

/// One `[OK]` or `[FAIL]` line per target.
pub fn lines(results: &[TargetReport]) -> String {
    let mut text = String::new();
    for result in results {
        let target = &result.target;
        // Writing to a string does not fail.
        let _ = match (result.ok, &result.hostname) {
            (true, Some(hostname)) => {
                let ip = result.mesh_ip.as_deref().unwrap_or("unknown");
                writeln!(text, "[OK] {target} -> hostname: {hostname}, mesh IP: {ip}")
            }
            (true, None) => writeln!(text, "[OK] {target}"),
            (false, _) => {
                let reason = result.reason.as_deref().unwrap_or("unknown reason");
                writeln!(text, "[FAIL] {target}: {reason}")
            }
        };
    }
    text
}

/// The process's exit code. `single` is a run of one command on one target.
pub fn exit_code(results: &[TargetReport], single: bool) -> u8 {
    match results {
        [result] if single => match (result.state, result.exit_code, &result.signal) {
            (TargetState::Exited, Some(code), _) => u8::try_from(code).unwrap_or(255),
            (TargetState::Exited, None, Some(signal)) => Exit::Signal(signal.clone())
                .shell_code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(255),
            _ => 255,
        },
        _ => u8::from(results.iter().any(|result| !result.ok)),
    }
}

#[cfg(test)]
mod tests {
    use mesh_ssh::report::Outcome;

    use super::*;

    fn result(target: &str, outcome: Outcome) -> TargetReport {
        let mut result = TargetReport::new(target, TargetState::Running);
        result.set_outcome(outcome);
        result
    }

    fn status(code: u32) -> Outcome {
        Outcome::Exited(Exit::Status(code))
    }

    #[test]
    fn status_lines_are_the_documented_ones() {
        let mut good = result("worker-node-1", status(0));
        good.hostname = Some("debian".to_owned());
        good.mesh_ip = Some("100.64.0.2".to_owned());
        let results = [
            good,
            result("worker-node-2", Outcome::Failed("no answer".to_owned())),
            result("worker-node-3", status(3)),
            result("worker-node-4", status(0)),
        ];
        assert_eq!(
            lines(&results),
            "[OK] worker-node-1 -> hostname: debian, mesh IP: 100.64.0.2\n\
             [FAIL] worker-node-2: no answer\n\
             [FAIL] worker-node-3: exit status 3\n\
             [OK] worker-node-4\n"
        );
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let lost = Outcome::Exited(Exit::Lost);
        let killed = Outcome::Exited(Exit::Signal("KILL".to_owned()));
        for (outcome, single, code) in [
            (status(0), true, 0),
            (status(42), true, 42),
            (status(70_000), true, 255),
            (killed.clone(), true, 137),
            (lost.clone(), true, 255),
            (Outcome::Failed("x".to_owned()), true, 255),
            (status(0), false, 0),
            (status(42), false, 1),
            (killed, false, 1),
            (lost, false, 1),
        ] {
            let results = [result("a", outcome.clone())];
            assert_eq!(exit_code(&results, single), code, "{outcome:?} {single}");
        }
        let results = [result("a", status(0)), result("b", status(9))];
        assert_eq!(exit_code(&results, false), 1);
    }

    fn shown(live: Live, events: &[(usize, ExecEvent)]) -> (String, String, Vec<TargetReport>) {
        let labels = vec!["web-1".to_owned(), "db".to_owned()];
        let mut results: Vec<TargetReport> = labels
            .iter()
            .map(|label| result(label, status(0)))
            .collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut display = Display::new(live, labels, &mut out, &mut err);
        for (index, event) in events {
            display.event(*index, event);
        }
        display.finish(&mut results);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(out), text(err), results)
    }

    fn events() -> Vec<(usize, ExecEvent)> {
        vec![
            (0, ExecEvent::Stdout("one\ntw".into())),
            (1, ExecEvent::Stderr("oops\n".into())),
            (0, ExecEvent::Stdout("o\n".into())),
            (1, ExecEvent::Stdout("no end".into())),
        ]
    }

    #[test]
    fn lines_of_several_targets_stay_whole_and_carry_their_target() {
        let (out, err, _) = shown(Live::Prefixed { colour: false }, &events());
        assert_eq!(out, "web-1 | one\nweb-1 | two\ndb    | no end\n");
        assert_eq!(err, "db    | oops\n");
        let (out, _, _) = shown(Live::Prefixed { colour: true }, &events()[..1]);
        assert_eq!(
            out,
            "\x1b[36mweb-1 |\x1b[0m one\n\x1b[36mweb-1 |\x1b[0m tw\n"
        );
    }

    #[test]
    fn one_target_is_shown_as_it_comes() {
        let (out, err, _) = shown(Live::Plain, &events());
        assert_eq!((out.as_str(), err.as_str()), ("one\ntwo\nno end", "oops\n"));
    }

    #[test]
    fn kept_output_goes_into_the_results_and_is_cut_when_it_is_long() {
        let long = vec![b'x'; KEPT + 1];
        let (out, _, results) = shown(Live::Kept, &[(0, ExecEvent::Stdout(long.into()))]);
        assert_eq!(out, "");
        assert!(results[0].truncated && !results[1].truncated);
        assert_eq!(results[0].stdout.as_ref().map(String::len), Some(KEPT));
        assert_eq!(results[1].stderr.as_deref(), Some(""));
    }
}
