//! What the documents tell people to type, and whether a program understands it.
//!
//! Read are README, ARCHITECTURE, CONTRIBUTING and the guides in `docs`. A line of a fenced block
//! marked `sh` or `console` must be a whole command line; a code span in the text, or a block
//! without a mark, may be a part of one (`mesh node set NAME --uptime`), of which verbs and flags
//! must exist.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;

mod shell;

pub use shell::simple_commands;

/// One line of a document that calls a program.
#[derive(Debug, Clone)]
pub struct CommandLine {
    /// The document and its line, for messages.
    pub place: String,
    /// Whether it can be typed as it is.
    pub whole: bool,
    /// The program's name and its arguments.
    pub words: Vec<String>,
}

/// A piece of a document that people type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Typed {
    /// The line it begins at, from 1.
    pub line: usize,
    /// The title that it stands below.
    pub section: String,
    /// Whether it can be typed as it is.
    pub whole: bool,
    /// Without the prompt; a line that ends with `\` is joined with the next one.
    pub text: String,
}

/// Everything in code blocks and code spans of a Markdown text, in order.
pub fn typed(markdown: &str) -> Vec<Typed> {
    let mut found: Vec<Typed> = Vec::new();
    let mut section = String::new();
    // The mark of the block that the line is in.
    let mut block: Option<String> = None;
    let mut joins = false;
    for (at, line) in markdown.lines().enumerate() {
        let text = line.trim();
        if let Some(mark) = text.strip_prefix("```") {
            block = match block {
                Some(_) => None,
                None => Some(mark.trim().to_owned()),
            };
            joins = false;
            continue;
        }
        let Some(mark) = &block else {
            if let Some(title) = line.strip_prefix('#') {
                section = title.trim_start_matches('#').trim().to_owned();
            }
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.map(|span| Typed {
                line: at + 1,
                section: section.clone(),
                whole: false,
                text: span.to_owned(),
            }));
            continue;
        };
        let text = match mark.as_str() {
            "console" if joins => text,
            // The rest is what the program answers.
            "console" => match text.strip_prefix("$ ") {
                Some(text) => text,
                None => continue,
            },
            "sh" | "" => text,
            _ => continue,
        };
        let (text, more) = match text.strip_suffix('\\') {
            Some(text) => (text, true),
            None => (text, false),
        };
        match found.last_mut().filter(|_| joins) {
            Some(last) => last.text.push_str(text),
            None if text.is_empty() => {}
            None => found.push(Typed {
                line: at + 1,
                section: section.clone(),
                whole: !mark.is_empty(),
                text: text.to_owned(),
            }),
        }
        joins = more;
    }
    found
}

/// The repository's documents.
///
/// # Panics
/// When they cannot be read.
pub fn documents() -> Vec<(String, String)> {
    let root = root();
    let mut names: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .iter()
        .map(PathBuf::from)
        .collect();
    let guides = std::fs::read_dir(root.join("docs")).expect("the guides");
    let guides = guides.map(|entry| Path::new("docs").join(entry.expect("a guide").file_name()));
    names.extend(guides.filter(|name| name.extension().is_some_and(|end| end == "md")));
    names.sort();
    let read = |name: &PathBuf| std::fs::read_to_string(root.join(name)).expect("a document");
    names
        .iter()
        .map(|name| (name.display().to_string(), read(name)))
        .collect()
}

/// The repository's root.
///
/// # Panics
/// Never: this crate lies in it.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("libs/testkit").to_owned()
}

/// Every line of the repository's documents that calls `program`; `cargo run --` calls `mesh`.
pub fn command_lines(program: &str) -> Vec<CommandLine> {
    let mut found = Vec::new();
    for (name, text) in documents() {
        for typed in typed(&text) {
            let commands = simple_commands(&typed.text).into_iter();
            let ours = commands
                .filter_map(called)
                .filter(|words| words[0] == program);
            found.extend(ours.map(|words| CommandLine {
                place: format!("{name}:{}", typed.line),
                whole: typed.whole,
                words,
            }));
        }
    }
    found
}

/// The program that is really called, by its name, and its arguments.
fn called(mut words: Vec<String>) -> Option<Vec<String>> {
    let assigns = |word: &str| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        })
    };
    while words
        .first()
        .is_some_and(|word| word == "sudo" || assigns(word))
    {
        words.remove(0);
    }
    match words.first()?.as_str() {
        "cargo" if words.get(1).is_some_and(|word| word == "run") => {
            let at = words.iter().position(|word| word == "--")?;
            words.splice(..=at, ["mesh".to_owned()]);
        }
        // What runs in a container: `exec [FLAG…] CONTAINER [--] PROGRAM …`.
        "docker" | "kubectl" => {
            let exec = words.iter().position(|word| word == "exec")?;
            let mut inside = words.split_off(exec + 1);
            inside.retain({
                let mut ahead = true;
                move |word| {
                    ahead &= word.starts_with('-');
                    !ahead
                }
            });
            words = inside.into_iter().skip(1).collect();
            if words.first().is_some_and(|word| word == "--") {
                words.remove(0);
            }
        }
        _ => {}
    }
    let first = words.first_mut()?;
    if let Some((_, name)) = first.rsplit_once('/') {
        *first = name.to_owned();
    }
    Some(words)
}

impl CommandLine {
    /// What the program says against it.
    pub fn fault(&self, program: &clap::Command) -> Option<String> {
        let fault = if self.whole {
            match program.clone().try_get_matches_from(&self.words) {
                Ok(_) => None,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
                    ) =>
                {
                    None
                }
                Err(error) => Some(error.to_string()),
            }
        } else {
            part_fault(program, &self.words[1..])
        };
        fault.map(|fault| format!("{}: {}: {fault}", self.place, self.words.join(" ")))
    }
}

/// Whether verbs and flags exist.
fn part_fault(program: &clap::Command, words: &[String]) -> Option<String> {
    let mut program = program.clone();
    program.build();
    let mut verb = &program;
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        if word == "--" || word == "-" {
            continue;
        }
        if word.starts_with('-') {
            let name = word.split('=').next().unwrap_or(word);
            let named = |arg: &&clap::Arg| match name.strip_prefix("--") {
                Some(long) => {
                    arg.get_long() == Some(long)
                        || arg.get_all_aliases().is_some_and(|all| all.contains(&long))
                }
                None => arg.get_short() == name.chars().nth(1),
            };
            let Some(arg) = verb.get_arguments().find(named) else {
                return Some(format!("{} has no {name}", verb.get_name()));
            };
            if arg.get_action().takes_values() && !word.contains('=') {
                words.next_if(|next| *next == "-" || !next.starts_with('-'));
            }
            continue;
        }
        let mut verbs = word.split('|').map(|name| verb.find_subcommand(name));
        if let Some(Some(found)) = verbs.next()
            && verbs.all(|found| found.is_some())
        {
            verb = found;
            continue;
        }
        let stands_for = |c: char| c.is_uppercase() || c == '…' || c == '<';
        let free = verb.get_positionals().next().is_some() || word.chars().any(stands_for);
        if !free {
            return Some(format!("{} has no verb {word}", verb.get_name()));
        }
    }
    None
}

/// Checks every line of the documents that calls `program`.
///
/// # Panics
/// When the program does not understand one, or is never called.
#[track_caller]
pub fn assert_understood(program: &clap::Command) {
    let lines = command_lines(program.get_name());
    assert!(
        !lines.is_empty(),
        "no document calls {}",
        program.get_name()
    );
    let faults: Vec<String> = lines
        .iter()
        .filter_map(|line| line.fault(program))
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[cfg(test)]
mod tests;
