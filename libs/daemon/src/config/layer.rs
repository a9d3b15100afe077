//! One layer: keys are checked against the known ones, `_file` twins read, lists split.

use std::path::{Path, PathBuf};

use config::{Map, Value, ValueKind};
use serde_json::Value as Json;

use super::faults::Faults;
use super::schema::Schema;
use crate::secret::REDACTED;

type Table = serde_json::Map<String, Json>;

/// The values of one place, after checking; keys of [`Layer::leaves`] are dotted.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    origin: String,
    /// The file that the values stand in, when they stand in one.
    file: Option<PathBuf>,
    leaves: Vec<(String, Json)>,
    /// Keys whose value was read from a file, by their `_file` twin.
    twins: Vec<(String, PathBuf)>,
}

impl Layer {
    /// Checks `values` against `known` (what the default settings serialise to).
    pub(super) fn check(
        origin: &str,
        values: Table,
        known: &Table,
        schema: &Schema,
        faults: &mut Faults,
    ) -> Self {
        let mut layer = Self {
            origin: origin.to_owned(),
            file: None,
            leaves: Vec::new(),
            twins: Vec::new(),
        };
        layer.descend("", values, known, schema, faults);
        layer
    }

    /// The same, with the file that the values stand in.
    #[must_use]
    pub(super) fn in_file(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// The default settings as the lowest layer. What is absent stays absent, and a secret is
    /// never in here.
    pub(super) fn defaults(known: &Table) -> Self {
        fn collect(prefix: &str, table: &Table, leaves: &mut Vec<(String, Json)>) {
            for (key, value) in table {
                let path = join(prefix, key);
                match value {
                    Json::Null => {}
                    Json::String(text) if text == REDACTED => {}
                    Json::Object(inner) if !inner.is_empty() => collect(&path, inner, leaves),
                    other => leaves.push((path, other.clone())),
                }
            }
        }
        let mut leaves = Vec::new();
        collect("", known, &mut leaves);
        Self {
            origin: "default".to_owned(),
            file: None,
            leaves,
            twins: Vec::new(),
        }
    }

    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    pub(super) fn leaves(&self) -> &[(String, Json)] {
        &self.leaves
    }

    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Keys with the file that their value was read from.
    pub(super) fn twins(&self) -> &[(String, PathBuf)] {
        &self.twins
    }

    /// The values that stand in this place themselves, not in a file of their own.
    pub(super) fn own_leaves(&self) -> impl Iterator<Item = &(String, Json)> {
        let is_twin = |path: &String| self.twins.iter().any(|(twin, _)| twin == path);
        self.leaves.iter().filter(move |(path, _)| !is_twin(path))
    }

    /// The layer with only one of its values.
    pub(super) fn only(&self, leaf: &(String, Json)) -> Self {
        Self {
            leaves: vec![leaf.clone()],
            ..self.clone()
        }
    }

    /// Drops the value of a key.
    pub(super) fn drop_leaf(&mut self, path: &str) {
        self.leaves.retain(|(known, _)| known != path);
    }

    fn descend(
        &mut self,
        prefix: &str,
        values: Table,
        known: &Table,
        schema: &Schema,
        faults: &mut Faults,
    ) {
        for (key, value) in values {
            let path = join(prefix, &key);
            match (known.get(&key), value) {
                (Some(Json::Object(section)), Json::Object(inner)) if !section.is_empty() => {
                    self.descend(&path, inner, section, schema, faults);
                }
                (Some(Json::Object(section)), _) if !section.is_empty() => {
                    faults.push_at(&path, &self.origin, "is a section, not a value");
                }
                (Some(Json::Array(_)), Json::String(text)) => {
                    let items = text
                        .split(',')
                        .map(str::trim)
                        .filter(|item| !item.is_empty());
                    let items = items.map(|item| Json::String(item.to_owned())).collect();
                    self.leaves.push((path, Json::Array(items)));
                }
                (Some(_), value) => self.leaves.push((path, value)),
                (None, value) => self.unknown((prefix, &key), value, known, schema, faults),
            }
        }
    }

    /// A key that is not known: perhaps the `_file` twin of one that is.
    fn unknown(
        &mut self,
        (prefix, key): (&str, &str),
        value: Json,
        known: &Table,
        schema: &Schema,
        faults: &mut Faults,
    ) {
        let path = join(prefix, key);
        let twin = key
            .strip_suffix("_file")
            .filter(|twin| known.contains_key(*twin));
        let Some(twin) = twin else {
            let text = format!("unknown key; {}", schema.instead_of(&path));
            faults.push_at(&path, &self.origin, text);
            return;
        };
        let Json::String(file) = value else {
            faults.push_at(&path, &self.origin, "must be the path of a file");
            return;
        };
        let target = join(prefix, twin);
        match std::fs::read_to_string(&file) {
            Ok(content) => {
                if self.leaves.iter().any(|(known, _)| *known == target) {
                    faults.push_at(
                        &path,
                        &self.origin,
                        format!("set this or {target}, not both"),
                    );
                }
                self.twins.push((target.clone(), PathBuf::from(file)));
                self.leaves
                    .push((target, Json::String(content.trim().to_owned())));
            }
            Err(error) => {
                faults.push_at(&path, &self.origin, format!("cannot read {file}: {error}"));
            }
        }
    }
}

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        let values = self.leaves.iter();
        Ok(values
            .map(|(path, value)| (path.clone(), self.value(value)))
            .collect())
    }
}

impl Layer {
    fn value(&self, json: &Json) -> Value {
        let kind = match json {
            Json::Null => ValueKind::Nil,
            Json::Bool(value) => ValueKind::Boolean(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(signed), _) => ValueKind::I64(signed),
                (None, Some(unsigned)) => ValueKind::U64(unsigned),
                (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => ValueKind::String(text.clone()),
            Json::Array(items) => {
                ValueKind::Array(items.iter().map(|item| self.value(item)).collect())
            }
            Json::Object(table) => ValueKind::Table(
                table
                    .iter()
                    .map(|(key, value)| (key.clone(), self.value(value)))
                    .collect(),
            ),
        };
        Value::new(Some(&self.origin), kind)
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}
