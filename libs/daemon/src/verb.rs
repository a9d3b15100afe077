//! The verbs that every service has, beside its own.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line prints its answers"
)]

use std::process::ExitCode;

use crate::config::{self, ConfigArgs, EXIT_CONFIG, Overrides, Settings};
use crate::health::{self, HEALTH_LIMIT, Question, Unhealthy};
use crate::report;

mod file;

pub use file::ConfigVerb;

/// Verbs of every service, for `#[command(flatten)]` among a service's own.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum ServiceVerb {
    /// Ask the running service whether it is ready; exit code 0 or 1
    Health {
        /// Ask only whether it is alive
        #[arg(long)]
        live: bool,
    },
    /// The configuration file: make it, complete it, check it
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

impl ServiceVerb {
    /// Does what the verb says, for the service of these settings. `program` is the service's whole
    /// command line, under the service's name.
    pub fn run<T: Settings>(
        self,
        mut program: clap::Command,
        args: &ConfigArgs,
        overrides: Overrides,
    ) -> ExitCode {
        let service = program.get_name().to_owned();
        match self {
            Self::Health { live } => health::<T>(&service, args, overrides, live),
            Self::Config(verb) => verb.run::<T>(&service, args, overrides),
            Self::Completions { shell } => {
                clap_complete::generate(shell, &mut program, service, &mut std::io::stdout());
                ExitCode::SUCCESS
            }
        }
    }
}

fn health<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
    live: bool,
) -> ExitCode {
    // Whether the settings are safe is the running service's business: it may run with --dev.
    let settings: T = match config::load_unchecked(service, args, overrides) {
        Ok(settings) => settings,
        Err(faults) => {
            eprintln!("error: {faults}");
            return exit_config();
        }
    };
    let question = if live {
        Question::Alive
    } else {
        Question::Ready
    };
    let answer = match settings.admin() {
        Some(admin) => health::ask(admin.listen, question, HEALTH_LIMIT),
        None => Err(Unhealthy::Off),
    };
    match answer {
        Ok(()) => {
            println!("{}", if live { "alive" } else { "ready" });
            ExitCode::SUCCESS
        }
        Err(unhealthy) => {
            eprintln!("{service}: {}", report::chain(&unhealthy));
            ExitCode::FAILURE
        }
    }
}

fn exit_config() -> ExitCode {
    ExitCode::from(u8::try_from(EXIT_CONFIG).unwrap_or(1))
}
