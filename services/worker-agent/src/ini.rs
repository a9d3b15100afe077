//! Changes single keys of a configuration file in the INI form that Cockpit reads, and leaves
//! everything else in it as it is.

/// The value of a key in a section; the last one counts, as in GLib key files.
pub(crate) fn value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut inside = false;
    let mut found = None;
    for line in text.lines() {
        if let Some(name) = section_name(line) {
            inside = name.eq_ignore_ascii_case(section);
        } else if let Some((name, value)) = pair(line)
            && inside
            && name.eq_ignore_ascii_case(key)
        {
            found = Some(value);
        }
    }
    found
}

/// The text with these keys of a section set to these values.
pub(crate) fn with_values(text: &str, section: &str, values: &[(&str, &str)]) -> String {
    let is_set = |name: &str| values.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut lines: Vec<String> = Vec::new();
    let mut inside = false;
    let mut place = None;
    for line in text.lines() {
        if let Some(name) = section_name(line) {
            inside = name.eq_ignore_ascii_case(section);
            lines.push(line.to_owned());
            if inside && place.is_none() {
                place = Some(lines.len());
            }
            continue;
        }
        let replaced = inside && pair(line).is_some_and(|(name, _)| is_set(name));
        if !replaced {
            lines.push(line.to_owned());
        }
    }
    let at = place.unwrap_or_else(|| {
        if lines.last().is_some_and(|line| !line.is_empty()) {
            lines.push(String::new());
        }
        lines.push(format!("[{section}]"));
        lines.len()
    });
    let new = values.iter().map(|(key, value)| format!("{key}={value}"));
    lines.splice(at..at, new);
    lines.join("\n") + "\n"
}

fn section_name(line: &str) -> Option<&str> {
    line.trim()
        .strip_prefix('[')?
        .strip_suffix(']')
        .map(str::trim)
}

fn pair(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with(['#', ';']) {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    Some((name.trim(), value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: [(&str, &str); 1] = [("UrlRoot", "/worker-node-1")];

    #[test]
    fn an_empty_file_gets_the_section() {
        let text = with_values("", "WebService", &SET);
        assert_eq!(text, "[WebService]\nUrlRoot=/worker-node-1\n");
    }

    #[test]
    fn other_lines_stay_and_old_values_go() {
        let before = "# mine\n[Session]\nBanner=/etc/issue\n\n[WebService]\nurlroot = /old\nOrigins=https://a\n";
        let after = with_values(before, "WebService", &SET);
        assert_eq!(
            after,
            "# mine\n[Session]\nBanner=/etc/issue\n\n[WebService]\nUrlRoot=/worker-node-1\nOrigins=https://a\n"
        );
        assert_eq!(with_values(&after, "WebService", &SET), after);
    }

    #[test]
    fn a_value_is_found_in_its_section_only() {
        let text = "[Other]\nUrlRoot=/no\n[webservice]\n#UrlRoot=/never\nUrlRoot = /yes/\n";
        assert_eq!(value(text, "WebService", "UrlRoot"), Some("/yes/"));
        assert_eq!(value("[Other]\nUrlRoot=/no", "WebService", "UrlRoot"), None);
    }
}
