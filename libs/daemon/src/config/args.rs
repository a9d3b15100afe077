//! The flags every service has, and the typed ones a service adds.

use std::ffi::OsString;
use std::path::PathBuf;

/// What clap calls [`ConfigArgs::set`].
const SET: &str = "set";

/// Flags about configuration, for `#[command(flatten)]`; they may stand before or after a verb.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct ConfigArgs {
    /// Read this file instead of the service's own in /etc/mesh
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, such as log.level=debug (repeatable; wins over file and environment)
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Say whether the configuration is good, and exit
    #[arg(long, global = true)]
    pub check_config: bool,
    /// Print the configuration in force, secrets redacted, and exit
    #[arg(long, global = true)]
    pub print_config: bool,
    /// Accept settings that are unsafe outside of development
    #[arg(long, global = true)]
    pub dev: bool,
}

impl ConfigArgs {
    /// Every `--set` of this process's command line, before and after a verb, in that order: clap
    /// keeps only the last level's. `program` is the whole command line's shape.
    #[must_use]
    pub fn with_every_set(self, program: clap::Command) -> Self {
        self.with_every_set_of(program, std::env::args_os())
    }

    fn with_every_set_of(
        mut self,
        program: clap::Command,
        typed: impl IntoIterator<Item = OsString>,
    ) -> Self {
        // What clap has taken it takes again: the levels differ in nothing but who keeps the flag.
        if let Ok(matches) = apart(program).try_get_matches_from(typed) {
            self.set = sets(&matches);
        }
        self
    }
}

/// The same command line, with a `--set` of its own at each level.
fn apart(program: clap::Command) -> clap::Command {
    let program = program.mut_arg(SET, |set| set.global(false));
    let set = program
        .get_arguments()
        .find(|arg| arg.get_id() == SET)
        .cloned();
    let mut program = program;
    if let Some(set) = set {
        program
            .get_subcommands_mut()
            .for_each(|verb| add(verb, &set));
    }
    program
}

fn add(verb: &mut clap::Command, set: &clap::Arg) {
    if verb.get_arguments().all(|arg| arg.get_id() != SET) {
        *verb = std::mem::take(verb).arg(set.clone());
    }
    verb.get_subcommands_mut().for_each(|verb| add(verb, set));
}

fn sets(matches: &clap::ArgMatches) -> Vec<String> {
    let mut level = Some(matches);
    let mut all = Vec::new();
    while let Some(matches) = level {
        if let Ok(Some(given)) = matches.try_get_many::<String>(SET) {
            all.extend(given.cloned());
        }
        level = matches.subcommand().map(|(_, below)| below);
    }
    all
}

/// Values from a service's own flags; they win over every other layer.
#[derive(Debug, Clone, Default)]
pub struct Overrides(pub(super) Vec<(String, String)>);

impl Overrides {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `key` (dotted, such as `server.listen`) has this value, if one was given.
    #[must_use]
    pub fn set(mut self, key: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            self.0.push((key.to_owned(), value.to_string()));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(subcommand)]
        verb: Option<Verb>,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Verb {
        Run {
            #[arg(trailing_var_arg = true)]
            words: Vec<String>,
        },
        #[command(subcommand)]
        Config(Below),
    }

    #[derive(Debug, clap::Subcommand)]
    enum Below {
        Check,
    }

    fn sets_of(line: &str) -> Vec<String> {
        let typed: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let parsed = Line::try_parse_from(&typed).expect("understood");
        let config = parsed.config;
        config.with_every_set_of(Line::command(), typed).set
    }

    #[test]
    fn what_is_set_before_and_after_a_verb_counts_in_that_order() {
        for (line, expected) in [
            ("x", vec![]),
            ("x --set a=1 --set b=2", vec!["a=1", "b=2"]),
            ("x --set a=1 run", vec!["a=1"]),
            ("x run --set a=1", vec!["a=1"]),
            (
                "x --set a=1 --set b=2 run --set a=3",
                vec!["a=1", "b=2", "a=3"],
            ),
            (
                "x --set a=1 config --set b=2 check --set c=3",
                vec!["a=1", "b=2", "c=3"],
            ),
            // What follows `--` is somebody else's.
            ("x --set a=1 run -- --set b=2", vec!["a=1"]),
        ] {
            assert_eq!(sets_of(line), expected, "{line}");
        }
    }
}
