//! A schema as a commented TOML file: what `config init` writes, and piece by piece what
//! `config heal` adds.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::schema::{Key, Schema, Section};
use super::setting::Secrecy;
use crate::build_info::VERSION;

/// The whole file: every key in the order of the schema, with its text and its default. Keys
/// without a default, secrets, and defaults that differ between machines are commented out.
pub fn commented(schema: &Schema) -> String {
    let service = schema.service();
    let mut text = format!(
        "# The configuration of {service} {VERSION}: every key with its default.\n\
         # A key may be left out. The environment variable named with it wins over this file, a\n\
         # flag over both. '{service} config check' tells what is wrong with a file,\n\
         # '{service} config heal FILE' adds the keys that a newer version knows.\n"
    );
    for section in schema.sections() {
        if !section.path.is_empty() {
            text.push('\n');
            text.push_str(&header(section));
        }
        for key in &section.keys {
            text.push('\n');
            text.push_str(&entry(key, &key.name));
        }
    }
    text
}

/// A section's text and its header.
pub(super) fn header(section: &Section) -> String {
    format!("{}[{}]\n", comment(&section.doc), section.path)
}

/// A key's text, its form and variable, and the key itself under `name`.
pub(super) fn entry(key: &Key, name: &str) -> String {
    let mut text = comment(&key.doc);
    for (word, meaning) in &key.form.choices {
        text.push_str(&comment(&format!("{word:?}: {meaning}")));
    }
    if key.is_table {
        let form = &key.form.text;
        let variable = &key.environment;
        text.push_str(&comment(&format!(
            "{form} for each name | {variable}__<NAME>"
        )));
        text.push_str(&comment(&format!("[{}]\nname = …", key.path)));
        return text;
    }
    let variable = &key.environment;
    text.push_str(&match key.form.secrecy {
        Secrecy::Secret => comment(&format!(
            "{}, best kept in a file of its own | {variable}_FILE",
            key.form.text
        )),
        Secrecy::File | Secrecy::Open => comment(&format!("{} | {variable}", key.form.text)),
    });
    match (&key.default, key.shown, key.form.secrecy) {
        (Some(default), ..) => {
            let _ = writeln!(text, "{name} = {}", value(default));
        }
        (None, Some(shown), _) => text.push_str(&comment(&format!("default: {shown}\n{name} = …"))),
        (None, None, Secrecy::Secret) => text.push_str(&comment(&format!("{name}_file = …"))),
        (None, None, _) => text.push_str(&comment(&format!("{name} = …"))),
    }
    text
}

fn comment(text: &str) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        let _ = match line {
            "" => writeln!(lines, "#"),
            line => writeln!(lines, "# {line}"),
        };
    }
    lines
}

/// A JSON value as TOML, on one line.
fn value(json: &Json) -> String {
    match json {
        // TOML has no null; a default of null never comes here.
        Json::Null => "\"\"".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(text) => toml::Value::String(text.clone()).to_string(),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(value).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(table) => {
            let pairs: Vec<String> = table
                .iter()
                .map(|(key, item)| {
                    let key = toml::Value::String(key.clone());
                    format!("{key} = {}", value(item))
                })
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}
