//! Manual pages from docs/cli, which comes from the programs' own help.

use std::fmt::Write as _;

/// A page in man(7)'s macros: each block of a verb's help becomes a section, set as it stands.
pub(super) fn page(program: &str, version: &str, markdown: &str) -> String {
    let summary = markdown
        .split_once("```text\n")
        .and_then(|(_, help)| help.lines().next())
        .unwrap_or(program);
    let mut page = format!(
        ".TH {} 1 \"\" \"Wonder Mesh {}\" \"Wonder Mesh\"\n.SH NAME\n{} \\- {}\n",
        program.to_uppercase(),
        escape(version),
        escape(program),
        escape(summary.trim_end_matches('.'))
    );
    let mut is_code = false;
    for line in markdown.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
            page.push_str(if is_code { ".nf\n" } else { ".fi\n" });
        } else if is_code {
            writeln!(page, "{}", escape(line)).expect("a string takes everything");
        } else if let Some(title) = line.strip_prefix("# ") {
            writeln!(page, ".SH {}", escape(&title.to_uppercase())).expect("see above");
        } else if let Some((_, title)) = line.split_once("## ") {
            writeln!(page, ".SH {}", escape(title)).expect("see above");
        } else if !line.starts_with("<!--") {
            writeln!(page, "{}", escape(&line.replace('`', ""))).expect("see above");
        }
    }
    page
}

/// Text as troff takes it literally.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) {
        format!("\\&{escaped}")
    } else {
        escaped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_becomes_a_page() {
        let markdown = "<!-- Generated -->\n\n# relay\n\n```text\nCarries packets.\n\n  --x  'y'\n\
                        .z\n```\n\n## relay run\n\n```text\nServe\n```\n";
        let page = page("relay", "0.1.0", markdown);
        assert!(
            page.contains(".SH NAME\nrelay \\- Carries packets\n"),
            "{page}"
        );
        assert!(page.contains("\\-\\-x  'y'\n\\&.z\n.fi\n"), "{page}");
        assert!(page.contains(".SH relay run\n"), "{page}");
        assert!(!page.contains("Generated"), "{page}");
    }
}
