//! Completions of every program in the shells that people use.

use std::path::PathBuf;
use std::time::Duration;

use integration::Cli;
use mesh_testkit::{Finished, Need, Spec, needs};

const SOON: Duration = Duration::from_secs(60);

/// A program, the beginning of one of its verbs, and the verb.
const PROGRAMS: [(&str, &str, &str); 7] = [
    ("coordinator", "boots", "bootstrap"),
    ("deploy-cli", "install", "install-cockpit"),
    ("deploy-manager", "stat", "status"),
    ("mesh", "net", "network"),
    ("relay", "heal", "health"),
    ("traffic-gateway", "jo", "join"),
    ("worker-agent", "lea", "leave"),
];

fn completions(cli: &Cli, program: &str, shell: &str) -> PathBuf {
    let spec = cli.product(program).args(["completions", shell]);
    let printed = spec.run(SOON).expect("runs").expect_code(0);
    assert_eq!(printed.stderr, "", "{program} {shell}");
    cli.file(&format!("{program}.{shell}"), &printed.stdout)
        .expect("file")
}

#[track_caller]
fn ran(spec: Spec) -> Finished {
    let ran = spec.run(SOON).expect("runs").expect_code(0);
    assert_eq!(ran.stderr, "", "{}", ran.all());
    ran
}

#[track_caller]
fn assert_completes(ran: &Finished, verb: &str) {
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let words: Vec<String> = ran.stdout.lines().filter_map(first).collect();
    assert_eq!(words, [verb], "{}", ran.all());
}

#[test]
fn bash_completes_a_verb_of_every_program() {
    if !needs(&[Need::Program("bash")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    for (program, beginning, verb) in PROGRAMS {
        let file = completions(&cli, program, "bash");
        // What bash does when Tab is pressed: it calls the function that `complete` names.
        let script = "source \"$1\"\n\
                      [[ \"$(complete -p \"$2\")\" =~ -F\\ ([^ ]+) ]] || exit 3\n\
                      COMP_WORDS=(\"$2\" \"$3\") COMP_CWORD=1\n\
                      \"${BASH_REMATCH[1]}\" \"$2\" \"$3\" \"$2\"\n\
                      printf '%s\\n' \"${COMPREPLY[@]}\"\n";
        let spec = cli.spec("bash").args(["--norc", "-c", script, "bash"]);
        let ran = ran(spec.arg(file).args([program, beginning]));
        assert_completes(&ran, verb);
    }
}

#[test]
fn fish_completes_a_verb_of_every_program() {
    if !needs(&[Need::Program("fish")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    for (program, beginning, verb) in PROGRAMS {
        let file = completions(&cli, program, "fish");
        let script = format!(
            "source {}; complete --do-complete '{program} {beginning}'",
            file.display()
        );
        let ran = ran(cli.spec("fish").args(["--no-config", "-c", &script]));
        assert_completes(&ran, verb);
    }
}

#[test]
fn zsh_takes_the_completions_of_every_program() {
    if !needs(&[Need::Program("zsh")]) {
        return;
    }
    let cli = Cli::new().expect("folders");
    for (program, _, verb) in PROGRAMS {
        let file = completions(&cli, program, "zsh");
        // Sourced with zsh's completion system on: registered for the program, and its list of
        // verbs is there (`_describe` is what would show them).
        let script = "autoload -Uz compinit && compinit -u -D\n\
                      source \"$1\"\n\
                      [[ -n \"${_comps[$2]}\" ]] || exit 3\n\
                      _describe() { print -l -- ${(P)4} }\n\
                      \"_${2}_commands\"\n";
        let spec = cli.spec("zsh").args(["-f", "-c", script, "zsh"]);
        let ran = ran(spec.arg(&file).arg(program));
        let listed = ran
            .stdout
            .lines()
            .any(|line| line.starts_with(&format!("{verb}:")));
        assert!(listed, "{program} has no {verb}: {}", ran.all());
    }
}
