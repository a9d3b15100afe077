use super::super::example::Example;
use super::*;

fn schema() -> Schema {
    Schema::of::<Example>("my-example")
}

#[test]
fn each_key_has_its_text_form_default_and_variable() {
    let schema = schema();
    let key = |path: &str| schema.find(path).expect("known").clone();
    let workers = key("server.workers");
    assert_eq!(workers.doc, "How many work.");
    assert_eq!(workers.form.text, "number");
    // The outer default wins over the section's own.
    assert_eq!(workers.default, Some(7.into()));
    assert_eq!(workers.environment, "MESH_MY_EXAMPLE__SERVER__WORKERS");
    assert_eq!(key("server.idle").default, Some("30s".into()));
    assert_eq!(key("store.path").default, None);
    assert_eq!(key("peers").form.text, "list of text");
    assert_eq!(key("mode").form.text, "\"agent\" or \"sshd\"");
    assert_eq!(key("mode").form.choices[1].1, "The other.");
    let password = key("store.password");
    assert_eq!(
        (password.form.secrecy, password.default),
        (Secrecy::Secret, None)
    );
}

#[test]
fn the_schema_knows_exactly_what_the_settings_have() {
    fn paths(prefix: &str, json: &Json, found: &mut Vec<String>) {
        for (name, value) in json.as_object().expect("a table") {
            let path = join(prefix, name);
            if value.is_object() {
                paths(&path, value, found);
            } else {
                found.push(path);
            }
        }
    }
    let mut set = Vec::new();
    let defaults = serde_json::to_value(Example::default()).expect("a table");
    paths("", &defaults, &mut set);
    let mut known: Vec<String> = schema().keys().map(|key| key.path.clone()).collect();
    known.sort();
    set.sort();
    assert_eq!(known, set);
}

#[test]
fn an_unknown_key_is_told_what_it_was_meant_to_be() {
    let schema = schema();
    for (typed, meant) in [
        ("server.lisen", "server.listen"),
        ("serverr", "server"),
        ("server_listen", "server.listen"),
        ("listen", "server.listen"),
        ("store.workers", "server.workers"),
        ("servre.listen", "server.listen"),
    ] {
        let offer = schema.instead_of(typed);
        assert_eq!(offer, format!("did you mean {meant}?"), "{typed}");
    }
    let offer = schema.instead_of("store.qqqqqqqqqqqq");
    assert_eq!(offer, "what is known in store: path, password");
}

#[test]
fn the_json_form_says_which_keys_are_secret() {
    let json = schema().to_json();
    assert_eq!(
        (&json["version"], &json["service"]),
        (&1.into(), &"my-example".into())
    );
    let sections = json["sections"].as_array().expect("a list");
    let store = sections
        .iter()
        .find(|section| section["section"] == "store");
    let keys = store.expect("a section")["keys"]
        .as_array()
        .expect("keys")
        .clone();
    let secret = |name: &str| {
        keys.iter()
            .find(|key| key["key"] == name)
            .map(|key| &key["secret"])
    };
    assert_eq!(secret("store.password"), Some(&true.into()));
    assert_eq!(secret("store.path"), Some(&false.into()));
}
