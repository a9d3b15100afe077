//! What the stand-in knows and keeps, and how it judges a request. Nothing of the network.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::bearer;
use super::request::Request;
use crate::k8s::manifest::{Manifest, list, text};

/// Namespace and name.
type Place = (String, String);

/// One rule of a Role that an account has, in the namespace of the Role.
struct Right {
    namespace: String,
    verbs: BTreeSet<String>,
    /// Empty: whatever the name.
    names: BTreeSet<String>,
}

pub(super) struct State {
    namespaces: BTreeSet<String>,
    /// By the account's bearer token: the account as messages call it, and its rights on Secrets.
    accounts: BTreeMap<String, (String, Vec<Right>)>,
    secrets: BTreeMap<Place, Value>,
    taken: usize,
    changed: usize,
}

/// Status and object of an answer.
type Answer = (u16, Value);

impl State {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let names = manifest.of_kind("Namespace").map(|it| it.name().to_owned());
        let mut accounts = BTreeMap::new();
        for account in manifest.of_kind("ServiceAccount") {
            let (namespace, name) = (account.namespace(), account.name());
            let called = format!("system:serviceaccount:{namespace}:{name}");
            let rights = rights(manifest, namespace, name);
            accounts.insert(bearer(namespace, name), (called, rights));
        }
        Self {
            namespaces: names.collect(),
            accounts,
            secrets: BTreeMap::new(),
            taken: 0,
            changed: 0,
        }
    }

    pub(super) fn forbid(&mut self) {
        for (_, rights) in self.accounts.values_mut() {
            rights.clear();
        }
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = &Value> {
        self.secrets.values()
    }

    pub(super) fn content(&self, namespace: &str, name: &str, key: &str) -> Option<Vec<u8>> {
        let place = (namespace.to_owned(), name.to_owned());
        let value = self.secrets.get(&place)?["data"].get(key)?.as_str()?;
        STANDARD.decode(value).ok()
    }

    pub(super) fn counts(&self) -> (usize, usize) {
        (self.taken, self.changed)
    }

    /// Takes a request, or says why not, in the order in which the API looks.
    pub(super) fn judge(&mut self, request: &Request) -> Answer {
        let token = request.header("authorization").strip_prefix("Bearer ");
        let Some((user, rights)) = token.and_then(|token| self.accounts.get(token)) else {
            return refusal(401, "Unauthorized", "");
        };
        let parts: Vec<&str> = request.path.split('/').collect();
        let ["", "api", "v1", "namespaces", namespace, "secrets", name] = parts[..] else {
            let message = "the server could not find the requested resource";
            return refusal(404, message, "");
        };
        let place = (namespace.to_owned(), name.to_owned());
        let may = |verb: &str| {
            rights.iter().any(|right| {
                right.namespace == namespace
                    && right.verbs.contains(verb)
                    && (right.names.is_empty() || right.names.contains(name))
            })
        };
        if request.method != "PATCH" || !may("patch") {
            let verb = request.method.to_lowercase();
            return refusal(
                403,
                &format!(
                    "secrets \"{name}\" is forbidden: User \"{user}\" cannot {verb} resource \
                     \"secrets\" in API group \"\" in the namespace \"{namespace}\""
                ),
                "secrets",
            );
        }
        let object = match object_of(request, namespace, name) {
            Ok(object) => object,
            Err(answer) => return answer,
        };
        let before = self.secrets.get(&place);
        if before.is_none() {
            if !may("create") {
                let message = format!("secrets \"{name}\" is forbidden: ");
                return refusal(403, &message, "secrets");
            }
            if !self.namespaces.contains(namespace) {
                let message = format!("namespaces \"{namespace}\" not found");
                return refusal(404, &message, "namespaces");
            }
        }
        self.taken += 1;
        let is_new = before.is_none();
        if before != Some(&object) {
            self.changed += 1;
            self.secrets.insert(place, object.clone());
        }
        (if is_new { 201 } else { 200 }, object)
    }
}

/// What the manifest's Roles let an account do with Secrets.
fn rights(manifest: &Manifest, namespace: &str, name: &str) -> Vec<Right> {
    let words = |rule: &Value, at: &str| -> BTreeSet<String> {
        let words = list(rule, at).filter_map(Value::as_str);
        words.map(str::to_owned).collect()
    };
    let mut rights = Vec::new();
    for binding in manifest.of_kind("RoleBinding") {
        let is_its = list(binding.value(), "/subjects").any(|subject| {
            (text(subject, "/namespace"), text(subject, "/name")) == (namespace, name)
        });
        let role = text(binding.value(), "/roleRef/name");
        let role = manifest.find("Role", binding.namespace(), role);
        let Some(role) = role.filter(|_| is_its) else {
            continue;
        };
        for rule in list(role.value(), "/rules") {
            if words(rule, "/resources").contains("secrets") {
                rights.push(Right {
                    namespace: role.namespace().to_owned(),
                    verbs: words(rule, "/verbs"),
                    names: words(rule, "/resourceNames"),
                });
            }
        }
    }
    rights
}

/// The object in a request to apply it.
fn object_of(request: &Request, namespace: &str, name: &str) -> Result<Value, Answer> {
    if request.header("content-type") != "application/apply-patch+yaml" {
        let message = "the body of the request was in an unknown format - accepted media types \
                       include: application/apply-patch+yaml";
        return Err(refusal(415, message, ""));
    }
    let query = |key: &str| request.query.get(key).map_or("", String::as_str);
    if query("fieldManager").is_empty() {
        let message = "fieldManager: Required value: is required for apply patch";
        return Err(refusal(422, message, ""));
    }
    let known = ["fieldManager", "force", "fieldValidation"];
    let strange = request.query.keys().any(|it| !known.contains(&it.as_str()));
    if query("force") != "true" || query("fieldValidation") != "Strict" || strange {
        return Err(refusal(400, "another query than this stand-in takes", ""));
    }
    let object: Value = serde_json::from_slice(&request.body)
        .map_err(|error| refusal(400, &format!("error decoding patch: {error}"), ""))?;
    let is_whole = text(&object, "/apiVersion") == "v1"
        && text(&object, "/kind") == "Secret"
        && text(&object, "/metadata/namespace") == namespace
        && text(&object, "/metadata/name") == name;
    let data = object["data"].as_object();
    let is_data = |value: &Value| value.as_str().is_some_and(|it| STANDARD.decode(it).is_ok());
    if is_whole && data.is_some_and(|data| data.values().all(is_data)) {
        Ok(object)
    } else {
        Err(refusal(400, "this is not the Secret of that path", ""))
    }
}

/// A `meta/v1` Status.
fn refusal(code: u16, message: &str, kind: &str) -> Answer {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure",
        "message": message, "code": code, "details": { "kind": kind },
    });
    (code, status)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account `a` in `one` that may patch and create `x` in `one`, and patch anything in `two`.
    fn state() -> State {
        let at = |namespace: &str, name: &str| json!({ "namespace": namespace, "name": name });
        let role = |namespace: &str, rule: Value| json!({ "kind": "Role", "metadata": at(namespace, "r"), "rules": [rule] });
        let binding = |namespace: &str| {
            json!({
                "kind": "RoleBinding", "metadata": at(namespace, "r"),
                "roleRef": { "name": "r" }, "subjects": [at("one", "a")],
            })
        };
        let values = vec![
            json!({ "kind": "Namespace", "metadata": { "name": "one" } }),
            json!({ "kind": "ServiceAccount", "metadata": at("one", "a") }),
            role(
                "one",
                json!({ "resources": ["secrets"], "resourceNames": ["x"], "verbs": ["create", "patch"] }),
            ),
            role(
                "two",
                json!({ "resources": ["secrets"], "verbs": ["patch"] }),
            ),
            role(
                "gone",
                json!({ "resources": ["secrets"], "verbs": ["create", "patch"] }),
            ),
            binding("one"),
            binding("two"),
            binding("gone"),
        ];
        State::of(&Manifest::new(values, BTreeSet::new()))
    }

    fn request(namespace: &str, name: &str, value: &str) -> Request {
        let head = format!(
            "PATCH /api/v1/namespaces/{namespace}/secrets/{name}\
             ?fieldManager=m&force=true&fieldValidation=Strict HTTP/1.1\r\n\
             Authorization: Bearer {}\r\nContent-Type: application/apply-patch+yaml\r\n\r\n",
            bearer("one", "a")
        );
        let mut request = Request::parse(&head).expect("a head");
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "data": { "k": value },
            "metadata": { "namespace": namespace, "name": name },
        });
        request.body = object.to_string().into_bytes();
        request
    }

    #[test]
    fn a_secret_is_made_changed_and_left_alone() {
        let mut state = state();
        for (value, code) in [("b25l", 201), ("b25l", 200), ("dHdv", 200)] {
            assert_eq!(state.judge(&request("one", "x", value)).0, code);
        }
        assert_eq!(state.counts(), (3, 2));
        assert_eq!(state.content("one", "x", "k").as_deref(), Some(&b"two"[..]));
        assert_eq!(state.content("one", "x", "other"), None);
    }

    #[test]
    fn rights_are_those_of_the_roles() {
        let mut state = state();
        for (namespace, name, says) in [
            ("one", "y", "cannot patch resource \"secrets\""),
            ("two", "x", "secrets \"x\" is forbidden: "),
            ("three", "x", "system:serviceaccount:one:a"),
        ] {
            let (code, answer) = state.judge(&request(namespace, name, "b25l"));
            let said = text(&answer, "/message");
            assert!(code == 403 && said.contains(says), "{code} {said}");
        }
        let (code, answer) = state.judge(&request("gone", "x", "b25l"));
        assert_eq!((code, text(&answer, "/details/kind")), (404, "namespaces"));
        state.forbid();
        assert_eq!(state.judge(&request("one", "x", "b25l")).0, 403);
        assert_eq!(state.counts(), (0, 0));
    }

    #[test]
    fn other_requests_are_refused() {
        type Change = fn(&mut Request);
        let changes: [(u16, Change); 7] = [
            (401, |it| {
                *it = Request::parse("PATCH / HTTP/1.1\r\n\r\n").expect("a head")
            }),
            (404, |it| it.path = it.path.replace("v1", "v2")),
            (403, |it| it.method = "DELETE".to_owned()),
            (422, |it| drop(it.query.remove("fieldManager"))),
            (400, |it| drop(it.query.remove("force"))),
            (400, |it| it.body.truncate(9)),
            (400, |it| {
                it.body = it
                    .body
                    .iter()
                    .map(|b| if *b == b'x' { b'y' } else { *b })
                    .collect()
            }),
        ];
        for (wanted, change) in changes {
            let mut request = request("one", "x", "b25l");
            change(&mut request);
            assert_eq!(state().judge(&request).0, wanted, "{request:?}");
        }
        let mut request = request("one", "x", "no base64");
        assert_eq!(state().judge(&request).0, 400);
        let head = format!(
            "PATCH {} HTTP/1.1\r\nAuthorization: Bearer {}\r\n\r\n",
            request.path,
            bearer("one", "a")
        );
        request = Request::parse(&head).expect("a head");
        assert_eq!(state().judge(&request).0, 415);
    }
}
