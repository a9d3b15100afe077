//! One target: its program, its inputs, and what libFuzzer says of them.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace;

/// Turns the planted bug on; see `fuzz/src/lib.rs`.
const PLANTED: &str = "MESH_FUZZ_PLANTED";
/// Has the target write its seeds to this directory.
const SEEDS: &str = "MESH_FUZZ_SEEDS";
/// What libFuzzer says in front of the file that it kept.
const WRITTEN: &str = "Test unit written to ";
/// Lines of a failed target's log that are shown.
const SHOWN: usize = 25;
/// A line with more bytes than this is an input, and no text.
const WIDEST: usize = 2000;

/// How a target did that did as it should.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdict {
    what: &'static str,
    took: Duration,
    runs: u64,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f32();
        write!(f, "{} {seconds:.1} s, {} inputs", self.what, self.runs)
    }
}

/// One target, built.
#[derive(Debug)]
pub(super) struct Target {
    name: String,
    program: PathBuf,
    /// Seeds and regressions, sorted.
    committed: Vec<PathBuf>,
}

impl Target {
    pub(super) fn new(name: String, programs: &Path) -> Result<Self> {
        let program = programs.join(&name);
        ensure!(program.is_file(), "fuzz/Cargo.toml has no [[bin]] {name}");
        let mut committed = Vec::new();
        let corpus = corpus(&name);
        if corpus.is_dir() {
            for entry in fs::read_dir(&corpus)? {
                committed.push(entry?.path());
            }
        }
        committed.sort();
        Ok(Self {
            name,
            program,
            committed,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs these inputs, each once, and shows what the target prints.
    pub(super) fn replay(&self, inputs: &[PathBuf]) -> Result<()> {
        let mut command = self.command();
        crate::process::run(command.args(inputs))
    }

    pub(super) fn write_seeds(&self) -> Result<()> {
        let corpus = corpus(&self.name);
        let log = self.log("seeds")?;
        // A target without a generator fuzzes nothing.
        let mut command = self.command();
        command.env(SEEDS, &corpus).arg("-runs=0");
        let status = run_logged(&mut command, &log)?;
        ensure!(status.success(), "{}: {}", self.name, reason(&log));
        Ok(())
    }

    /// Replays what is committed, then looks for new faults. With a seed it looks where it looked
    /// the last time, as far as the target's speed and its own keys allow.
    pub(super) fn fuzz(&self, seconds: u64, seed: Option<u32>) -> Result<Verdict> {
        let begun = Instant::now();
        let log = self.log("log")?;
        if !self.committed.is_empty() {
            let mut command = self.command();
            let status = run_logged(command.args(&self.committed), &log)?;
            if !status.success() {
                let last = last_input(&log).unwrap_or_default();
                bail!(
                    "a committed input fails\n{}\nto see it again: cargo xtask fuzz {} --replay {last}",
                    reason(&log),
                    self.name
                );
            }
        }
        // What earlier runs have grown would lead elsewhere.
        let grown = match seed {
            None => "fuzz/target/corpus",
            Some(_) => "fuzz/target/seeded",
        };
        let grown = workspace::root().join(grown).join(&self.name);
        if seed.is_some() && grown.exists() {
            fs::remove_dir_all(&grown)?;
        }
        let artefacts = workspace::target_dir().join("ci/fuzz");
        let mut command = self.search(&grown, &artefacts, seconds)?;
        if let Some(seed) = seed {
            command.arg(format!("-seed={seed}"));
        }
        let status = run_logged(&mut command, &log)?;
        if !status.success() {
            let input = artefact(&log).unwrap_or_else(|| artefacts.display().to_string());
            bail!(
                "{}\nto see it again: cargo xtask fuzz {} --replay {input}",
                reason(&log),
                self.name
            );
        }
        Ok(Verdict {
            what: "ok",
            took: begun.elapsed(),
            runs: runs(&log),
        })
    }

    /// Fuzzes with the planted bug on, from the committed inputs alone. It must be found, and what
    /// was found must be no fault of the product.
    pub(super) fn find_planted(&self, seconds: u64) -> Result<Verdict> {
        let begun = Instant::now();
        let log = self.log("planted.log")?;
        let place = workspace::root()
            .join("fuzz/target/planted")
            .join(&self.name);
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        let grown = place.join("corpus");
        let mut command = self.search(&grown, &place, seconds)?;
        // The same mutations each time, so that whether it is found is less a matter of luck; a
        // target with keys or hash maps of its own takes other ways all the same.
        command.env(PLANTED, "1").arg("-seed=1");
        let status = run_logged(&mut command, &log)?;
        let took = begun.elapsed();
        ensure!(
            !status.success(),
            "its planted bug was not found within {seconds} s and {} inputs",
            runs(&log)
        );
        let text = read(&log);
        let input = artefact(&log).with_context(|| tail(&text))?;
        ensure!(
            is_own_panic(&text, &self.name),
            "it ended, but not by what it asserts (a timeout, too much memory, a fault elsewhere): \
             {input}\n{}",
            reason(&log)
        );
        let again = self.log("planted-off.log")?;
        let sound = run_logged(self.command().arg(&input), &again)?;
        ensure!(
            sound.success(),
            "what was found fails without the planted bug too: {input}\n{}",
            reason(&again)
        );
        fs::remove_dir_all(&place)?;
        Ok(Verdict {
            what: "found its planted bug after",
            took,
            runs: runs(&log),
        })
    }

    /// The command that looks for faults; what it grows and what it finds goes to these places.
    fn search(&self, grown: &Path, artefacts: &Path, seconds: u64) -> Result<Command> {
        fs::create_dir_all(grown)?;
        fs::create_dir_all(artefacts)?;
        let mut command = self.command();
        command.arg(grown);
        if !self.committed.is_empty() {
            command.arg(corpus(&self.name));
        }
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!(
                "-artifact_prefix={}/{}-",
                artefacts.display(),
                self.name
            ))
            .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=1024"]);
        Ok(command)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(workspace::root())
            .env_remove(PLANTED)
            .env_remove(SEEDS);
        command
    }

    fn log(&self, kind: &str) -> Result<PathBuf> {
        let dir = workspace::target_dir().join("ci/fuzz");
        fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{}.{kind}", self.name));
        if path.exists() {
            fs::remove_file(&path)?;
        }
        Ok(path)
    }
}

fn corpus(name: &str) -> PathBuf {
    workspace::root().join("fuzz/corpus").join(name)
}

/// Runs the command; what it prints is added to the log.
fn run_logged(command: &mut Command, log: &Path) -> Result<ExitStatus> {
    let file = File::options().create(true).append(true).open(log)?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("start {}", command.get_program().display()))
}

/// What libFuzzer printed is not always text.
fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

/// Why a target failed: its panic and the input, which may be all that is left of a run on another
/// machine; the end of the log when there was no panic.
fn reason(log: &Path) -> String {
    let text = read(log);
    let lines: Vec<&str> = text.lines().collect();
    let Some(panic) = lines
        .iter()
        .rposition(|line| line.contains(" panicked at "))
    else {
        return tail(&text);
    };
    let message = lines[panic..]
        .iter()
        .take_while(|line| !line.starts_with("stack backtrace:") && !line.starts_with("note: "))
        .take(SHOWN);
    let input = lines[panic..]
        .iter()
        .filter(|line| line.starts_with("Base64: ") && line.len() < WIDEST);
    message.chain(input).copied().collect::<Vec<_>>().join("\n")
}

/// The end of the log, without the statistics and the input's bytes.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| {
            !line.starts_with("stat::") && !line.starts_with("0x") && line.len() < WIDEST
        })
        .collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

fn runs(log: &Path) -> u64 {
    let text = read(log);
    let lines = text.lines().rev();
    lines
        .filter_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The input that was being replayed last.
fn last_input(log: &Path) -> Option<String> {
    let text = read(log);
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("Running: "))?;
    Some(line.to_owned())
}

/// Whether a target ended because something that it asserts does not hold: by a panic in its own
/// file, which is what a planted bug leads to.
fn is_own_panic(log: &str, name: &str) -> bool {
    let place = format!(" panicked at fuzz_targets/{name}.rs:");
    let unit = format!("/{name}-crash-");
    let mut written = log.lines().rev().filter(|line| line.contains(WRITTEN));
    let is_crash = written.next().is_some_and(|line| line.contains(&unit));
    is_crash && log.lines().any(|line| line.contains(&place))
}

/// Where libFuzzer put the input that failed.
fn artefact(log: &Path) -> Option<String> {
    let text = read(log);
    let line = text
        .lines()
        .rev()
        .find_map(|line| line.split_once(WRITTEN))?;
    Some(line.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_bug_counts_when_its_own_assertion_ended_the_target() {
        let log = |place: &str, unit: &str| {
            format!(
                "#7\tNEW\n\nthread '<unnamed>' (7) panicked at {place}:27:5:\nboth are the same\n\
                 ==7== ERROR: libFuzzer: deadly signal\n\
                 artifact_prefix='/t/disco-'; Test unit written to /t/disco-{unit}-3cf0\n"
            )
        };
        let own = "fuzz_targets/disco.rs";
        assert!(is_own_panic(&log(own, "crash"), "disco"));
        assert!(!is_own_panic(&log(own, "timeout"), "disco"));
        assert!(!is_own_panic(&log(own, "oom"), "disco"));
        assert!(!is_own_panic(
            &log("libs/tunnel/src/disco.rs", "crash"),
            "disco"
        ));
        assert!(!is_own_panic(
            &log("fuzz_targets/derp.rs", "crash"),
            "disco"
        ));
        let slow = "Test unit written to /t/disco-slow-unit-1\n";
        assert!(!is_own_panic(slow, "disco"));
        assert!(is_own_panic(
            &format!("{slow}{}", log(own, "crash")),
            "disco"
        ));
        assert!(!is_own_panic("", "disco"));
    }
}
