use clap::{Arg, ArgAction, Command};

use super::*;

fn program() -> Command {
    Command::new("tool")
        .arg(
            Arg::new("json")
                .long("json")
                .global(true)
                .action(ArgAction::SetTrue),
        )
        .subcommand(
            Command::new("node")
                .subcommand(
                    Command::new("set")
                        .arg(Arg::new("node").required(true))
                        .arg(Arg::new("label").long("label").short('l')),
                )
                .subcommand(Command::new("list")),
        )
}

fn line(whole: bool, text: &str) -> CommandLine {
    CommandLine {
        place: "here:1".to_owned(),
        whole,
        words: simple_commands(text).remove(0),
    }
}

#[test]
fn a_line_falls_apart_into_commands() {
    let one = |line: &str| simple_commands(line);
    assert_eq!(one(r#"a "b c" --d='e f'  # g"#), [["a", "b c", "--d=e f"]]);
    assert_eq!(
        one("a b && c -d e.token & f | g; h"),
        [
            vec!["a", "b"],
            vec!["c", "-d", "e.token"],
            vec!["f"],
            vec!["g"],
            vec!["h"]
        ]
    );
    assert_eq!(one("a b >> ~/.ssh/config"), [["a", "b"]]);
    assert_eq!(
        one("ssh -F <(a b) w"),
        [vec!["a", "b"], vec!["ssh", "-F", "_", "w"]]
    );
    assert_eq!(one("a on|off"), [["a", "on|off"]]);
    assert_eq!(one("a#b"), [["a#b"]]);
    assert!(one("# nothing").is_empty());
}

#[test]
fn blocks_and_spans_of_a_text_are_found() {
    let text = "# Title\nSay `tool node`.\n\n```sh\ntool a \\\n  b   # c\n```\n\
                ```console\n$ tool x\nanswer\n```\n```toml\ntool = 1\n```\n```\ntool part\n```\n";
    let found = typed(text);
    let found: Vec<_> = found
        .iter()
        .map(|typed| (typed.line, typed.whole, typed.text.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (2, false, "tool node"),
            (5, true, "tool a b   # c"),
            (9, true, "tool x"),
            (16, false, "tool part"),
        ]
    );
    assert_eq!(typed(text)[0].section, "Title");
}

#[test]
fn the_program_is_found_behind_what_starts_it() {
    let called = |line: &str| called(simple_commands(line).remove(0)).map(|words| words.join(" "));
    for (line, program) in [
        ("sudo A_B=c tool x", "tool x"),
        ("target/debug/tool x", "tool x"),
        ("cargo run --release -- up --demo", "mesh up --demo"),
        ("docker compose -f a.yml exec -T one tool x", "tool x"),
        ("kubectl exec deploy/one -- tool x", "tool x"),
    ] {
        assert_eq!(called(line).as_deref(), Some(program), "{line}");
    }
    assert_eq!(called("cargo build"), Some("cargo build".to_owned()));
    assert_eq!(called("docker compose restart tool"), None);
}

#[test]
fn a_whole_line_must_be_understood_and_a_part_must_exist() {
    let program = program();
    for good in ["tool node set one --label a=b", "tool node list --json"] {
        assert_eq!(line(true, good).fault(&program), None);
    }
    for bad in ["tool node set", "tool node list --lable", "tool nod list"] {
        assert!(line(true, bad).fault(&program).is_some(), "{bad}");
    }
    for good in [
        "tool node set --label",
        "tool node set|list",
        "tool node VERB",
        "tool node set -l KEY=VALUE NODE…",
        "tool --json",
    ] {
        assert_eq!(line(false, good).fault(&program), None);
    }
    for bad in [
        "tool node set --lable",
        "tool node rename",
        "tool node set|sett",
        "tool -x",
    ] {
        let fault = line(false, bad).fault(&program).expect(bad);
        assert!(fault.starts_with("here:1: tool "), "{fault}");
    }
}

#[test]
fn the_repository_has_documents_that_call_programs() {
    assert!(documents().iter().any(|(name, _)| name == "README.md"));
    assert!(command_lines("mesh").iter().any(|line| line.whole));
}
