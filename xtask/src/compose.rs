//! `images` and `compose`: the container images, and `deploy/docker-compose.yml` for real.
//!
//! `compose` is what a person does after cloning: the unmodified file, `up --wait`, real clients,
//! `down --volumes`. The journey over the running containers is `integration/tests/compose.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::process::{output, run_quietly};
use crate::steps::Steps;
use crate::{process, workspace};

mod engine;
mod file;
mod local_images;
mod sizes;

pub(crate) use engine::Engine;
pub(crate) use local_images::debian as debian_image;

/// The project's name in `docker-compose.yml`.
const PROJECT: &str = "wonder-mesh";
const FILE: &str = "deploy/docker-compose.yml";
const MORE_IMAGES: &str = "deploy/docker/images.yml";

/// Arguments of `cargo xtask images`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ImagesArgs {
    /// Make stand-ins for the official base images where the engine lacks them, from Debian's
    /// packages and this machine's Rust, instead of fetching them.
    #[arg(long)]
    local_images: bool,
    /// The profile of Cargo.toml to build with, such as `ci`: sooner, larger, slower.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Stop when the base images are there.
    #[arg(long, requires = "local_images")]
    base_only: bool,
}

/// Arguments of `cargo xtask compose`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    images: ImagesArgs,
    /// Use the working tree, not a fresh clone of the last commit.
    #[arg(long)]
    working_tree: bool,
    /// Take the images that are there.
    #[arg(long)]
    no_build: bool,
    /// Leave it running when the journey is over.
    #[arg(long)]
    keep: bool,
}

impl Args {
    /// As the CI runs it.
    pub(crate) fn ci() -> Self {
        Self {
            images: ImagesArgs {
                local_images: true,
                profile: "ci".to_owned(),
                base_only: false,
            },
            ..Self::default()
        }
    }
}

/// Runs `images`.
pub(crate) fn images(args: &ImagesArgs) -> Result<()> {
    let mut steps = Steps::default();
    let engine = steps.step("container engine", || Engine::open(&artefacts()?))?;
    let built = prepare_and_build(&engine, args, workspace::root(), &mut steps);
    steps.print();
    built
}

/// Runs `compose`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut steps = Steps::default();
    let done = up_and_down(args, &mut steps);
    steps.print();
    done
}

fn up_and_down(args: &Args, steps: &mut Steps) -> Result<()> {
    let engine = steps.step("container engine", || Engine::open(&artefacts()?))?;
    expect_nothing(&engine).context(
        "something of an earlier run is there; remove it with: \
         docker compose -f deploy/docker-compose.yml down --volumes --remove-orphans",
    )?;
    let volumes = volumes(&engine)?;
    let dir = if args.working_tree {
        workspace::root().to_owned()
    } else {
        steps.step("fresh clone", fresh_clone)?
    };
    steps.step("the file", || file::check(&engine, &dir))?;
    if !args.no_build {
        prepare_and_build(&engine, &args.images, &dir, steps)?;
    }
    let journey = steps
        .step("up --wait", || up(&engine, &dir))
        .and_then(|()| steps.step("journey", || journey(&engine, &dir)));
    let logs = keep_logs(&engine, &dir);
    if args.keep {
        println!("left running; end it with: docker compose -f {FILE} down --volumes");
        engine.leave_running();
        return journey.and(logs);
    }
    let down = steps.step("down --volumes", || {
        process::run(compose(&engine, &dir).args(["down", "--volumes", "--remove-orphans"]))?;
        expect_nothing(&engine).context("after down --volumes")?;
        let left: Vec<String> = self::volumes(&engine)?
            .difference(&volumes)
            .cloned()
            .collect();
        ensure!(
            left.is_empty(),
            "volumes without a name are left: {}",
            left.join(" ")
        );
        Ok(())
    });
    journey.and(logs).and(down)
}

fn up(engine: &Engine, dir: &Path) -> Result<()> {
    process::run(compose(engine, dir).args(["up", "--detach", "--wait", "--wait-timeout", "300"]))
}

/// The journey over the running containers.
fn journey(engine: &Engine, dir: &Path) -> Result<()> {
    let mut command = process::cargo();
    // Of the workspace, so that what `test` has built is not built again with other features.
    command.args(["test", "--workspace", "--test", "compose", "--"]);
    command.args(["--nocapture", "--test-threads=1"]);
    command.env("MESH_COMPOSE_FILE", dir.join(FILE));
    engine.point(&mut command);
    process::run_logged(&mut command, &artefacts()?.join("journey.log"))
}

/// `docker compose` on the file of `dir`, as a person would call it there.
fn compose(engine: &Engine, dir: &Path) -> Command {
    let mut command = engine.docker();
    command.current_dir(dir);
    command.args(["compose", "--file", FILE]);
    command
}

fn prepare_and_build(
    engine: &Engine,
    args: &ImagesArgs,
    dir: &Path,
    steps: &mut Steps,
) -> Result<()> {
    if args.local_images {
        steps.step("base images", || local_images::make(engine, dir))?;
    }
    if args.base_only {
        return Ok(());
    }
    let log = artefacts()?.join("build.log");
    let revision = revision(dir)?;
    steps.step("build", || {
        let mut command = compose(engine, dir);
        command.args(["--file", MORE_IMAGES, "--progress", "plain", "build"]);
        command.env("MESH_REVISION", &revision);
        command.env("MESH_BUILD_PROFILE", &args.profile);
        run_quietly(&mut command, &log)
    })?;
    sizes::check(engine, &workspace::version()?, &revision, &args.profile)
}

fn artefacts() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("ci/compose");
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The last commit, in a directory of its own.
fn fresh_clone() -> Result<PathBuf> {
    let dir = workspace::target_dir().join("compose/clone");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    let mut command = Command::new("git");
    command.args(["clone", "--quiet", "--no-hardlinks", "--depth=1"]);
    command.arg(format!("file://{}", workspace::root().display()));
    process::run(command.arg(&dir))?;
    Ok(dir)
}

fn revision(dir: &Path) -> Result<String> {
    output(
        Command::new("git")
            .args(["rev-parse", "HEAD"])
            .current_dir(dir),
    )
}

/// Every container's log, for people.
fn keep_logs(engine: &Engine, dir: &Path) -> Result<()> {
    let logs = fs::File::create(artefacts()?.join("containers.log"))?;
    let mut command = compose(engine, dir);
    command.args(["logs", "--no-color", "--timestamps"]);
    let status = command.stdout(logs).status()?;
    ensure!(status.success(), "docker compose logs: {status}");
    Ok(())
}

/// All volumes of the engine, also those that carry no label.
fn volumes(engine: &Engine) -> Result<BTreeSet<String>> {
    let listed = output(engine.docker().args(["volume", "ls", "--quiet"]))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// No container, network or volume of the project.
fn expect_nothing(engine: &Engine) -> Result<()> {
    let label = format!("label=com.docker.compose.project={PROJECT}");
    let kinds: [(&str, &[&str]); 3] = [
        ("containers", &["ps", "--all", "--quiet"]),
        ("networks", &["network", "ls", "--quiet"]),
        ("volumes", &["volume", "ls", "--quiet"]),
    ];
    for (kind, args) in kinds {
        let left = output(engine.docker().args(args).args(["--filter", &label]))?;
        ensure!(
            left.is_empty(),
            "{kind} are left: {}",
            left.replace('\n', " ")
        );
    }
    Ok(())
}
