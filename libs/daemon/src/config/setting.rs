//! What one setting is: its name, its text and how its value looks.
//!
//! [`settings!`](crate::settings) reads it off the settings structs themselves, so the struct with
//! its doc comments is the only list there is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

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
    pub(super) name: &'static str,
    pub(super) doc: String,
    pub(super) kind: Kind,
    /// Shown instead of a default that differs between machines.
    pub(super) shown: Option<&'static str>,
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
