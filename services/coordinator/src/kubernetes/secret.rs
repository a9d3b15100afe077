//! The Secrets: what each is called, where it goes, and which file it is made of.

use std::fmt;
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_types::Role;
use serde_json::json;
use zeroize::Zeroizing;

use super::PublishError;
use crate::app::provision::{context_file, token_file};

/// The first operator's context.
pub(super) const OPERATOR: &str = "mesh-operator";
/// Every object of the mesh has this label.
const LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "wonder-mesh");
/// No file that the bootstrap writes is longer, in bytes.
const LONGEST: u64 = 64 * 1024;
/// Texts that are shorter stand in many messages without being a secret.
const SHORTEST_SECRET: usize = 8;

/// Whom a Secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// A service that joins by the token in it.
    Role(Role),
    /// A person.
    Operator,
}

/// Every Secret that is published, in this order: the nodes' namespace, which may be somebody else's
/// to make, comes last.
const SECRETS: [(&str, For); 5] = [
    ("mesh-token-relay", For::Role(Role::Relay)),
    ("mesh-token-gateway", For::Role(Role::Gateway)),
    ("mesh-token-deployer", For::Role(Role::Deployer)),
    (OPERATOR, For::Operator),
    ("mesh-token-worker", For::Role(Role::Worker)),
];

/// One Secret.
pub(super) struct Secret {
    pub(super) namespace: String,
    pub(super) name: &'static str,
    key: &'static str,
    value: Zeroizing<Vec<u8>>,
}

/// Reads what there is to publish from the directory that the bootstrap wrote.
///
/// # Errors
/// When a token is missing. The operator's context may be: the first operator may have been revoked.
pub(super) fn read(
    dir: &Path,
    namespace: &str,
    nodes_namespace: &str,
) -> Result<Vec<Secret>, PublishError> {
    let mut secrets = Vec::new();
    for (name, whom) in SECRETS {
        let (file, key) = match whom {
            For::Role(role) => (token_file(dir, role), "token"),
            For::Operator => (context_file(&dir.join("operator")), "default.json"),
        };
        let value = match content(&file) {
            Ok(value) => value,
            Err(error) if error.kind() == io::ErrorKind::NotFound && whom == For::Operator => {
                continue;
            }
            Err(source) => return Err(PublishError::File { path: file, source }),
        };
        let namespace = match whom {
            For::Role(Role::Worker) => nodes_namespace,
            For::Role(_) | For::Operator => namespace,
        };
        secrets.push(Secret {
            namespace: namespace.to_owned(),
            name,
            key,
            value,
        });
    }
    Ok(secrets)
}

fn content(file: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut value = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(file)?;
    file.take(LONGEST + 1).read_to_end(&mut value)?;
    let refused = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    if value.trim_ascii().is_empty() {
        return refused("it is empty");
    }
    if value.len() as u64 > LONGEST {
        return refused("it is longer than anything that the bootstrap writes");
    }
    Ok(value)
}

impl Secret {
    /// Whether it is the operator's.
    pub(super) fn is_operator(&self) -> bool {
        self.name == OPERATOR
    }

    /// Its path and query at the API. The field manager is the name under which the API keeps what
    /// is ours; `force` takes fields back that somebody else changed.
    pub(super) fn path(&self) -> String {
        format!(
            "/api/v1/namespaces/{}/secrets/{}?fieldManager=mesh-bootstrap&force=true&fieldValidation=Strict",
            self.namespace, self.name
        )
    }

    /// The whole object, as JSON, which is YAML too.
    pub(super) fn object(&self) -> String {
        let value = Zeroizing::new(STANDARD.encode(&*self.value));
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "labels": { LABEL.0: LABEL.1 },
            },
            "type": "Opaque",
            "data": { self.key: value.as_str() },
        })
        .to_string()
    }

    /// A text of somebody else's for people, without anything that stands in the Secret.
    pub(super) fn masked(&self, text: &str) -> String {
        let plain = Zeroizing::new(String::from_utf8_lossy(&self.value).into_owned());
        let encoded = Zeroizing::new(STANDARD.encode(&*self.value));
        let is_secret = |word: &str| {
            let word = word.trim_matches('=');
            let mut parts = plain.split_whitespace().chain([encoded.as_str()]);
            word.len() >= SHORTEST_SECRET
                && parts.any(|part| {
                    part.contains(word) || (part.len() >= SHORTEST_SECRET && word.contains(part))
                })
        };
        let mut masked = String::new();
        // Whatever can stand in neither a token nor Base64.
        let is_border = |of: char| !of.is_ascii_alphanumeric() && !"+/=_.-".contains(of);
        for piece in text.split_inclusive(is_border) {
            let word = piece.trim_end_matches(is_border);
            let rest = piece[word.len()..].replace(char::is_control, " ");
            masked.push_str(if is_secret(word) {
                mesh_daemon::REDACTED
            } else {
                word
            });
            masked.push_str(&rest);
        }
        masked
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::provision::ROLES;

    #[test]
    fn every_token_that_the_bootstrap_writes_has_a_secret() {
        for role in ROLES {
            let found = SECRETS
                .iter()
                .filter(|(_, whom)| *whom == For::Role(role))
                .count();
            assert_eq!(found, 1, "{role}");
        }
        assert_eq!(SECRETS.len(), ROLES.len() + 1);
    }

    #[test]
    fn nothing_of_a_secret_is_left_in_what_the_api_says_of_it() {
        let secret = Secret {
            namespace: "mesh".to_owned(),
            name: OPERATOR,
            key: "default.json",
            value: Zeroizing::new(b"{ \"key\": \"hunter2hunter2\", \"n\": 1 }\n".to_vec()),
        };
        let encoded = STANDARD.encode(&*secret.value);
        for told in ["hunter2hunter2", "unter2hunt", &encoded, &encoded[4..20]] {
            let text = format!(
                "admission denied: value \"{told}\" of data\nis {told}: not allowed (<{told}>[{told}|)"
            );
            let masked = secret.masked(&text);
            assert_eq!(
                masked,
                "admission denied: value \"[redacted]\" of data is [redacted]: not allowed \
                 (<[redacted]>[[redacted]|)"
            );
        }
        assert_eq!(format!("{secret:?}"), "Secret(mesh/mesh-operator)");
    }
}
