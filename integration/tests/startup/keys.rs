//! Files that the programs generate, and keys that they do not know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use integration::Cli;
use serde_json::Value;

use super::{SERVICES, ran};

#[test]
fn a_generated_file_is_accepted_changes_nothing_and_needs_no_healing() {
    let cli = Cli::new().expect("folders");
    for service in SERVICES {
        let file = cli.work(&format!("{service}.toml"));
        let product = || cli.product(service);
        let init = ran(product().args(["config", "init", "--output"]).arg(&file));
        assert_eq!(init.code, Some(0), "{}", init.all());
        let check = ran(product().args(["config", "check", "--config"]).arg(&file));
        assert_eq!(check.code, Some(0), "{}", check.all());
        let shown = |config: &str| {
            let spec = product().args(["config", "check", "--print-config", "--config", config]);
            let shown = ran(spec);
            assert_eq!(shown.code, Some(0), "{}", shown.all());
            shown.stdout
        };
        let path = file.to_str().expect("a plain path");
        assert_eq!(shown(path), shown("/dev/null"), "{service}");
        let before = fs::read_to_string(&file).expect("read");
        let heal = ran(product().args(["config", "heal"]).arg(&file));
        assert_eq!(heal.code, Some(0), "{}", heal.all());
        assert_eq!(
            fs::read_to_string(&file).expect("read"),
            before,
            "{service}"
        );

        // A file of last year: one key, one that is misspelt.
        fs::write(&file, "[log]\nlevel = \"debug\" # ours\nformt = \"json\"\n").expect("written");
        let heal = ran(product().args(["config", "heal"]).arg(&file));
        assert_eq!(heal.code, Some(64), "{}", heal.all());
        assert!(
            heal.all().contains("log.formt; did you mean log.format?"),
            "{}",
            heal.all()
        );
        let after = fs::read_to_string(&file).expect("read");
        assert!(
            after.contains("level = \"debug\" # ours\nformt = \"json\"\n"),
            "{after}"
        );
        assert!(after.contains("\n[admin]\n"), "{after}");
        let mended = after.replace("formt", "# formt");
        fs::write(&file, mended).expect("written");
        let check = ran(product().args(["config", "check", "--config"]).arg(&file));
        assert_eq!(check.code, Some(0), "{}", check.all());
    }
}

/// Every key of a service, by the section it stands in; empty: above all sections.
fn keys(cli: &Cli, service: &str) -> BTreeMap<String, BTreeSet<String>> {
    let shown = ran(cli.product(service).args(["config", "keys", "--json"]));
    let shown: Value = serde_json::from_str(&shown.stdout).expect("JSON");
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut note = |path: &str| {
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        names
            .entry(section.to_owned())
            .or_default()
            .insert(name.to_owned());
    };
    for section in shown["sections"].as_array().expect("sections") {
        let path = section["section"].as_str().expect("a section");
        if !path.is_empty() {
            note(path);
        }
        for key in section["keys"].as_array().expect("keys") {
            note(key["key"].as_str().expect("a key"));
        }
    }
    names
}

/// The word with one of its inner letters left out; of words without one, with the last one twice.
fn slips(word: &str) -> BTreeSet<String> {
    assert!(word.is_ascii(), "{word}");
    if word.len() < 3 {
        return BTreeSet::from([format!("{word}{}", &word[word.len() - 1..])]);
    }
    let without = |at| format!("{}{}", &word[..at], &word[at + 1..]);
    (1..word.len() - 1).map(without).collect()
}

/// Whether one letter more, less or another one makes one word of the other.
fn is_one_slip(typed: &str, known: &str) -> bool {
    let (short, long) = match typed.len() <= known.len() {
        true => (typed, known),
        false => (known, typed),
    };
    let same = short.bytes().zip(long.bytes()).take_while(|(a, b)| a == b);
    let at = same.count();
    match long.len() - short.len() {
        0 => short != long && short[at + 1..] == long[at + 1..],
        1 => short[at..] == long[at + 1..],
        _ => false,
    }
}

#[test]
fn each_unknown_key_is_named_with_the_nearest_right_one() {
    let cli = Cli::new().expect("folders");
    for service in SERVICES {
        let known = keys(&cli, service);
        // (what is typed, its section, what was meant); all of it in one file.
        let mut typed = Vec::new();
        for (section, names) in &known {
            for name in names {
                let unknown = slips(name).into_iter().filter(|slip| !names.contains(slip));
                typed.extend(unknown.map(|slip| (slip, section, name)));
            }
        }
        let dotted = |section: &str, name: &str| match section {
            "" => name.to_owned(),
            section => format!("{section}.{name}"),
        };
        let paths: BTreeSet<_> = typed.iter().map(|(slip, at, _)| dotted(at, slip)).collect();
        let file = cli.work(&format!("{service}-slips.toml"));
        let lines: String = paths
            .iter()
            .map(|path| format!("{path} = \"x\"\n"))
            .collect();
        fs::write(&file, lines).expect("written");
        let config = file.to_str().expect("a plain path");
        let refused = ran(cli
            .product(service)
            .args(["config", "check", "--config", config]));
        let said = refused.all();
        assert_eq!(refused.code, Some(64), "{said}");
        let count = format!("has {} faults:", paths.len());
        assert!(said.contains(&count), "{count:?} is not in: {said}");
        for (slip, section, meant) in &typed {
            let path = dotted(section, slip);
            let before = format!("  {path} ({config}): unknown key; did you mean ");
            let named = said
                .lines()
                .find_map(|line| line.strip_prefix(&before)?.strip_suffix('?'))
                .unwrap_or_else(|| panic!("{service}: nothing right instead of {path}: {said}"));
            let as_near =
                |name: &&String| named == dotted(section, name) && is_one_slip(slip, name);
            assert!(
                named == dotted(section, meant) || known[*section].iter().any(|it| as_near(&it)),
                "{service}: {named} instead of {path}, not {meant}"
            );
        }
        assert!(typed.len() > 50, "{service}: only {} slips", typed.len());
        println!("{service}: {} slips, each with the right key", typed.len());
    }
}
