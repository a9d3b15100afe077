//! A worker-agent of its own, as a process beside a mesh.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_testkit::{Child, Finished, Spec};

use crate::cli::{Cli, USUAL};

/// How long it may take to be ready, in any test.
const START: Duration = Duration::from_secs(20);

/// A machine's agent: its state directory, its settings, its process while it runs.
#[derive(Debug)]
pub struct Agent {
    name: String,
    cli: Cli,
    state_dir: PathBuf,
    sets: Vec<String>,
    child: Option<Child>,
}

impl Agent {
    /// Of that name, in the person's working folder; ports are whatever is free. Nothing is run.
    pub fn new(cli: &Cli, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cli: cli.clone(),
            state_dir: cli.work(&format!("state-{name}")),
            sets: vec![
                "wireguard.listen=127.0.0.1:0".to_owned(),
                "admin.listen=127.0.0.1:0".to_owned(),
            ],
            child: None,
        }
    }

    /// With one more setting, `key=value`, ahead of the usual ones.
    #[must_use]
    pub fn set(mut self, setting: impl Into<String>) -> Self {
        self.sets.push(setting.into());
        self
    }

    /// One of its verbs, to be run.
    pub fn verb(&self, words: &[&str]) -> Spec {
        self.verb_of(self.cli.product("worker-agent"), words)
    }

    /// The same behind another program, such as `faketime`.
    pub fn verb_of(&self, program: Spec, words: &[&str]) -> Spec {
        let mut spec = program
            .name(format!("{}-{}", self.name, words[0]))
            .args(words)
            .arg("--state-dir")
            .arg(&self.state_dir);
        for set in &self.sets {
            spec = spec.args(["--set", set]);
        }
        spec
    }

    /// Runs one of its verbs to its end.
    ///
    /// # Panics
    /// When it cannot be run.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        let ran = self.verb(words).run(USUAL);
        ran.unwrap_or_else(|error| panic!("{words:?}: {error:#}"))
    }

    /// Joins by a token.
    ///
    /// # Panics
    /// When it cannot be run.
    #[track_caller]
    pub fn join(&self, token: &str) -> Finished {
        let spec = self.verb(&["join", "--token-file", "-", "--hostname", &self.name]);
        let ran = spec.stdin(format!("{token}\n")).run(USUAL);
        ran.unwrap_or_else(|error| panic!("join: {error:#}"))
    }

    /// Joins a network by a fresh token of `operator`, and runs.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn joined(mut self, operator: &Cli, network: &str) -> Self {
        let token = operator.token(&["--network", network]);
        self.join(&token).expect_code(0);
        self.start();
        self
    }

    /// Starts it and waits until it has a netmap.
    ///
    /// # Panics
    /// When it does not get ready.
    #[track_caller]
    pub fn start(&mut self) {
        let child = self
            .verb(&["run"])
            .spawn()
            .unwrap_or_else(|error| panic!("{error:#}"));
        child.wait_for_line(": ready ", START);
        self.child = Some(child);
    }

    /// Ends it as a service manager does.
    ///
    /// # Panics
    /// When it does not end well.
    #[track_caller]
    pub fn stop(&mut self) {
        let mut child = self.take_child();
        child.terminate().expect("signalled");
        child.finish(START).expect("ends").expect_code(0);
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn child(&self) -> &Child {
        self.child.as_ref().expect("the agent runs")
    }

    /// Takes its process away, to end it.
    ///
    /// # Panics
    /// When it does not run.
    pub fn take_child(&mut self) -> Child {
        self.child.take().expect("the agent runs")
    }

    /// Its state directory.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}
