//! What can be set: every key with its text, type, default and environment variable.
//!
//! [`settings!`](crate::settings) reads it off the settings structs themselves, so the struct with
//! its doc comments is the only list there is. From it come the commented file of `config init`,
//! what `config heal` adds, `docs/config.md`, and which values must be kept secret.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::{Settings, env_prefix, nearest};
use crate::secret::Secret;

/// A type that a setting may have.
pub trait Setting {
    /// What it is, for people.
    fn kind() -> Kind;
}

/// What stands under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Further names.
    Section(Vec<Field>),
    /// One value.
    Value(Form),
    /// Values of one form under names that the user chooses.
    Table(Form),
}

/// How a value looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Its type, such as `address:port`.
    pub text: String,
    /// Who may see it.
    pub secrecy: Secrecy,
    /// The words it may be, with what each means; empty: not one of a few words.
    pub choices: Vec<(String, String)>,
}

/// Who may see a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Secrecy {
    /// Everybody.
    #[default]
    Open,
    /// Nobody: it is redacted wherever it might be shown, and weak ones are refused.
    Secret,
    /// The value is a path, and what stands in that file is secret.
    File,
}

/// One name in a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    name: &'static str,
    doc: String,
    kind: Kind,
    /// Shown instead of a default that differs between machines.
    shown: Option<&'static str>,
}

impl Kind {
    /// A value of this form.
    pub fn value(text: impl Into<String>) -> Self {
        Self::Value(Form::new(text))
    }

    /// One of a few words, each with its meaning.
    pub fn choices(choices: Vec<(String, String)>) -> Self {
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("{word:?}"))
            .collect();
        let text = match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} or {last}", others.join(", ")),
            None => String::new(),
        };
        let mut form = Form::new(text);
        form.choices = choices;
        Self::Value(form)
    }
}

impl Form {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            secrecy: Secrecy::Open,
            choices: Vec::new(),
        }
    }
}

impl Field {
    /// A name whose type tells its form. `doc` is the text of its doc comment.
    pub fn of<T: Setting>(name: &'static str, doc: &str) -> Self {
        Self::new(name, doc, T::kind())
    }

    /// A name whose type is not one of ours.
    pub fn with_form(name: &'static str, doc: &str, form: &str) -> Self {
        Self::new(name, doc, Kind::value(form))
    }

    fn new(name: &'static str, doc: &str, kind: Kind) -> Self {
        Self {
            name,
            doc: plain(doc),
            kind,
            shown: None,
        }
    }

    /// Shows this text as the default, which differs between machines.
    #[must_use]
    pub fn shown(mut self, text: &'static str) -> Self {
        self.shown = Some(text);
        self
    }

    /// It is the path of a file whose content is secret.
    #[must_use]
    pub fn secret_file(mut self) -> Self {
        if let Kind::Value(form) = &mut self.kind {
            form.secrecy = Secrecy::File;
        }
        self
    }
}

/// Lines without the blank that follows `///`, and without the brackets of rustdoc's links.
fn plain(doc: &str) -> String {
    let lines: Vec<&str> = doc.lines().map(str::trim).collect();
    let text = lines.join("\n");
    text.trim().replace("[`", "`").replace("`]", "`")
}

/// The text forms of types that are not ours.
macro_rules! forms {
    ($($ty:ty => $text:literal,)+) => {
        $(impl Setting for $ty {
            fn kind() -> Kind {
                Kind::value($text)
            }
        })+
    };
}

forms! {
    bool => "true or false",
    u16 => "number",
    u32 => "number",
    u64 => "number",
    usize => "number",
    String => "text",
    PathBuf => "path",
    SocketAddr => "address:port",
    Duration => "duration, such as 250ms, 30s or 5m",
}

impl Setting for Secret {
    fn kind() -> Kind {
        let mut form = Form::new("secret text");
        form.secrecy = Secrecy::Secret;
        Kind::Value(form)
    }
}

impl<T: Setting> Setting for Option<T> {
    fn kind() -> Kind {
        T::kind()
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn kind() -> Kind {
        match T::kind() {
            Kind::Value(form) | Kind::Table(form) => Kind::value(format!("list of {}", form.text)),
            Kind::Section(_) => Kind::value("list of tables"),
        }
    }
}

impl<T: Setting> Setting for BTreeMap<String, T> {
    fn kind() -> Kind {
        match T::kind() {
            Kind::Value(form) | Kind::Table(form) => Kind::Table(form),
            Kind::Section(_) => Kind::Table(Form::new("table")),
        }
    }
}

/// Defines a settings struct, or a fieldless enum, as it stands, and makes it a
/// [`Setting`]: the doc comment of a field is what people read about it.
///
/// The attributes of a field come in this order: doc comment, `#[setting(…)]`, `#[serde(…)]`.
/// `#[setting(form = "…")]` names the form of a type that is not a `Setting`,
/// `#[setting(default = "…")]` what to show for a default that differs between machines,
/// `#[setting(secret_file)]` marks the path of a file that nobody else may read.
///
/// ```
/// use std::net::SocketAddr;
///
/// mesh_daemon::settings! {
///     /// The `[server]` section.
///     #[derive(Debug, serde::Serialize, serde::Deserialize)]
///     #[serde(default, deny_unknown_fields)]
///     pub struct Server {
///         /// Where browsers connect.
///         pub listen: SocketAddr,
///         /// The network it stands in.
///         #[setting(form = "address range")]
///         pub network: String,
///     }
/// }
/// # impl Default for Server {
/// #     fn default() -> Self {
/// #         Self { listen: ([127, 0, 0, 1], 1).into(), network: String::new() }
/// #     }
/// # }
/// ```
#[macro_export]
macro_rules! settings {
    (@field $ty:ty, $name:expr, $doc:expr,) => {
        $crate::config::Field::of::<$ty>($name, $doc)
    };
    (@field $ty:ty, $name:expr, $doc:expr, form = $form:literal) => {
        $crate::config::Field::with_form($name, $doc, $form)
    };
    (@field $ty:ty, $name:expr, $doc:expr, default = $text:literal) => {
        $crate::config::Field::of::<$ty>($name, $doc).shown($text)
    };
    (@field $ty:ty, $name:expr, $doc:expr, secret_file) => {
        $crate::config::Field::of::<$ty>($name, $doc).secret_file()
    };
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $(#[setting( $($setting:tt)* )])?
                $(#[serde( $($serde:tt)* )])?
                $field_vis:vis $field:ident : $ty:ty
            ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $(
                $(#[doc = $doc])*
                $(#[serde( $($serde)* )])?
                $field_vis $field: $ty,
            )*
        }

        impl $crate::config::Setting for $name {
            fn kind() -> $crate::config::Kind {
                $crate::config::Kind::Section(vec![
                    $($crate::settings!(
                        @field $ty,
                        stringify!($field),
                        concat!($($doc, "\n"),*),
                        $($($setting)*)?
                    )),*
                ])
            }
        }
    };
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $variant:ident
            ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        $vis enum $name {
            $(
                $(#[doc = $doc])*
                $variant,
            )*
        }

        impl $crate::config::Setting for $name {
            fn kind() -> $crate::config::Kind {
                $crate::config::Kind::choices(vec![
                    $((
                        $crate::config::word(&$name::$variant),
                        concat!($($doc, "\n"),*).trim().to_owned(),
                    )),*
                ])
            }
        }
    };
}

/// The word that a fieldless variant is written as.
pub fn word(variant: &impl serde::Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(Json::String(word)) => word,
        Ok(_) | Err(_) => String::new(),
    }
}

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
