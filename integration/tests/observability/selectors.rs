//! What the rules select, out of their text.

/// The metric of every process that Prometheus makes itself.
const UP: &str = "up";

/// Every vector selector of a text: a metric's name with its matchers, each once.
pub(crate) fn selectors(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let mut rest = text;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        let matchers = matchers(after);
        if name.starts_with("mesh_") || (name == UP && !matchers.is_empty()) {
            rest = &after[matchers.len()..];
            let selector = format!("{name}{matchers}");
            if !found.contains(&selector) {
                found.push(selector);
            }
        }
    }
    found
}

/// The braces that a text begins with, and what is in them; braces in quotes do not count.
fn matchers(text: &str) -> &str {
    if !text.starts_with('{') {
        return "";
    }
    let mut quoted = false;
    let end = text.find(|c| {
        quoted ^= c == '"';
        c == '}' && !quoted
    });
    end.map_or("", |end| &text[..=end])
}

/// The same without the labels that say where and by whom, which differ from place to place.
pub(crate) fn without_place(selector: &str) -> String {
    const PLACES: [&str; 6] = ["instance", "job", "method", "route", "latch", "le"];
    let Some((name, matchers)) = selector.split_once('{') else {
        return selector.to_owned();
    };
    let matchers = matchers.trim_end_matches('}').split(',').map(str::trim);
    let kept: Vec<&str> = matchers
        .filter(|matcher| {
            let label = matcher.split(['=', '!']).next().unwrap_or_default();
            !PLACES.contains(&label)
        })
        .collect();
    format!("{name}{{{}}}", kept.join(","))
}

#[test]
fn selectors_are_found_with_their_matchers() {
    let text = "expr: rate(mesh_a_total{code=~\"x|y}\", b=\"c\"}[5m]) > mesh_b\nwhat is up up{job=\"j\"} == 0";
    assert_eq!(
        selectors(text),
        [
            r#"mesh_a_total{code=~"x|y}", b="c"}"#,
            "mesh_b",
            r#"up{job="j"}"#
        ]
    );
    assert_eq!(
        without_place(r#"mesh_a{instance="i", code="ok", job="j"}"#),
        r#"mesh_a{code="ok"}"#
    );
    assert_eq!(without_place(r#"mesh_a{job="j"}"#), "mesh_a{}");
}
