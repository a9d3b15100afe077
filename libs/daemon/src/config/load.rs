//! Reads the layers, lets the `config` crate merge them, and collects every fault on the way.

use std::io::ErrorKind;
use std::path::PathBuf;

use config::{Config, Environment, File, FileFormat, Map};
use serde_json::Value as Json;

use super::args::{ConfigArgs, Overrides};
use super::faults::{ConfigFaults, Faults};
use super::layer::Layer;
use super::schema::Schema;
use super::{Settings, default_path, env_prefix, production};

type Table = serde_json::Map<String, Json>;

const NO_INDEX: &str = "an index is no key: write the whole list, items separated by commas";

/// The `config` crate takes `a[9]` for an item of a list, and makes room for all that come before
/// it, be they more than there is memory.
fn is_plain(key: &str) -> bool {
    !key.contains('[')
}

pub(super) fn run<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
    environment: Map<String, String>,
) -> Result<T, ConfigFaults> {
    run_noting(service, args, overrides, environment).map(|(settings, _)| settings)
}

/// The same, with a line for each thing that only `--dev` accepts.
pub(super) fn run_noting<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
    environment: Map<String, String>,
) -> Result<(T, Vec<String>), ConfigFaults> {
    read(service, args, overrides, environment, true)
}

/// Only that every key is known and every value has the right type.
pub(super) fn shape<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
    environment: Map<String, String>,
) -> Result<T, ConfigFaults> {
    read(service, args, overrides, environment, false).map(|(settings, _)| settings)
}

fn read<T: Settings>(
    service: &str,
    args: &ConfigArgs,
    overrides: Overrides,
    environment: Map<String, String>,
    judge: bool,
) -> Result<(T, Vec<String>), ConfigFaults> {
    let mut faults = Faults::new(args.dev);
    let Ok(Json::Object(known)) = serde_json::to_value(T::default()) else {
        faults.push(
            "",
            "the default settings are not a table (a fault of this program)",
        );
        return Err(faults.into_result(service).expect_err("a fault was added"));
    };

    let schema = Schema::of::<T>(service);
    let mut layers = Vec::new();
    if let Some((path, values)) = file_values(service, args, &mut faults) {
        let origin = path.display().to_string();
        let layer = Layer::check(&origin, values, &known, &schema, &mut faults);
        layers.push(layer.in_file(path));
    }
    let values = env_values(service, environment, &mut faults);
    let layer = Layer::check("environment", values, &known, &schema, &mut faults);
    layers.push(layer);
    let values = flag_values(args, overrides, &mut faults);
    layers.push(Layer::check("flag", values, &known, &schema, &mut faults));

    let defaults = Layer::defaults(&known);
    report_types::<T>(&defaults, &mut layers, &mut faults);
    if judge {
        production::check(&schema, &layers, &mut faults);
    }

    match merge::<T>(&defaults, &layers) {
        Ok(settings) => {
            if judge {
                settings.validate(&mut faults);
            }
            let relaxed = faults.relaxed();
            faults.into_result(service)?;
            Ok((settings, relaxed))
        }
        Err(error) => {
            // Each value alone was good, so this one is about several values together.
            if faults.is_empty() {
                faults.push("", error.to_string());
            }
            Err(faults.into_result(service).expect_err("a fault was added"))
        }
    }
}

fn merge<T: Settings>(defaults: &Layer, layers: &[Layer]) -> Result<T, config::ConfigError> {
    let builder = layers.iter().fold(
        Config::builder().add_source(defaults.clone()),
        |builder, layer| builder.add_source(layer.clone()),
    );
    builder.build()?.try_deserialize()
}

/// Tries every value alone on top of the defaults: deserialising everything at once would stop at
/// the first value of a wrong type. Such values are dropped, so that the others can be judged too.
fn report_types<T: Settings>(defaults: &Layer, layers: &mut [Layer], faults: &mut Faults) {
    for layer in layers {
        for leaf in layer.leaves().to_vec() {
            if let Err(error) = merge::<T>(defaults, &[layer.only(&leaf)]) {
                let text = plain(&error, &leaf.0, layer.origin());
                faults.push_at(&leaf.0, layer.origin(), text);
                layer.drop_leaf(&leaf.0);
            }
        }
    }
}

/// The error's text without the key and the origin, which we show ourselves.
fn plain(error: &config::ConfigError, key: &str, origin: &str) -> String {
    let text = error.to_string();
    let text = text.strip_suffix(&format!(" in {origin}")).unwrap_or(&text);
    let text = text
        .strip_suffix(&format!(" for key `{key}`"))
        .unwrap_or(text);
    text.to_owned()
}

/// The file's values; `None` when there is no file and none was asked for.
fn file_values(service: &str, args: &ConfigArgs, faults: &mut Faults) -> Option<(PathBuf, Table)> {
    let path = args.config.clone().unwrap_or_else(|| default_path(service));
    let origin = path.display().to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && args.config.is_none() => return None,
        Err(error) => {
            faults.push_at("", &origin, format!("cannot be read: {error}"));
            return None;
        }
    };
    // A file that is no TOML is told of below.
    for key in text.parse::<toml::Table>().unwrap_or_default().keys() {
        if !is_plain(key) {
            faults.push_at(key, &origin, NO_INDEX);
            return None;
        }
    }
    let parsed = Config::builder()
        .add_source(File::from_str(&text, FileFormat::Toml))
        .build()
        .and_then(Config::try_deserialize::<Table>);
    match parsed {
        Ok(values) => Some((path, values)),
        Err(error) => {
            faults.push_at("", &origin, error.to_string().trim().to_owned());
            None
        }
    }
}

fn env_values(service: &str, environment: Map<String, String>, faults: &mut Faults) -> Table {
    let prefix = format!("{}__", env_prefix(service)).to_lowercase();
    let (environment, indexed): (Map<_, _>, Map<_, _>) = environment
        .into_iter()
        .partition(|(name, _)| is_plain(name) || !name.to_lowercase().starts_with(&prefix));
    for name in indexed.into_keys() {
        faults.push_at(&name, "environment", NO_INDEX);
    }
    // Values stay texts here: guessing would turn the password 0123 into the number 123. The
    // merged configuration reads numbers from texts where the settings want numbers.
    let source = Environment::with_prefix(&env_prefix(service))
        .prefix_separator("__")
        .separator("__")
        .source(Some(environment));
    let parsed = Config::builder()
        .add_source(source)
        .build()
        .and_then(Config::try_deserialize::<Table>);
    parsed.unwrap_or_else(|error| {
        faults.push_at("", "environment", error.to_string());
        Table::new()
    })
}

fn flag_values(args: &ConfigArgs, overrides: Overrides, faults: &mut Faults) -> Table {
    let mut builder = Config::builder();
    let mut values = Vec::new();
    for text in &args.set {
        match text.split_once('=') {
            Some((key, _)) if !is_plain(key) => faults.push_at(key.trim(), "flag", NO_INDEX),
            Some((key, value)) => values.push((key.trim().to_owned(), value.to_owned())),
            None => faults.push_at("", "flag", format!("--set {text}: write KEY=VALUE")),
        }
    }
    values.extend(overrides.0);
    for (key, value) in values {
        builder = match builder.clone().set_override(&key, value) {
            Ok(builder) => builder,
            Err(error) => {
                faults.push_at(&key, "flag", error.to_string());
                builder
            }
        };
    }
    builder
        .build()
        .and_then(Config::try_deserialize::<Table>)
        .unwrap_or_else(|error| {
            faults.push_at("", "flag", error.to_string());
            Table::new()
        })
}

#[cfg(test)]
mod tests;
