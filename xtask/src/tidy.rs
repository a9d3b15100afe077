//! `tidy`: the repository's own rules, which no compiler checks.
//!
//! Each rule is a function that adds to [`Findings`]; a fault fails the verb, advice does not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

mod dockerignore;
mod edges;
mod failures;
mod imports;
mod layout;
mod licences;
mod links;
mod lockfile;
mod observability;
mod source;
mod unused;

/// What the rules found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    faults: Vec<String>,
    advice: Vec<String>,
}

impl Findings {
    /// Against the rules.
    pub(crate) fn fault(&mut self, text: impl Into<String>) {
        self.faults.push(text.into());
    }

    /// Worth a look.
    pub(crate) fn advise(&mut self, text: impl Into<String>) {
        self.advice.push(text.into());
    }
}

/// The files of the repository with their contents, read once.
pub(crate) struct Tree {
    /// Paths relative to the root, sorted; the contents only of text files that rules look at.
    files: Vec<(PathBuf, Option<String>)>,
}

impl Tree {
    fn read() -> Result<Self> {
        let mut files = Vec::new();
        for path in workspace::files()? {
            let extension = path.extension().and_then(|extension| extension.to_str());
            let content = match extension {
                Some("rs" | "md" | "toml" | "lock" | "proto") => {
                    let full = workspace::root().join(&path);
                    Some(
                        fs::read_to_string(&full)
                            .with_context(|| format!("read {}", path.display()))?,
                    )
                }
                _ => None,
            };
            files.push((path, content));
        }
        Ok(Self { files })
    }

    /// All paths.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// The text files of one extension.
    pub(crate) fn texts(&self, extension: &str) -> impl Iterator<Item = (&Path, &str)> {
        self.files.iter().filter_map(move |(path, content)| {
            let wanted = path.extension().is_some_and(|found| found == extension);
            wanted.then_some(())?;
            Some((path.as_path(), content.as_deref()?))
        })
    }

    /// The content of one text file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files
            .iter()
            .find(|(known, _)| known == Path::new(path))?
            .1
            .as_deref()
    }
}

/// Runs the verb.
pub(crate) fn run() -> Result<()> {
    let tree = Tree::read()?;
    let mut findings = Findings::default();
    edges::check(&mut findings)?;
    imports::check(&tree, &mut findings);
    layout::check(&tree, &mut findings)?;
    unused::check(&tree, &mut findings)?;
    lockfile::check(&tree, &mut findings)?;
    licences::check(&mut findings)?;
    failures::check(&tree, &mut findings);
    links::check(&tree, &mut findings);
    observability::check(&mut findings)?;
    dockerignore::check(&mut findings)?;

    for advice in &findings.advice {
        println!("advice: {advice}");
    }
    for fault in &findings.faults {
        println!("fault: {fault}");
    }
    if !findings.faults.is_empty() {
        bail!(
            "{} faults against the rules of this repository",
            findings.faults.len()
        );
    }
    println!(
        "tidy: {} files, no fault, {} advices",
        tree.files.len(),
        findings.advice.len()
    );
    Ok(())
}
