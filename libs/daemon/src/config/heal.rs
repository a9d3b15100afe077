//! Adds to a configuration file the keys it lacks, and changes nothing else in it.
//!
//! The file's bytes are kept as they are; new lines are only ever put between them. A key counts as
//! present when it is set, when its `_file` twin is, or when a comment holds it (`# key = …`).

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::commented::{entry, header};
use super::schema::{Key, Schema, Section};

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healed {
    /// The file's new text.
    pub text: String,
    /// The keys that were added, in order.
    pub added: Vec<String>,
    /// Keys that could not be added without changing a line: their section is an inline table or
    /// no table at all. Their defaults are in force.
    pub left_alone: Vec<String>,
    /// Keys that nobody knows, each with what it was probably meant to be. They stay.
    pub unknown: Vec<(String, String)>,
}

/// Why a file cannot be healed.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// It is no TOML.
    #[error("it is no TOML: mend it first")]
    Syntax(#[source] toml::de::Error),
    /// The new text would not be what it should be, so it is not written.
    #[error("the keys cannot be added without harm to the file (a fault of this program)")]
    Harm,
}

/// Adds every key of the schema that `text` lacks.
///
/// # Errors
/// When `text` is no TOML.
pub fn heal(text: &str, schema: &Schema) -> Result<Healed, HealError> {
    let file = File::read(text).map_err(HealError::Syntax)?;
    let mut healed = Healed {
        text: String::new(),
        added: Vec::new(),
        left_alone: Vec::new(),
        unknown: file.unknown(schema),
    };
    let mut insertions = Vec::new();
    let mut new_sections = Vec::new();
    for section in schema.sections() {
        let missing: Vec<&Key> = section
            .keys
            .iter()
            .filter(|key| !file.has(section, key))
            .collect();
        let place = file.place(&section.path);
        if missing.is_empty() {
            continue;
        }
        let names = missing.iter().map(|key| key.path.clone());
        if matches!(place, Place::Nowhere) {
            healed.left_alone.extend(names);
            continue;
        }
        healed.added.extend(names);
        match place {
            Place::In { at, prefix } => {
                let entries = missing.iter().map(|key| {
                    let name = format!("{prefix}{}", key.name);
                    entry(key, &name)
                });
                insertions.push((at, entries.collect::<Vec<_>>().join("\n")));
            }
            Place::New | Place::Nowhere => {
                let entries: Vec<String> =
                    missing.iter().map(|key| entry(key, &key.name)).collect();
                let all = format!("{}\n{}", header(section), entries.join("\n"));
                new_sections.push((text.len(), all));
            }
        }
    }
    // At the end of the file the last section's own keys come first.
    insertions.append(&mut new_sections);
    healed.text = insert(text, insertions);
    file.check(text, &healed, schema)?;
    Ok(healed)
}

/// Puts each new part, in the order given where places are equal, between the lines of `text`.
fn insert(text: &str, mut insertions: Vec<(usize, String)>) -> String {
    insertions.sort_by_key(|(at, _)| *at);
    let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut out = String::with_capacity(text.len() * 2);
    let mut from = 0;
    for (at, part) in insertions {
        out.push_str(&text[from..at]);
        from = at;
        if !out.is_empty() && !out.ends_with('\n') {
            out.push_str(newline);
        }
        if !out.is_empty() && !out.ends_with("\n\n") && !out.ends_with("\r\n\r\n") {
            out.push_str(newline);
        }
        out.push_str(&part.replace('\n', newline));
        let follows = text[at..]
            .lines()
            .next()
            .is_some_and(|line| !line.trim().is_empty());
        if follows {
            out.push_str(newline);
        }
    }
    out.push_str(&text[from..]);
    out
}

/// Where the keys of a section go.
enum Place {
    /// At this offset, under names with this prefix (empty, or a dotted one with its dot).
    In { at: usize, prefix: String },
    /// At the end of the file, under a new header.
    New,
    /// Nowhere.
    Nowhere,
}

/// A value that is not spread over lines of its own.
#[derive(Debug)]
struct Leaf {
    path: Vec<String>,
    span: Range<usize>,
    inline_table: bool,
}

/// The lines from one header to the next.
#[derive(Debug)]
struct Body {
    /// `None` for an element of an array of tables, which no section of ours is.
    path: Option<Vec<String>>,
    lines: Range<usize>,
}

struct File<'a> {
    text: &'a str,
    leaves: Vec<Leaf>,
    bodies: Vec<Body>,
}

impl<'a> File<'a> {
    fn read(text: &'a str) -> Result<Self, toml::de::Error> {
        let root = DeTable::parse(text)?;
        let mut leaves = Vec::new();
        collect(text, root.get_ref(), &mut Vec::new(), &mut leaves);
        let mut file = Self {
            text,
            leaves,
            bodies: Vec::new(),
        };
        file.bodies = file.find_bodies();
        Ok(file)
    }

    /// Offset and text of every line that is not inside of a value.
    fn lines(&self) -> impl Iterator<Item = (usize, &'a str)> {
        let mut at = 0;
        let lines = self.text.split_inclusive('\n').map(move |line| {
            at += line.len();
            (at - line.len(), line)
        });
        let inside = |at: usize| {
            let leaves = self.leaves.iter();
            leaves
                .clone()
                .any(|leaf| leaf.span.start < at && at < leaf.span.end)
        };
        lines.filter(move |(at, _)| !inside(*at))
    }

    fn find_bodies(&self) -> Vec<Body> {
        let mut bodies = vec![Body {
            path: Some(Vec::new()),
            lines: 0..self.text.len(),
        }];
        for (at, line) in self.lines() {
            if !line.trim_start().starts_with('[') {
                continue;
            }
            if let Some(last) = bodies.last_mut() {
                last.lines.end = at;
            }
            bodies.push(Body {
                path: header_path(line),
                lines: at + line.len()..self.text.len(),
            });
        }
        bodies
    }

    fn body_of(&self, section: &str) -> Option<&Body> {
        let path = parts(section);
        self.bodies
            .iter()
            .find(|body| body.path.as_ref() == Some(&path))
    }

    /// Whether the key, its twin, or a comment with one of them is there.
    fn has(&self, section: &Section, key: &Key) -> bool {
        let path = parts(&key.path);
        let twin = parts(&format!("{}_file", key.path));
        let set = |leaf: &Leaf| leaf.path.starts_with(&path) || leaf.path == twin;
        let below = |body: &Body| {
            let name = body.path.as_ref();
            name.is_some_and(|name| name.starts_with(&path))
        };
        if self.leaves.iter().any(set) || self.bodies.iter().any(below) {
            return true;
        }
        let own = self.body_of(&section.path).map(|body| body.lines.clone());
        self.lines().any(|(at, line)| {
            let Some(comment) = line.trim_start().strip_prefix('#') else {
                return false;
            };
            let comment = comment.trim_matches(|c: char| c == '#' || c.is_whitespace());
            if key.is_table && comment == format!("[{}]", key.path) {
                return true;
            }
            let name = comment.split_once('=').map_or("", |(name, _)| name.trim());
            let bare = name.strip_suffix("_file").unwrap_or(name);
            let here = own.as_ref().is_some_and(|own| own.contains(&at));
            [name, bare]
                .iter()
                .any(|name| (here && *name == key.name) || *name == key.path)
        })
    }

    fn place(&self, section: &str) -> Place {
        if let Some(body) = self.body_of(section) {
            return Place::In {
                at: self.end_of(body),
                prefix: String::new(),
            };
        }
        let path = parts(section);
        // A value where the section should be, or an inline table, which takes no more lines.
        let taken = |leaf: &Leaf| {
            path.starts_with(&leaf.path) || (leaf.inline_table && leaf.path.starts_with(&path))
        };
        if self.leaves.iter().any(taken) {
            return Place::Nowhere;
        }
        // Written with dotted keys: then a header would define it a second time. Where only
        // sections below it have headers, its own may still come.
        let dotted = self
            .leaves
            .iter()
            .filter(|leaf| leaf.path.starts_with(&path));
        let owner = dotted
            .filter_map(|leaf| {
                let mut bodies = self.bodies.iter();
                bodies.find(|body| body.lines.contains(&leaf.span.start))
            })
            .find(|body| body.path.as_ref().is_none_or(|own| own.len() < path.len()));
        match owner {
            None => Place::New,
            Some(owner) => match &owner.path {
                None => Place::Nowhere,
                Some(own) => Place::In {
                    at: self.end_of(owner),
                    prefix: format!("{}.", path[own.len()..].join(".")),
                },
            },
        }
    }

    /// Behind the last value of a body and the comments that follow it without a blank line,
    /// unless these belong to the next header.
    fn end_of(&self, body: &Body) -> usize {
        let lines: Vec<(usize, &str)> = self
            .lines()
            .filter(|(at, _)| body.lines.contains(at))
            .collect();
        let last_value = self
            .leaves
            .iter()
            .filter(|leaf| body.lines.contains(&leaf.span.start))
            .map(|leaf| leaf.span.end)
            .max();
        let is_comment = |line: &str| line.trim_start().starts_with('#');
        let Some(value_end) = last_value else {
            if body.path.as_ref().is_some_and(|path| !path.is_empty()) {
                return body.lines.start;
            }
            // Nothing stands above the first header: the comments right above it are its own.
            let own = lines
                .iter()
                .rev()
                .take_while(|(_, line)| is_comment(line))
                .last();
            let has_header = body.lines.end < self.text.len();
            return match own {
                Some((at, _)) if has_header => *at,
                _ => body.lines.end,
            };
        };
        let rest = self.text[value_end..].find('\n');
        let end = rest.map_or(self.text.len(), |found| value_end + found + 1);
        let mut after = end;
        for (at, line) in lines.iter().filter(|(at, _)| *at >= end) {
            if !is_comment(line) {
                return after;
            }
            after = at + line.len();
        }
        if after == self.text.len() { after } else { end }
    }

    fn unknown(&self, schema: &Schema) -> Vec<(String, String)> {
        let mut unknown: Vec<(String, String)> = Vec::new();
        let headers = self.bodies.iter().filter_map(|body| body.path.clone());
        let paths = self
            .leaves
            .iter()
            .map(|leaf| leaf.path.clone())
            .chain(headers);
        for path in paths.filter(|path| !path.is_empty()) {
            // The first part that nobody knows: what is below an unknown section is not repeated.
            let first = (1..=path.len())
                .map(|length| path[..length].join("."))
                .find(|part| !schema.knows(part));
            if let Some(first) = first
                && !unknown.iter().any(|(known, _)| *known == first)
            {
                let instead = schema.instead_of(&first);
                unknown.push((first, instead));
            }
        }
        unknown
    }

    /// That nothing was lost and everything added is there.
    fn check(&self, old: &str, healed: &Healed, schema: &Schema) -> Result<(), HealError> {
        let new = File::read(&healed.text).map_err(|_| HealError::Harm)?;
        let value = |file: &File<'_>, leaf: &Leaf| file.text[leaf.span.clone()].to_owned();
        let kept = self.leaves.iter().all(|leaf| {
            new.leaves
                .iter()
                .any(|other| other.path == leaf.path && value(&new, other) == value(self, leaf))
        });
        let mut lines = healed.text.lines();
        let whole = old.lines().all(|line| lines.any(|other| other == line));
        let sections = schema.sections().iter();
        let complete = sections
            .flat_map(|section| section.keys.iter().map(move |key| (section, key)))
            .filter(|(_, key)| !healed.left_alone.contains(&key.path))
            .all(|(section, key)| new.has(section, key));
        if kept && whole && complete {
            Ok(())
        } else {
            Err(HealError::Harm)
        }
    }
}

fn parts(path: &str) -> Vec<String> {
    path.split('.')
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The path that a header line names; `None` for an array of tables.
fn header_path(line: &str) -> Option<Vec<String>> {
    let table = DeTable::parse(line).ok()?;
    let mut path = Vec::new();
    let mut inner = table.get_ref();
    while let Some((name, value)) = inner.iter().next() {
        path.push(name.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(below) => inner = below,
            _ => return None,
        }
    }
    Some(path)
}

fn collect(text: &str, table: &DeTable<'_>, path: &mut Vec<String>, leaves: &mut Vec<Leaf>) {
    for (name, value) in table.iter() {
        path.push(name.get_ref().to_string());
        collect_value(text, value, path, leaves);
        path.pop();
    }
}

fn collect_value(
    text: &str,
    value: &Spanned<DeValue<'_>>,
    path: &mut Vec<String>,
    leaves: &mut Vec<Leaf>,
) {
    let span = value.span();
    let begins = |with: &str| text[span.clone()].starts_with(with);
    match value.get_ref() {
        // The span of a table with a header is that header, of a dotted one its key.
        DeValue::Table(inner) if !begins("{") => collect(text, inner, path, leaves),
        // The span of an array of tables is its first header.
        DeValue::Array(items)
            if begins("[[") && items.iter().all(|item| item.as_ref().is_table()) =>
        {
            for item in items.iter() {
                if let DeValue::Table(inner) = item.get_ref() {
                    collect(text, inner, path, leaves);
                }
            }
            leaves.push(Leaf {
                path: path.clone(),
                inline_table: false,
                span,
            });
        }
        other => {
            if let DeValue::Table(inner) = other {
                collect(text, inner, path, leaves);
            }
            leaves.push(Leaf {
                path: path.clone(),
                inline_table: matches!(other, DeValue::Table(_)),
                span,
            });
        }
    }
}

#[cfg(test)]
mod tests;
