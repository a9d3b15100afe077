//! Rust source as the rules see it: without comments, texts and tests.

/// The lines of `source` that are code of the product, with their numbers from 1: comments and the
/// contents of string literals are blanked, and everything from `#[cfg(test)]` on a `mod` is cut.
pub(super) fn code_lines(source: &str) -> Vec<(usize, String)> {
    let blanked = blank(source);
    let mut lines = Vec::new();
    let mut test_attribute = false;
    for (index, line) in blanked.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed == "#[cfg(test)]" {
            test_attribute = true;
            continue;
        }
        if test_attribute && trimmed.starts_with("mod ") && trimmed.ends_with('{') {
            break;
        }
        test_attribute &= trimmed.is_empty() || trimmed.starts_with("#[");
        lines.push((index + 1, line.to_owned()));
    }
    lines
}

/// Whether a path holds tests or benches only.
pub(super) fn is_test_path(path: &std::path::Path) -> bool {
    path.components().any(|part| {
        matches!(
            part.as_os_str().to_str(),
            Some("tests" | "benches" | "examples")
        )
    }) || path.file_name().is_some_and(|name| name == "tests.rs")
}

/// Whether `word` stands in `line` as a path or identifier of its own.
pub(super) fn mentions(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let starts = !word.starts_with(is_part) || !before.is_some_and(is_part);
        let ends = !word.ends_with(is_part) || !after.is_some_and(is_part);
        starts && ends
    })
}

#[derive(PartialEq)]
enum Within {
    Code,
    Line,
    Block(u32),
    Text,
    RawText(usize),
}

/// Blanks comments and texts, keeping every line break. Not a lexer for all of Rust: enough for
/// code that rustfmt has been over.
fn blank(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out: Vec<char> = chars
        .iter()
        .map(|c| if *c == '\n' { '\n' } else { ' ' })
        .collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut within = Within::Code;
    let mut index = 0;
    while index < chars.len() {
        let (c, next) = (at(index), at(index + 1));
        let mut step = 1;
        match &mut within {
            Within::Code => match (c, next) {
                ('/', '/') => within = Within::Line,
                ('/', '*') => (within, step) = (Within::Block(1), 2),
                ('"', _) => within = Within::Text,
                ('r', '"' | '#') if raw_text_hashes(&chars, index).is_some() => {
                    let hashes = raw_text_hashes(&chars, index).unwrap_or_default();
                    (within, step) = (Within::RawText(hashes), hashes + 2);
                }
                ('\'', '\\') => {
                    step = 3
                        + (2..8)
                            .take_while(|skip| at(index + 1 + skip) != '\'')
                            .count()
                }
                // A character; a lifetime has no closing quote there.
                ('\'', _) if at(index + 2) == '\'' => step = 3,
                _ => out[index] = c,
            },
            Within::Line if c == '\n' => within = Within::Code,
            Within::Block(depth) => match (c, next) {
                ('/', '*') => (*depth, step) = (*depth + 1, 2),
                ('*', '/') if *depth == 1 => (within, step) = (Within::Code, 2),
                ('*', '/') => (*depth, step) = (*depth - 1, 2),
                _ => {}
            },
            Within::Text if c == '\\' => step = 2,
            Within::Text if c == '"' => within = Within::Code,
            Within::RawText(hashes)
                if c == '"' && (1..=*hashes).all(|offset| at(index + offset) == '#') =>
            {
                step = *hashes + 1;
                within = Within::Code;
            }
            Within::Line | Within::Text | Within::RawText(_) => {}
        }
        index += step;
    }
    out.into_iter().collect()
}

/// How many `#` a raw text that begins with the `r` at `index` has; `None` when none begins there.
fn raw_text_hashes(chars: &[char], index: usize) -> Option<usize> {
    let before = index.checked_sub(1).and_then(|before| chars.get(before));
    if before.is_some_and(|c| (c.is_alphanumeric() && *c != 'b') || *c == '_') {
        return None;
    }
    let hashes = chars[index + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(index + 1 + hashes) == Some(&'"')).then_some(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_texts_and_tests_are_no_code() {
        let source = "use a::b; // tokio\n/* tokio /* inner */ */ fn f<'a>(x: &'a str) {\n    \
             g(\"tokio \\\" still\", r#\"tokio \" \"#, '\"', '\\'', b'x');\n}\n#[cfg(test)]\n\
             mod tests {\n    use tokio;\n}\n";
        let lines = code_lines(source);
        let code: String = lines.iter().map(|(_, line)| line.as_str()).collect();
        assert!(!code.contains("tokio"), "{code}");
        assert!(code.contains("fn f<'a>(x: &'a str)"), "{code}");
        assert!(code.ends_with('}'), "{code}");
        assert_eq!(lines.last().map(|(number, _)| *number), Some(4));
    }

    #[test]
    fn a_word_is_found_only_whole() {
        assert!(mentions("use redis::Client;", "redis"));
        assert!(!mentions("let redistribute = 1;", "redis"));
        assert!(mentions("x(pb::Node)", "pb::"));
        assert!(!mentions("httpb::Node", "pb::"));
        assert!(mentions("let t = Instant::now();", "Instant::now"));
    }
}
