//! `mesh support-bundle`: one file with what somebody who helps would ask for, without secrets.
//!
//! It gathers what the machine it runs on can tell: the coordinator of the context by its API, the
//! services of this machine by their state directories, configuration, admin endpoints and control
//! sockets, logs, and facts of the system. What cannot be had is listed with the reason, so that
//! nothing is silently absent. Everything enters through [`archive::Bundle::add`], which redacts.

mod archive;
mod coordinator;
mod learn;
mod local;
mod logs;
mod machine;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use self::archive::{Bundle, Packed, SCHEMA};
use self::learn::Learned;
use self::local::Local;
use super::Session;
use crate::args::SupportBundleArgs;
use crate::redact::Redactor;
use crate::{output, text};

/// Writes the bundle and says what is in it.
pub(super) async fn run(session: &Session, args: SupportBundleArgs) -> Result<()> {
    let made = text::now();
    let name = format!("mesh-support-{}", text::compact(made.as_micros()));
    let output = match &args.output {
        Some(output) => output.clone(),
        None => PathBuf::from(format!("{name}.tar.gz")),
    };
    refuse_to_overwrite(&output, args.force)?;

    let local = Local::find(&args);
    let mut learned = Learned::default();
    learn::from_environment(&mut learned, machine::variables());
    learn::from_contexts(&mut learned);
    learn::from_configuration(&mut learned, &args.config_dir);
    learn::from_state(&mut learned, local.roots());
    let mut bundle = Bundle::new(Redactor::new(&learned.secrets)?);
    learned.tell(&mut bundle);

    progress("the coordinator");
    coordinator::gather(session, &mut bundle).await;
    progress("the services of this machine");
    local.gather(&mut bundle).await;
    progress("logs");
    logs::gather(&args.log, &mut bundle).await;
    progress("the system");
    machine::gather(&mut bundle).await;

    let packed = bundle.pack(&name, made)?;
    // Looked at again: gathering takes a while.
    refuse_to_overwrite(&output, args.force)?;
    mesh_daemon::write_private(&output, &packed.bytes)
        .with_context(|| format!("write {}", output.display()))?;
    tell(session, &output, &packed)
}

fn refuse_to_overwrite(output: &Path, force: bool) -> Result<()> {
    ensure!(
        force || output.symlink_metadata().is_err(),
        "{} is there already: choose another --output, or replace it with --force",
        output.display()
    );
    Ok(())
}

/// Says what is being gathered; on standard error, so that `--json` stays one document.
fn progress(what: &str) {
    eprintln!("mesh: gathering {what}");
}

fn tell(session: &Session, output: &Path, packed: &Packed) -> Result<()> {
    if session.json {
        let value = json!({
            "path": output,
            "bytes": packed.bytes.len(),
            "manifest": packed.manifest,
        });
        return output::print_json(SCHEMA, "bundle", value);
    }
    let rows = packed
        .listing
        .iter()
        .map(|(name, bytes)| [name.clone(), bytes.to_string()]);
    say!("{}", output::table(["FILE", "BYTES"], rows.collect()));
    if !packed.missing.is_empty() {
        let rows = packed.missing.iter();
        let rows = rows.map(|missing| [missing.what.clone(), missing.why.clone()]);
        say!();
        say!("{}", output::table(["NOT GATHERED", "WHY"], rows.collect()));
    }
    say!();
    say!(
        "Wrote {} ({} KiB; {} secrets taken out).",
        output.display(),
        packed.bytes.len().div_ceil(1024),
        packed.taken
    );
    say!(
        "Look through it before you send it: names, addresses and users of your machines are in \
         it, and a secret of a form that nobody knows is not found."
    );
    say!("  tar -xzf {} -C DIR", output.display());
    Ok(())
}
