//! The `coordinator` binary.

mod allocator;
mod args;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _};
use coordinator::{App, Config, PublishError, SystemClock, provision, publish_secrets};
use mesh_daemon::{EXIT_CONFIG, Overrides, ShutdownTrigger, config, signals, telemetry};
use mesh_trace::FLUSH;

use crate::args::{Args, BootstrapArgs, Command, PublishSecretsArgs, RunArgs};

#[tokio::main]
async fn main() -> ExitCode {
    allocator::give_back_at_once();
    let Args {
        command,
        run: flags,
    } = Args::parse();
    let done = match command {
        None => run(flags).await,
        Some(Command::Run(flags)) => run(flags).await,
        Some(Command::Bootstrap(args)) => bootstrap(args).await,
        Some(Command::PublishSecrets(args)) => publish(args).await,
        Some(Command::Service(verb)) => {
            let flags = flags.whole();
            return verb.run::<Config>(Args::command(), &flags.config, flags.overrides());
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            exit_code(&error)
        }
    }
}

/// 64 for what is wrong with how we were started, as for a faulty configuration.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let publish = error.downcast_ref::<PublishError>();
    match u8::try_from(EXIT_CONFIG) {
        Ok(code) if publish.is_some_and(PublishError::is_configuration) => ExitCode::from(code),
        _ => ExitCode::FAILURE,
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let args = args.whole();
    let config: Config = config::load_or_exit("coordinator", &args.config, args.overrides());
    let _log = telemetry::init(&config.log)?;
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger)?;
    let (handles, traces) = telemetry::handles("coordinator")?;
    let ended = App::build(config, handles).await?.run(shutdown).await;
    traces.shutdown(FLUSH).await;
    ended
}

async fn bootstrap(args: BootstrapArgs) -> anyhow::Result<()> {
    let options = args.options();
    let flags = args.run.whole();
    let config: Config = config::load_or_exit("coordinator", &flags.config, flags.overrides());
    let _log = telemetry::init(&config.log)?;
    let made = provision(&config, &options, Arc::new(SystemClock)).await?;
    write!(std::io::stdout(), "{made}")?;
    Ok(())
}

async fn publish(args: PublishSecretsArgs) -> anyhow::Result<()> {
    let options = args.options();
    let config: Config = config::load_or_exit("coordinator", &args.config(), Overrides::new());
    let _log = telemetry::init(&config.log)?;
    let (trigger, shutdown) = ShutdownTrigger::new(config.shutdown.grace);
    let _signals = signals(trigger)?;
    tokio::select! {
        published = publish_secrets(&options) => write!(std::io::stdout(), "{}", published?)?,
        () = shutdown.draining() => {
            anyhow::bail!("ended before all was published: the next run publishes everything")
        }
    }
    Ok(())
}
