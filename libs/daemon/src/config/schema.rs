//! What can be set: every key with its text, type, default and environment variable.
//!
//! It is made from the settings structs ([`settings!`](crate::settings)). From it come the
//! commented file of `config init`, what `config heal` adds, `docs/config.md`, and which values
//! must be kept secret.

use serde_json::Value as Json;

use super::setting::{Field, Form, Kind, Secrecy};
use super::{Settings, env_prefix, nearest};

/// Every key of a service, in the order of its settings structs.
#[derive(Debug, Clone)]
pub struct Schema {
    service: String,
    sections: Vec<Section>,
}

/// One `[section]`; the first one has no name.
#[derive(Debug, Clone)]
pub struct Section {
    /// Dotted; empty for the keys above all sections.
    pub path: String,
    /// What it is about.
    pub doc: String,
    /// Its own keys, without those of the sections below it.
    pub keys: Vec<Key>,
}

/// One key.
#[derive(Debug, Clone)]
pub struct Key {
    /// The last part of its path.
    pub name: String,
    /// Dotted, with all sections.
    pub path: String,
    /// What it is for.
    pub doc: String,
    /// How its value looks.
    pub form: Form,
    /// Values under names that the user chooses.
    pub is_table: bool,
    /// Its default; `None` when it is unset, or differs between machines.
    pub default: Option<Json>,
    /// Says what the default is when it differs between machines.
    pub shown: Option<&'static str>,
    /// The environment variable.
    pub environment: String,
}

impl Schema {
    /// The keys of `service`.
    pub fn of<T: Settings>(service: &str) -> Self {
        let mut schema = Self {
            service: service.to_owned(),
            sections: Vec::new(),
        };
        let defaults = serde_json::to_value(T::default()).unwrap_or_default();
        if let Kind::Section(fields) = T::kind() {
            schema.add("", "", &fields, &defaults);
        }
        schema
    }

    fn add(&mut self, path: &str, doc: &str, fields: &[Field], defaults: &Json) {
        let mut keys = Vec::new();
        let mut below = Vec::new();
        for field in fields {
            // What serde skips is set by the program and is no key.
            let Some(default) = defaults.get(field.name) else {
                continue;
            };
            match &field.kind {
                Kind::Section(inner) => below.push((field, inner, default)),
                Kind::Value(form) => keys.push(self.key(path, field, form, false, default)),
                Kind::Table(form) => keys.push(self.key(path, field, form, true, default)),
            }
        }
        self.sections.push(Section {
            path: path.to_owned(),
            doc: doc.to_owned(),
            keys,
        });
        for (field, inner, default) in below {
            self.add(&join(path, field.name), &field.doc, inner, default);
        }
    }

    fn key(&self, path: &str, field: &Field, form: &Form, is_table: bool, default: &Json) -> Key {
        let path = join(path, field.name);
        let given = !default.is_null() && field.shown.is_none();
        let given = given && form.secrecy != Secrecy::Secret;
        let tail = path.replace('.', "__").to_uppercase();
        Key {
            name: field.name.to_owned(),
            doc: field.doc.clone(),
            form: form.clone(),
            is_table,
            default: given.then(|| default.clone()),
            shown: field.shown,
            environment: format!("{}__{tail}", env_prefix(&self.service)),
            path,
        }
    }

    /// The service whose keys these are.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The sections in order, the nameless one first.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// All keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.sections.iter().flat_map(|section| &section.keys)
    }

    /// The key of that dotted path.
    pub fn find(&self, path: &str) -> Option<&Key> {
        self.keys().find(|key| key.path == path)
    }

    /// Whether that dotted path is a key, the `_file` twin of one, a section, or a name in a table.
    pub fn knows(&self, path: &str) -> bool {
        let is_section = |path: &str| self.sections.iter().any(|section| section.path == path);
        let in_table = |key: &Key| {
            key.is_table
                && path
                    .strip_prefix(&key.path)
                    .is_some_and(|rest| rest.starts_with('.'))
        };
        self.find(path).is_some()
            || is_section(path)
            || self.keys().any(in_table)
            || path
                .strip_suffix("_file")
                .is_some_and(|twin| self.find(twin).is_some())
    }

    /// What an unknown path was probably meant to be, as the end of a sentence: the nearest name
    /// beside it, else the nearest path, else the same name elsewhere, else what there is.
    pub fn instead_of(&self, path: &str) -> String {
        let (prefix, name) = path.rsplit_once('.').unwrap_or(("", path));
        let beside: Vec<&str> = self.beside(prefix);
        if let Some(near) = nearest::nearest(name, beside.iter().copied()) {
            return format!("did you mean {}?", join(prefix, near));
        }
        let paths = || self.keys().map(|key| key.path.as_str());
        let flat = |path: &str| path.replace(['.', '-'], "_");
        let near = nearest::nearest(path, paths())
            .or_else(|| paths().find(|known| flat(known) == flat(path)))
            .or_else(|| paths().find(|known| known.rsplit('.').next() == Some(name)));
        match near {
            Some(near) => format!("did you mean {near}?"),
            None if beside.is_empty() => "there is no such section".to_owned(),
            None => {
                let place = match prefix {
                    "" => "here".to_owned(),
                    prefix => format!("in {prefix}"),
                };
                format!("what is known {place}: {}", beside.join(", "))
            }
        }
    }

    /// The names of keys and sections directly below a section.
    fn beside(&self, prefix: &str) -> Vec<&str> {
        let Some(section) = self.sections.iter().find(|known| known.path == prefix) else {
            return Vec::new();
        };
        let keys = section.keys.iter().map(|key| key.name.as_str());
        let below = self.sections.iter().filter_map(|section| {
            let (parent, name) = section.path.rsplit_once('.').unwrap_or(("", &section.path));
            (parent == prefix && !name.is_empty()).then_some(name)
        });
        keys.chain(below).collect()
    }

    /// What `config keys --json` prints.
    pub fn to_json(&self) -> Json {
        let key = |key: &Key| {
            serde_json::json!({
                "key": key.path,
                "text": key.doc,
                "type": key.form.text,
                "choices": key.form.choices.iter()
                    .map(|(word, text)| serde_json::json!({ "value": word, "text": text }))
                    .collect::<Vec<_>>(),
                "table": key.is_table,
                "default": key.default,
                "default_text": key.shown,
                "secret": key.form.secrecy == Secrecy::Secret,
                "secret_file": key.form.secrecy == Secrecy::File,
                "environment": key.environment,
            })
        };
        let sections: Vec<Json> = self
            .sections
            .iter()
            .map(|section| {
                serde_json::json!({
                    "section": section.path,
                    "text": section.doc,
                    "keys": section.keys.iter().map(key).collect::<Vec<_>>(),
                })
            })
            .collect();
        serde_json::json!({
            "schema": "mesh.config-keys/1",
            "version": 1,
            "service": self.service,
            "sections": sections,
        })
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

#[cfg(test)]
mod tests;
