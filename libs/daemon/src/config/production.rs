//! What is refused of every service without `--dev`: secrets that can be guessed, and secrets in
//! files that everybody on the machine may read. What only one service can judge is in its own
//! [`Settings::validate`](super::Settings::validate).

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::Value as Json;

use super::faults::Faults;
use super::layer::Layer;
use super::schema::Schema;
use super::setting::Secrecy;

/// Shorter secrets can be tried out, in characters.
const MIN_SECRET: usize = 16;
/// A secret with fewer different characters is a pattern.
const MIN_DIFFERENT: usize = 6;
/// What stands in examples, and what people type when they must type something.
const WELL_KNOWN: &[&str] = &[
    "admin",
    "administrator",
    "abc",
    "change",
    "changeit",
    "changeme",
    "default",
    "demo",
    "dev",
    "example",
    "foo",
    "bar",
    "baz",
    "hello",
    "in",
    "it",
    "key",
    "letmein",
    "master",
    "me",
    "mesh",
    "my",
    "now",
    "pass",
    "passw0rd",
    "passwd",
    "password",
    "please",
    "postgres",
    "production",
    "qwerty",
    "redis",
    "replace",
    "root",
    "secret",
    "sesame",
    "open",
    "super",
    "test",
    "the",
    "this",
    "to",
    "token",
    "user",
    "welcome",
    "wonder",
    "wondermesh",
    "your",
];

/// Adds a fault for each secret that is weak or open to everybody.
pub(super) fn check(schema: &Schema, layers: &[Layer], faults: &mut Faults) {
    for key in schema.keys() {
        let given = layers.iter().rev().find_map(|layer| {
            let (_, value) = layer
                .leaves()
                .iter()
                .rev()
                .find(|(path, _)| *path == key.path)?;
            Some((layer, value))
        });
        let Some((layer, value)) = given else {
            continue;
        };
        let texts = match value {
            Json::Array(items) => items.iter().filter_map(Json::as_str).collect(),
            value => value.as_str().into_iter().collect::<Vec<_>>(),
        };
        for text in texts {
            match key.form.secrecy {
                Secrecy::Open => {}
                Secrecy::Secret => {
                    if let Some(weakness) = weakness(text) {
                        let text = format!(
                            "{weakness}: make one with 'openssl rand -hex 32', and give it in a \
                             file as {}_file",
                            key.name
                        );
                        faults.refuse_unless_dev(&key.path, layer.origin(), text);
                    }
                }
                Secrecy::File => open_file(&key.path, layer.origin(), Path::new(text), faults),
            }
        }
    }
    for layer in layers {
        for (path, file) in layer.twins() {
            if schema
                .find(path)
                .is_some_and(|key| key.form.secrecy == Secrecy::Secret)
            {
                open_file(&format!("{path}_file"), layer.origin(), file, faults);
            }
        }
        let Some(file) = layer.file().filter(|file| is_open(file)) else {
            continue;
        };
        for (path, value) in layer.own_leaves() {
            let secret = schema
                .find(path)
                .is_some_and(|key| key.form.secrecy == Secrecy::Secret);
            if secret && value.as_str().is_some_and(|value| !value.is_empty()) {
                let text = format!(
                    "a secret in a file that every user of this machine may read: chmod o= {}, or \
                     move the secret to a file of its own as {path}_file",
                    file.display()
                );
                faults.refuse_unless_dev(path, layer.origin(), text);
            }
        }
    }
}

fn open_file(key: &str, origin: &str, file: &Path, faults: &mut Faults) {
    if is_open(file) {
        let text = format!(
            "every user of this machine may read {0}: chmod o= {0}",
            file.display()
        );
        faults.refuse_unless_dev(key, origin, text);
    }
}

/// Whether others than owner and group may read or write it. A file that cannot be examined is
/// refused by whoever reads it.
fn is_open(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o006 != 0)
}

/// Why a secret is none; `None` for the empty one, which means that there is none.
fn weakness(secret: &str) -> Option<String> {
    if secret.is_empty() {
        return None;
    }
    let letters: String = secret
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric())
        .collect();
    let words = letters.trim_matches(|c: char| c.is_ascii_digit());
    if is_made_of_words(words) || is_made_of_words(&letters) {
        return Some("is made of well-known words".to_owned());
    }
    let length = secret.chars().count();
    if length < MIN_SECRET {
        return Some(format!("has {length} characters, {MIN_SECRET} are needed"));
    }
    let different: BTreeSet<char> = secret.chars().collect();
    (different.len() < MIN_DIFFERENT).then(|| "is a pattern of few characters".to_owned())
}

/// Whether the whole text is a row of well-known words; an empty one is.
fn is_made_of_words(text: &str) -> bool {
    // ends[i]: the first i bytes are such a row.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    for at in 0..text.len() {
        if !ends[at] || !text.is_char_boundary(at) {
            continue;
        }
        for word in WELL_KNOWN {
            if text[at..].starts_with(word) {
                ends[at + word.len()] = true;
            }
        }
        // Numbers between words help nobody.
        if text.as_bytes()[at].is_ascii_digit() {
            ends[at + 1] = true;
        }
    }
    ends[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_guessed_is_weak() {
        for weak in [
            "changeme",
            "Change-Me-Now-Please!",
            "secret",
            "MySuperSecretPassword123",
            "password1234567890",
            "1234567890123456789",
            "----------------",
            "correct-horse",
            "abababababababababab",
            "0000000000000000000000000000000000000000000000000000000000000000",
        ] {
            assert!(weakness(weak).is_some(), "{weak}");
        }
        for strong in [
            "",
            "q8Zr1xV0bM4tYw2L",
            "correct-horse-battery-staple",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "пароль-которого-никто-не-знает",
        ] {
            assert_eq!(weakness(strong), None, "{strong}");
        }
    }
}
