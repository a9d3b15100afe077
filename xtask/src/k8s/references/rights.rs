//! What pods may ask of Kubernetes itself: each Role gives exactly what is written here, to exactly
//! one account, and nothing is given for the whole cluster.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::k8s::manifest::{Manifest, Object, list, text};

/// What a Role gives: resources of the core API, their names (none: whatever the name), verbs.
type Right = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

/// A Role, by namespace and name, and the account it is for.
struct Given {
    namespace: &'static str,
    role: &'static str,
    account: (&'static str, &'static str),
    rights: &'static [Right],
}

/// Publishing what the bootstrap made: these Secrets and no others are made or changed, and none is
/// read.
const GIVEN: &[Given] = &[
    Given {
        namespace: "wonder-mesh",
        role: "mesh-bootstrap",
        account: ("wonder-mesh", "mesh-bootstrap"),
        rights: &[(
            &["secrets"],
            &[
                "mesh-operator",
                "mesh-token-deployer",
                "mesh-token-gateway",
                "mesh-token-relay",
            ],
            &["create", "patch"],
        )],
    },
    Given {
        namespace: "wonder-mesh-nodes",
        role: "mesh-bootstrap",
        account: ("wonder-mesh", "mesh-bootstrap"),
        rights: &[(&["secrets"], &["mesh-token-worker"], &["create", "patch"])],
    },
];

pub(super) fn check(manifest: &Manifest, faults: &mut Vec<String>) {
    for role in manifest.of_kind("Role") {
        match given(role) {
            Some(given) => exactly(role, given, faults),
            None => faults.push(format!("{}: nobody is to have this Role", role.key())),
        }
    }
    for binding in manifest.of_kind("RoleBinding") {
        let role = manifest.find(
            "Role",
            binding.namespace(),
            text(binding.value(), "/roleRef/name"),
        );
        if text(binding.value(), "/roleRef/kind") != "Role" {
            faults.push(format!("{}: it gives no Role of ours", binding.key()));
        }
        for subject in list(binding.value(), "/subjects") {
            let account = (text(subject, "/namespace"), text(subject, "/name"));
            let may = role.and_then(given).is_some_and(|it| it.account == account);
            if text(subject, "/kind") != "ServiceAccount" || !may {
                faults.push(format!(
                    "{}: {} {}/{} is not to have these rights",
                    binding.key(),
                    text(subject, "/kind"),
                    account.0,
                    account.1
                ));
            }
        }
    }
}

fn given(role: Object<'_>) -> Option<&'static Given> {
    GIVEN
        .iter()
        .find(|given| given.namespace == role.namespace() && given.role == role.name())
}

fn exactly(role: Object<'_>, given: &Given, faults: &mut Vec<String>) {
    let words = |rule: &Value, at: &str| -> BTreeSet<String> {
        list(rule, at)
            .map(|word| word.as_str().unwrap_or("?").to_owned())
            .collect()
    };
    let set = |words: &[&str]| -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    };
    let wanted: BTreeSet<_> = given
        .rights
        .iter()
        .map(|(resources, names, verbs)| (set(&[""]), set(resources), set(names), set(verbs)))
        .collect();
    let has: BTreeSet<_> = list(role.value(), "/rules")
        .map(|rule| {
            (
                words(rule, "/apiGroups"),
                words(rule, "/resources"),
                words(rule, "/resourceNames"),
                words(rule, "/verbs"),
            )
        })
        .collect();
    for (_, resources, names, verbs) in has.difference(&wanted) {
        faults.push(format!(
            "{}: more than the least rights: {verbs:?} on {resources:?} {names:?}",
            role.key()
        ));
    }
    for (_, resources, names, verbs) in wanted.difference(&has) {
        faults.push(format!(
            "{}: without {verbs:?} on {resources:?} {names:?} the bootstrap cannot publish",
            role.key()
        ));
    }
}
