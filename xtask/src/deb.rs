//! `deb`: Debian packages, made with dpkg-deb from the programs, the units and their help texts
//! (docs/adr/0013-debian-packages.md).
//!
//! What is in which package is in [`packages`]; what happens on a machine when one is installed or
//! removed is in [`scripts`]; manual pages come from docs/cli ([`manual`]).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{process, workspace};

mod check;
mod debian;
mod machine;
mod manual;
mod packages;
mod scripts;

use packages::{PACKAGES, Package, Shell};

/// Arguments of `cargo xtask deb`.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Args {
    /// Pack the debug build, which is there already after the tests.
    #[arg(long)]
    pub(crate) debug: bool,
    /// Also look at them with lintian, then install, use and purge them in a fresh Debian, also
    /// one that runs systemd (a container engine).
    #[arg(long)]
    pub(crate) check: bool,
    /// With --check: make the Debian of its packages where the engine lacks it, instead of fetching
    /// it.
    #[arg(long, requires = "check")]
    local_images: bool,
    /// Take the programs as they are, without building.
    #[arg(long)]
    pub(crate) no_build: bool,
}

impl Args {
    /// As the CI runs it.
    pub(crate) fn ci() -> Self {
        Self {
            debug: true,
            check: true,
            local_images: true,
            no_build: false,
        }
    }
}

/// Runs the verb.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.no_build {
        let mut build = process::cargo();
        build.args(["build", "--workspace", "--bins"]);
        if !args.debug {
            build.arg("--release");
        }
        process::run(&mut build)?;
    }
    let profile = if args.debug { "debug" } else { "release" };
    let programs = workspace::target_dir().join(profile);
    let out = workspace::target_dir().join("deb");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    let maker = Maker {
        programs,
        effort: if args.debug { "-z1" } else { "-z6" },
        version: workspace::version()?,
        architecture: said("dpkg", &["--print-architecture"])?,
        date: said("git", &["log", "-1", "--format=%cD"])?,
        epoch: said("git", &["log", "-1", "--format=%ct"])?,
    };
    let mut made = Vec::new();
    for package in PACKAGES {
        let file = maker.make(package, &out)?;
        let kib = fs::metadata(&file)?.len() / 1024;
        println!("deb: {} {kib} KiB", file_name(&file));
        made.push(file);
    }
    if args.check {
        check::run(&made, args.local_images)?;
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// What a program prints, trimmed.
fn said(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(workspace::root())
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

struct Maker {
    /// Where the built programs are.
    programs: PathBuf,
    /// How hard dpkg-deb tries to make them small.
    effort: &'static str,
    version: String,
    architecture: String,
    /// Of the last commit, as changelogs write it.
    date: String,
    /// The same in seconds since 1970.
    epoch: String,
}

impl Maker {
    fn make(&self, package: &Package, out: &Path) -> Result<PathBuf> {
        let tree = Tree {
            root: out.join("tree").join(package.name),
        };
        let mut newest = (0, 0);
        for program in package.programs {
            newest = newest.max(self.program(&tree, program)?);
        }
        for program in package.completions {
            self.completions(&tree, program)?;
        }
        if let Some(unit) = &package.unit {
            self.unit(&tree, unit.program)?;
        }
        self.texts(&tree, package)?;
        self.control(&tree, package, newest)?;

        let name = format!(
            "{}_{}_{}.deb",
            package.name, self.version, self.architecture
        );
        let file = out.join(name);
        let output = Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Zxz", self.effort, "--build"])
            .args([&tree.root, &file])
            .env("SOURCE_DATE_EPOCH", &self.epoch)
            .output()
            .context("run dpkg-deb")?;
        ensure!(
            output.status.success(),
            "dpkg-deb: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(file)
    }

    /// A program without what only debuggers read, and its manual page. Gives the newest version of
    /// the C library that it asks for.
    fn program(&self, tree: &Tree, name: &str) -> Result<(u32, u32)> {
        let source = self.programs.join(name);
        let target = tree.file(&format!("usr/bin/{name}"))?;
        let mut strip = Command::new("strip");
        strip.args(["--strip-all", "--remove-section=.comment", "-o"]);
        let output = strip
            .args([&target, &source])
            .output()
            .context("run strip: `cargo xtask setup` installs it with gcc")?;
        ensure!(
            output.status.success(),
            "strip {name}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        fs::set_permissions(&target, Permissions::from_mode(0o755))?;
        let page = workspace::root().join(format!("docs/cli/{name}.md"));
        let page = fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
        let page = manual::page(name, &self.version, &page);
        tree.compressed(&format!("usr/share/man/man1/{name}.1"), &page)?;
        Ok(newest_glibc(&fs::read(&target)?))
    }

    fn completions(&self, tree: &Tree, name: &str) -> Result<()> {
        for shell in Shell::ALL {
            let output = Command::new(self.programs.join(name))
                .args(["completions", shell.name()])
                .output()
                .with_context(|| format!("run {name}"))?;
            ensure!(output.status.success(), "{name} completions failed");
            tree.write(&shell.path(name), &output.stdout)?;
        }
        Ok(())
    }

    /// The unit, its user, and the configuration file as the program itself would write it.
    fn unit(&self, tree: &Tree, program: &str) -> Result<()> {
        let source = workspace::root().join("deploy/systemd");
        let unit = format!("mesh-{program}.service");
        let text = fs::read(source.join(&unit))?;
        tree.write(&format!("usr/lib/systemd/system/{unit}"), &text)?;
        let user = format!("mesh-{program}.conf");
        let text = fs::read(source.join("sysusers.d").join(&user))?;
        tree.write(&format!("usr/lib/sysusers.d/{user}"), &text)?;
        let drop_in = source.join(format!("{unit}.d/sshd.conf"));
        if drop_in.exists() {
            let doc = format!("usr/share/doc/wonder-mesh-{program}/examples/sshd.conf");
            tree.write(&doc, &fs::read(drop_in)?)?;
        }
        let config = tree.file(&format!("etc/mesh/{program}.toml"))?;
        let output = Command::new(self.programs.join(program))
            .args(["config", "init", "--output"])
            .arg(&config)
            .output()
            .with_context(|| format!("run {program}"))?;
        ensure!(
            output.status.success() && config.exists(),
            "{program} config init: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        fs::set_permissions(&config, Permissions::from_mode(0o644))?;
        Ok(())
    }

    fn texts(&self, tree: &Tree, package: &Package) -> Result<()> {
        let doc = format!("usr/share/doc/{}", package.name);
        let changes = format!(
            "wonder-mesh ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md of the project.\n\n \
             -- {MAINTAINER}  {}\n",
            self.version, self.date
        );
        tree.compressed(&format!("{doc}/changelog"), &changes)?;
        let mit = fs::read_to_string(workspace::root().join("LICENSE-MIT"))?;
        tree.write(&format!("{doc}/copyright"), copyright(&mit).as_bytes())
    }

    fn control(&self, tree: &Tree, package: &Package, glibc: (u32, u32)) -> Result<()> {
        let size = kib_below(&tree.root)?;
        let mut depends = vec![
            format!("libc6 (>= {}.{})", glibc.0, glibc.1),
            "libgcc-s1".to_owned(),
        ];
        if let Some(unit) = &package.unit {
            depends.push("systemd (>= 252)".to_owned());
            let scripts = [
                ("postinst", scripts::postinst(unit)),
                ("prerm", scripts::prerm(unit)),
                ("postrm", scripts::postrm(unit)),
            ];
            for (name, text) in scripts {
                let path = format!("DEBIAN/{name}");
                tree.write(&path, text.as_bytes())?;
                fs::set_permissions(tree.root.join(path), Permissions::from_mode(0o755))?;
            }
            let conffile = format!("/etc/mesh/{}.toml\n", unit.program);
            tree.write("DEBIAN/conffiles", conffile.as_bytes())?;
        }
        let control = format!(
            "Package: {}\nVersion: {}\nArchitecture: {}\nMaintainer: {MAINTAINER}\n\
             Installed-Size: {size}\nDepends: {}\n{}Section: net\nPriority: optional\n\
             Description: {}\n{}\n",
            package.name,
            self.version,
            self.architecture,
            depends.join(", "),
            if package.suggests.is_empty() {
                String::new()
            } else {
                format!("Suggests: {}\n", package.suggests)
            },
            package.summary,
            description(package.description)
        );
        tree.sums()?;
        tree.write("DEBIAN/control", control.as_bytes())
    }
}

const MAINTAINER: &str = "Wonder Mesh maintainers <maintainers@wonder-mesh.invalid>";

/// Lines of a description are indented, and an empty one is a dot.
fn description(text: &str) -> String {
    text.lines()
        .map(|line| match line.trim() {
            "" => " .".to_owned(),
            line => format!(" {line}"),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn copyright(mit: &str) -> String {
    let holder = mit
        .lines()
        .find_map(|line| line.trim().strip_prefix("Copyright (c) "))
        .unwrap_or("the Wonder Mesh contributors");
    let terms = mit
        .split_once("\n\nPermission")
        .map(|(_, terms)| format!("Permission{terms}"))
        .unwrap_or_default();
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: wonder-mesh\n\nFiles: *\nCopyright: {holder}\nLicense: Apache-2.0 or Expat\n\n\
         License: Apache-2.0\n On Debian systems the text of the Apache License 2.0 is in\n \
         /usr/share/common-licenses/Apache-2.0.\n\nLicense: Expat\n{}\n",
        description(terms.trim())
    )
}

/// The highest `GLIBC_x.y` that a program's dynamic symbols ask for.
fn newest_glibc(program: &[u8]) -> (u32, u32) {
    const MARK: &[u8] = b"GLIBC_";
    let mut newest = (2, 17);
    for (at, window) in program.windows(MARK.len()).enumerate() {
        if window != MARK {
            continue;
        }
        let rest = &program[at + MARK.len()..];
        let end = rest
            .iter()
            .position(|byte| !byte.is_ascii_digit() && *byte != b'.')
            .unwrap_or(0);
        // The name ends with a NUL in the string table; anything else is somebody's message.
        if rest.get(end) != Some(&0) {
            continue;
        }
        let text = String::from_utf8_lossy(&rest[..end]);
        let mut numbers = text.split('.').map(str::parse::<u32>);
        if let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) {
            newest = newest.max((major, minor));
        }
    }
    newest
}

fn kib_below(dir: &Path) -> Result<u64> {
    let mut kib = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        kib += if metadata.is_dir() {
            1 + kib_below(&entry.path())?
        } else {
            metadata.len().div_ceil(1024)
        };
    }
    Ok(kib)
}

/// What will be the machine's root directory.
struct Tree {
    root: PathBuf,
}

impl Tree {
    /// A path in it, whose directory is there.
    fn file(&self, path: &str) -> Result<PathBuf> {
        let file = self.root.join(path);
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        Ok(file)
    }

    fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let file = self.file(path)?;
        fs::write(&file, content).with_context(|| format!("write {}", file.display()))?;
        fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        Ok(())
    }

    /// Compressed without name and time, so that the same content is the same file.
    fn compressed(&self, path: &str, content: &str) -> Result<()> {
        self.write(path, content.as_bytes())?;
        let file = self.root.join(path);
        let status = Command::new("gzip").args(["-9n", "-f"]).arg(file).status();
        ensure!(status.context("run gzip")?.success(), "gzip {path} failed");
        Ok(())
    }

    /// The checksums of everything but what is about the package itself.
    fn sums(&self) -> Result<()> {
        const SCRIPT: &str =
            "find . -path ./DEBIAN -prune -o -type f -printf '%P\\0' | sort -z | xargs -0 md5sum";
        let output = Command::new("sh")
            .args(["-c", SCRIPT])
            .current_dir(&self.root)
            .output()?;
        ensure!(output.status.success(), "md5sum failed");
        self.write("DEBIAN/md5sums", &output.stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_c_library_is_found_among_symbols_only() {
        let program = b"\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.9\0text GLIBC_9.9 text";
        assert_eq!(newest_glibc(program), (2, 34));
    }

    #[test]
    fn descriptions_have_debian_s_form() {
        assert_eq!(description("a\n\nb"), " a\n .\n b");
    }
}
