//! The shapes of kinds that other projects define: the fields that we use, with their types, and no
//! others, so that a misspelt field is found.
//!
//! Gateway API 1.5 (Gateway, HTTPRoute, TLSRoute) and Prometheus operator (ServiceMonitor).

use serde_json::Value;

use super::manifest::{Manifest, Object};

enum Shape {
    Text,
    /// A duration such as `15s`.
    Span,
    Number(i64, i64),
    OneOf(&'static [&'static str]),
    List(&'static Shape),
    /// Any keys.
    Texts,
    /// Name, whether it must be there, shape.
    Fields(&'static [(&'static str, bool, Shape)]),
}

use Shape::{Fields, List, Number, OneOf, Span, Text, Texts};

const PORT: Shape = Number(1, 65535);

const BACKENDS: Shape = List(&Fields(&[("name", true, Text), ("port", true, PORT)]));

const PARENTS: Shape = List(&Fields(&[
    ("name", true, Text),
    ("sectionName", false, Text),
]));

const GATEWAY: Shape = Fields(&[
    ("gatewayClassName", true, Text),
    (
        "listeners",
        true,
        List(&Fields(&[
            ("name", true, Text),
            (
                "protocol",
                true,
                OneOf(&["HTTP", "HTTPS", "TLS", "TCP", "UDP"]),
            ),
            ("port", true, PORT),
            ("hostname", false, Text),
            (
                "tls",
                false,
                Fields(&[
                    ("mode", false, OneOf(&["Terminate", "Passthrough"])),
                    (
                        "certificateRefs",
                        false,
                        List(&Fields(&[
                            ("kind", false, OneOf(&["Secret"])),
                            ("name", true, Text),
                        ])),
                    ),
                ]),
            ),
            (
                "allowedRoutes",
                false,
                Fields(&[(
                    "namespaces",
                    false,
                    Fields(&[("from", false, OneOf(&["All", "Same", "Selector"]))]),
                )]),
            ),
        ])),
    ),
]);

const HTTP_ROUTE: Shape = Fields(&[
    ("parentRefs", true, PARENTS),
    ("hostnames", false, List(&Text)),
    (
        "rules",
        true,
        List(&Fields(&[
            (
                "matches",
                false,
                List(&Fields(&[(
                    "path",
                    false,
                    Fields(&[
                        (
                            "type",
                            true,
                            OneOf(&["Exact", "PathPrefix", "RegularExpression"]),
                        ),
                        ("value", true, Text),
                    ]),
                )])),
            ),
            (
                "timeouts",
                false,
                Fields(&[("request", false, Span), ("backendRequest", false, Span)]),
            ),
            ("backendRefs", true, BACKENDS),
        ])),
    ),
]);

const TLS_ROUTE: Shape = Fields(&[
    ("parentRefs", true, PARENTS),
    ("hostnames", true, List(&Text)),
    (
        "rules",
        true,
        List(&Fields(&[("backendRefs", true, BACKENDS)])),
    ),
]);

const SERVICE_MONITOR: Shape = Fields(&[
    ("jobLabel", false, Text),
    (
        "namespaceSelector",
        false,
        Fields(&[("matchNames", false, List(&Text))]),
    ),
    ("selector", true, Fields(&[("matchLabels", false, Texts)])),
    (
        "endpoints",
        true,
        List(&Fields(&[
            ("port", true, Text),
            ("path", false, Text),
            ("scheme", false, OneOf(&["http", "https"])),
            ("interval", false, Span),
            ("scrapeTimeout", false, Span),
        ])),
    ),
]);

const KINDS: &[(&str, &str, &Shape)] = &[
    ("gateway.networking.k8s.io/v1", "Gateway", &GATEWAY),
    ("gateway.networking.k8s.io/v1", "HTTPRoute", &HTTP_ROUTE),
    ("gateway.networking.k8s.io/v1", "TLSRoute", &TLS_ROUTE),
    (
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        &SERVICE_MONITOR,
    ),
];

fn shape_of(object: &Object<'_>) -> Option<&'static Shape> {
    KINDS
        .iter()
        .find(|(api, kind, _)| *api == object.api_version() && *kind == object.kind())
        .map(|(.., shape)| *shape)
}

/// Whether the kind is one of those written down here.
pub(super) fn knows(object: &Object<'_>) -> bool {
    shape_of(object).is_some()
}

pub(super) fn check(manifest: &Manifest) -> Vec<String> {
    let mut faults = Vec::new();
    for object in manifest.objects() {
        let Some(shape) = shape_of(&object) else {
            continue;
        };
        let mut found = Vec::new();
        fit(shape, &object.value()["spec"], "spec", &mut found);
        for key in object.value().as_object().into_iter().flatten() {
            if !["apiVersion", "kind", "metadata", "spec"].contains(&key.0.as_str()) {
                found.push(format!("{}: unknown field", key.0));
            }
        }
        faults.extend(
            found
                .into_iter()
                .map(|fault| format!("{}: {fault}", object.key())),
        );
    }
    faults
}

fn fit(shape: &Shape, value: &Value, at: &str, faults: &mut Vec<String>) {
    let fits = match shape {
        Text => value.is_string(),
        Span => value.as_str().is_some_and(is_span),
        Number(least, most) => value
            .as_i64()
            .is_some_and(|number| (*least..=*most).contains(&number)),
        OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
        Texts => value
            .as_object()
            .is_some_and(|map| map.values().all(Value::is_string)),
        List(inner) => {
            for (number, item) in value.as_array().into_iter().flatten().enumerate() {
                fit(inner, item, &format!("{at}.{number}"), faults);
            }
            value.as_array().is_some_and(|list| !list.is_empty())
        }
        Fields(fields) => {
            let map = value.as_object();
            for (name, inner) in map.into_iter().flatten() {
                match fields.iter().find(|(known, ..)| known == name) {
                    Some((.., shape)) => fit(shape, inner, &format!("{at}.{name}"), faults),
                    None => faults.push(format!("{at}.{name}: unknown field")),
                }
            }
            for (name, needed, _) in *fields {
                if *needed && map.is_some_and(|map| !map.contains_key(*name)) {
                    faults.push(format!("{at}.{name}: missing"));
                }
            }
            map.is_some()
        }
    };
    if !fits {
        faults.push(format!("{at}: {value} does not fit"));
    }
}

fn is_span(text: &str) -> bool {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
    let unit = &text[digits.len()..];
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && ["ms", "s", "m", "h"].contains(&unit)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(shape: &Shape, value: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        fit(shape, value, "spec", &mut faults);
        faults
    }

    #[test]
    fn misspelt_missing_and_mistyped_fields_are_found() {
        let good = json!({ "selector": { "matchLabels": { "a": "b" } },
                           "endpoints": [{ "port": "admin", "interval": "15s" }] });
        assert!(faults(&SERVICE_MONITOR, &good).is_empty());
        for (wrong, text) in [
            (
                json!({ "selector": {}, "endpoints": [{ "prot": "admin", "port": "x" }] }),
                "spec.endpoints.0.prot: unknown field",
            ),
            (json!({ "selector": {} }), "spec.endpoints: missing"),
            (
                json!({ "selector": {}, "endpoints": [] }),
                "spec.endpoints: [] does not fit",
            ),
            (
                json!({ "selector": {}, "endpoints": [{ "port": 9464 }] }),
                "spec.endpoints.0.port: 9464 does not fit",
            ),
            (
                json!({ "selector": {}, "endpoints": [{ "port": "x", "interval": "soon" }] }),
                "spec.endpoints.0.interval: \"soon\" does not fit",
            ),
        ] {
            assert_eq!(faults(&SERVICE_MONITOR, &wrong), [text]);
        }
        let port = json!({ "parentRefs": [{ "name": "x" }], "hostnames": ["a"],
                           "rules": [{ "backendRefs": [{ "name": "a", "port": 70000 }] }] });
        assert_eq!(faults(&TLS_ROUTE, &port).len(), 1);
    }
}
