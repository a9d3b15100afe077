//! Stand-ins for the official base images, made of Debian's packages and this machine's Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::artefacts;
use super::engine::Engine;
use crate::process::{output, run_quietly};
use crate::{process, workspace};

const DEBIAN: &str = "debian:bookworm-20260824-slim";
const SUITE: &str = "bookworm";
const FILE: &str = "deploy/docker/local-images/compose.yml";
/// What the slim images leave out, and what is never needed to build on one.
const LEFT_OUT: [&str; 6] = [
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/locale/*",
    "./usr/share/info/*",
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
];

/// Makes those that the engine does not have.
pub(crate) fn make(engine: &Engine, dir: &Path) -> Result<()> {
    let rust = rust_version(dir)?;
    let wanted = [
        ("postgres", "postgres:16.10".to_owned()),
        ("redis", "redis:7.4.5".to_owned()),
        ("rust", format!("rust:{rust}-bookworm")),
    ];
    debian(engine)?;
    let mut services = Vec::new();
    for (service, image) in &wanted {
        if has(engine, image) {
            println!("{image} is there");
        } else {
            services.push(*service);
        }
    }
    if services.is_empty() {
        return Ok(());
    }
    let mut command = engine.docker();
    command.args(["compose", "--progress", "plain", "--file"]);
    command.arg(dir.join(FILE)).arg("build").args(services);
    command.env("RUST_VERSION", &rust);
    command.env("RUST_TOOLCHAIN", toolchain()?);
    command.env("LOCAL_IMAGES", dir.join(FILE).with_file_name(""));
    run_quietly(&mut command, &artefacts()?.join("local-images.log"))
}

fn has(engine: &Engine, image: &str) -> bool {
    output(engine.docker().args(["image", "inspect", image])).is_ok()
}

/// Debian's smallest set of packages, unless the engine has the image.
pub(crate) fn debian(engine: &Engine) -> Result<()> {
    if has(engine, DEBIAN) {
        println!("{DEBIAN} is there");
        return Ok(());
    }
    let debootstrap = process::find_program("debootstrap")
        .context("debootstrap is missing: run `cargo xtask setup`")?;
    let rootfs = workspace::target_dir().join("compose/rootfs");
    if rootfs.exists() {
        fs::remove_dir_all(&rootfs)?;
    }
    fs::create_dir_all(&rootfs)?;
    let mut command = Command::new(debootstrap);
    command.args(["--variant=minbase", SUITE]).arg(&rootfs);
    if let Some(mirror) = mirror() {
        command.arg(mirror);
    }
    run_quietly(&mut command, &artefacts()?.join("local-images.log"))?;
    take_over(&rootfs)?;

    let mut tar = Command::new("tar");
    tar.arg("--directory").arg(&rootfs).arg("--create");
    for pattern in LEFT_OUT {
        tar.arg(format!("--exclude={pattern}"));
    }
    let mut tar = tar
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .context("start tar")?;
    let stream = tar.stdout.take().context("tar has no standard output")?;
    let mut import = engine.docker();
    import.args(["import", "--change", "CMD [\"bash\"]", "-", DEBIAN]);
    let imported = output(import.stdin(stream))?;
    let status = tar.wait()?;
    ensure!(status.success(), "tar: {status}");
    println!("{DEBIAN} made: {imported}");
    fs::remove_dir_all(&rootfs)?;
    Ok(())
}

/// Where this machine's apt gets its packages from; debootstrap knows a place by itself.
fn mirror() -> Option<String> {
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources").ok()?;
    sources
        .lines()
        .find_map(|line| line.strip_prefix("URIs:"))
        .and_then(|line| line.split_whitespace().next())
        .map(str::to_owned)
}

/// What builds on the image need of this machine: its package sources, and authorities that it
/// trusts beyond Debian's (the package `ca-certificates` takes them in).
fn take_over(rootfs: &Path) -> Result<()> {
    let ours = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let sources = Path::new("/etc/apt/sources.list.d/debian.sources");
    if ours.contains("VERSION_CODENAME=bookworm") && sources.exists() {
        let etc = rootfs.join("etc/apt");
        fs::copy(sources, etc.join("sources.list.d/debian.sources"))?;
        fs::write(etc.join("sources.list"), "")?;
    }
    let authorities = Path::new("/usr/local/share/ca-certificates");
    if let Ok(entries) = fs::read_dir(authorities) {
        let target = rootfs.join("usr/local/share/ca-certificates");
        fs::create_dir_all(&target)?;
        for entry in entries {
            let path = entry?.path();
            if let (Some(name), true) = (path.file_name(), path.extension() == Some("crt".as_ref()))
            {
                fs::copy(&path, target.join(name))?;
            }
        }
    }
    // As in the slim images, so that what is installed later stays small too.
    let excludes = "path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\n\
                    path-exclude /usr/share/man/*\npath-exclude /usr/share/locale/*\n\
                    path-exclude /usr/share/info/*\n";
    fs::write(rootfs.join("etc/dpkg/dpkg.cfg.d/slim"), excludes)?;
    Ok(())
}

/// The version in the image's name, as the Dockerfile gives it.
fn rust_version(dir: &Path) -> Result<String> {
    let dockerfile = fs::read_to_string(dir.join("deploy/docker/Dockerfile"))?;
    let version = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("ARG RUST_VERSION="))
        .context("the Dockerfile has no ARG RUST_VERSION")?;
    let toolchain: toml::Table = fs::read_to_string(dir.join("rust-toolchain.toml"))?.parse()?;
    let channel = toolchain
        .get("toolchain")
        .and_then(|table| table.get("channel"))
        .and_then(toml::Value::as_str)
        .context("rust-toolchain.toml names no channel")?;
    ensure!(
        channel == version || channel.starts_with(&format!("{version}.")),
        "the Dockerfile builds with Rust {version}, rust-toolchain.toml says {channel}"
    );
    Ok(version.to_owned())
}

/// The directory of the compiler that builds this repository.
fn toolchain() -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    rustc.current_dir(workspace::root());
    let sysroot = output(rustc.args(["--print", "sysroot"]))?;
    // The context of a build must not be a link.
    fs::canonicalize(&sysroot).with_context(|| format!("find {sysroot}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dockerfile_begins_with_the_debian_that_is_made_here() {
        let root = workspace::root();
        let own = [
            "deploy/docker/Dockerfile",
            "xtask/src/deb/machine/Dockerfile",
        ];
        let mut files = own.map(|path| root.join(path)).to_vec();
        for entry in fs::read_dir(root.join("deploy/docker/local-images")).expect("read") {
            let path = entry.expect("read").path();
            if path.extension() == Some("Dockerfile".as_ref()) {
                files.push(path);
            }
        }
        assert_eq!(files.len(), 5, "{files:?}");
        for file in files {
            let text = fs::read_to_string(&file).expect("read");
            let images = text.lines().filter_map(|line| line.strip_prefix("FROM "));
            let debian: Vec<&str> = images
                .filter_map(|image| image.split(' ').next())
                .filter(|image| image.starts_with("debian:"))
                .collect();
            assert_eq!(debian, [DEBIAN], "{}", file.display());
        }
    }
}
