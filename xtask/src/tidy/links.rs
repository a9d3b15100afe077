//! Links in Markdown files lead somewhere, and ADRs that are named exist.

use std::path::{Path, PathBuf};

use super::{Findings, Tree};
use crate::workspace;

pub(super) fn check(tree: &Tree, findings: &mut Findings) {
    let adrs = adr_numbers(tree);
    for (path, text) in tree.texts("md").chain(tree.texts("rs")) {
        if path.starts_with("xtask") {
            continue;
        }
        for number in named_adrs(text).filter(|number| !adrs.contains(number)) {
            findings.fault(format!(
                "{}: there is no ADR-{number} in docs/adr",
                path.display()
            ));
        }
    }
    for (path, text) in tree.texts("md") {
        for (number, line) in prose_lines(text) {
            for target in targets(line) {
                if let Some(fault) = broken(tree, path, text, target) {
                    findings.fault(format!("{}:{number}: {fault}", path.display()));
                }
            }
        }
    }
}

fn adr_numbers(tree: &Tree) -> Vec<String> {
    tree.paths()
        .filter(|path| path.starts_with("docs/adr"))
        .filter_map(|path| path.file_name()?.to_str()?.get(..4).map(str::to_owned))
        .collect()
}

/// The numbers of all `ADR-NNNN` in a text.
fn named_adrs(text: &str) -> impl Iterator<Item = String> {
    text.match_indices("ADR-").filter_map(|(at, _)| {
        let number = text.get(at + 4..at + 8)?;
        number
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| number.to_owned())
    })
}

/// The lines outside of fenced code blocks, numbered from 1.
fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((index + 1, line))
    })
}

/// What the `](target)` links and images of a line point to.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("](").filter_map(|(at, _)| {
        let rest = &line[at + 2..];
        let target = rest.split_once(')')?.0;
        target.split_whitespace().next()
    })
}

fn broken(tree: &Tree, from: &Path, text: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = resolve(from, file);
    if !file.is_empty() && !workspace::root().join(&path).exists() {
        return Some(format!("the link {target} leads nowhere"));
    }
    if anchor.is_empty() {
        return None;
    }
    let linked = if file.is_empty() {
        Some(text)
    } else {
        tree.text(path.to_str()?)
    };
    let there = linked.is_none_or(|linked| anchors(linked).any(|known| known == anchor));
    (!there).then(|| format!("the link {target} names no heading of its file"))
}

/// `target` as seen from the directory of `from`, without `..`.
fn resolve(from: &Path, target: &str) -> PathBuf {
    let mut path = from.parent().unwrap_or(Path::new("")).to_owned();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                path.pop();
            }
            part => path.push(part),
        }
    }
    path
}

/// The anchors that the headings of a Markdown text get.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    prose_lines(text)
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_seen_from_the_file_they_stand_in() {
        assert_eq!(
            resolve(Path::new("docs/adr/0001-x.md"), "../glossary.md"),
            Path::new("docs/glossary.md")
        );
        assert_eq!(
            resolve(Path::new("README.md"), "./docs/"),
            Path::new("docs")
        );
    }

    #[test]
    fn every_link_of_a_line_is_found_but_none_in_code() {
        let text = "a [b](c.md) ![d](e.png \"t\")\n```\n[f](g.md)\n```\n## H: i (j)\n";
        let lines: Vec<_> = prose_lines(text).collect();
        assert_eq!(targets(lines[0].1).collect::<Vec<_>>(), ["c.md", "e.png"]);
        assert_eq!(lines.len(), 2);
        assert_eq!(anchors(text).collect::<Vec<_>>(), ["h-i-j"]);
        assert_eq!(
            named_adrs("see ADR-0004 and ADR-x").collect::<Vec<_>>(),
            ["0004"]
        );
    }
}
