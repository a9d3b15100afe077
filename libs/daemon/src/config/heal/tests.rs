use proptest::prelude::*;

use super::super::example::Example;
use super::super::{ConfigArgs, Overrides, commented, load_from};
use super::*;

fn schema() -> Schema {
    Schema::of::<Example>("my-example")
}

fn healed(text: &str) -> Healed {
    heal(text, &schema()).expect("TOML")
}

fn loaded(text: &str) -> Example {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("my-example.toml");
    std::fs::write(&path, text).expect("written");
    let args = ConfigArgs {
        config: Some(path),
        dev: true,
        ..ConfigArgs::default()
    };
    match load_from("my-example", &args, Overrides::new(), []) {
        Ok(settings) => settings,
        Err(faults) => panic!("{faults}\n{text}"),
    }
}

/// Whether all lines of one text are lines of the other, in the same order.
fn keeps_lines(old: &str, new: &str) -> bool {
    let mut new = new.lines();
    old.lines().all(|line| new.any(|other| other == line))
}

#[test]
fn a_new_file_is_the_default_and_needs_no_healing() {
    let text = commented(&schema());
    assert_eq!(loaded(&text), Example::default());
    let healed = healed(&text);
    assert_eq!(healed.text, text);
    assert!(healed.added.is_empty() && healed.unknown.is_empty());
    for part in [
        "# How many work.\n# number | MESH_MY_EXAMPLE__SERVER__WORKERS\nworkers = 7\n",
        "# password_file = …\n",
        "\n# What is served.\n[server]\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn an_empty_file_becomes_the_whole_one_without_its_head() {
    let healed = healed("");
    assert_eq!(healed.added.len(), schema().keys().count());
    assert_eq!(loaded(&healed.text), Example::default());
}

#[test]
fn missing_keys_come_to_their_sections_and_all_else_stays() {
    let old = "# Ours.\npeers = [ 'a',  # first\n  'b' ]\n\n# The store, since 2024.\n[store]\n\
               # password = 'later'\npath = \"\"\"\n[server]\n\"\"\" # odd\n\n\n[server] # front\n\
               workers=3";
    let healed = healed(old);
    assert_eq!(healed.added, ["mode", "server.listen", "server.idle"]);
    assert!(keeps_lines(old, &healed.text), "{}", healed.text);
    let settings = loaded(&healed.text);
    assert_eq!(settings.peers, ["a", "b"]);
    assert_eq!(settings.server.workers, 3);
    assert_eq!(settings.server.idle, Example::default().server.idle);
    let (head, _) = healed.text.split_once("# The store").expect("kept");
    assert!(head.contains("\nmode = "), "{}", healed.text);
    assert_eq!(
        heal(&healed.text, &schema()).expect("TOML").text,
        healed.text
    );
}

#[test]
fn dotted_keys_are_added_beside_those_that_are_there_and_inline_tables_left_alone() {
    let healed = healed("server.workers = 3\nstore = { path = '/x' }\n");
    assert_eq!(healed.left_alone, ["store.password"]);
    assert!(
        healed.text.contains("\nserver.listen = "),
        "{}",
        healed.text
    );
    assert!(!healed.text.contains("[server]"), "{}", healed.text);
    assert_eq!(loaded(&healed.text).server.workers, 3);
}

#[test]
fn windows_line_ends_stay_and_new_lines_have_them_too() {
    let healed = healed("[server]\r\nworkers = 3\r\n");
    assert!(
        !healed.text.replace("\r\n", "").contains('\n'),
        "{:?}",
        healed.text
    );
    assert_eq!(loaded(&healed.text).server.workers, 3);
}

#[test]
fn unknown_keys_are_named_once_with_the_nearest_right_one_and_stay() {
    let old =
        "mod = 'agent'\n[servre]\nlisten = '127.0.0.1:1'\nworkers = 1\n[store]\npasword = 'x'\n";
    let healed = healed(old);
    let named: Vec<(&str, &str)> = healed
        .unknown
        .iter()
        .map(|(key, instead)| (key.as_str(), instead.as_str()))
        .collect();
    assert!(named.contains(&("mod", "did you mean mode?")), "{named:?}");
    assert!(
        named.contains(&("servre", "did you mean server?")),
        "{named:?}"
    );
    assert!(
        named.contains(&("store.pasword", "did you mean store.password?")),
        "{named:?}"
    );
    assert_eq!(named.len(), 3);
    assert!(keeps_lines(old, &healed.text));
}

#[test]
fn what_is_no_toml_is_refused() {
    assert!(matches!(
        heal("listen = ", &schema()),
        Err(HealError::Syntax(_))
    ));
}

/// A line of a file as people write them: some of ours, some unknown, some only look like headers.
fn line() -> impl Strategy<Value = String> {
    const LINES: &[&str] = &[
        "",
        "# a comment",
        "  # peers = []",
        "[server]",
        "[store] # kept",
        "[server.more]",
        "[[list]]",
        "[[store]]",
        "peers = ['a', 'b']",
        "peers = [\n  'a', # one\n  # listen = 1\n]",
        "mode = \"sshd\"",
        "listen = '127.0.0.1:7'",
        "workers = 3",
        "idle = \"5m\"",
        "path = '/x'",
        "path = '''\n[server]\nworkers = 1'''",
        "password_file = '/nowhere'",
        "# idle = '1h'",
        "server.workers = 9",
        "store = { path = '/y' }",
        "unknown = { a = [1, 2] }",
        "\tmode='agent' ",
        "\"listen\" = '127.0.0.1:8'",
        "server = 1",
    ];
    prop_oneof![
        9 => proptest::sample::select(LINES).prop_map(str::to_owned),
        1 => "[a-z_]{1,8} = [0-9]{1,3}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

    #[test]
    fn healing_loses_no_line_and_is_done_once(
        lines in proptest::collection::vec(line(), 0..14),
        windows in any::<bool>(),
        last in any::<bool>(),
    ) {
        let newline = if windows { "\r\n" } else { "\n" };
        let mut old = lines.join("\n").replace('\n', newline);
        if last {
            old.push_str(newline);
        }
        let schema = schema();
        let Ok(healed) = heal(&old, &schema) else {
            // Not TOML, such as a key given twice: never "a fault of this program".
            prop_assert!(DeTable::parse(&old).is_err(), "{old}");
            return Ok(());
        };
        prop_assert!(keeps_lines(&old, &healed.text), "{old}\n--\n{}", healed.text);
        let again = heal(&healed.text, &schema).expect("healed once");
        prop_assert_eq!(&again.text, &healed.text);
        prop_assert!(again.added.is_empty());
        for (key, instead) in &healed.unknown {
            prop_assert!(!schema.knows(key) && !instead.is_empty());
        }
    }
}
