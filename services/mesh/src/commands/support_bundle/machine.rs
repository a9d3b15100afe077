//! Facts of the system that explain what services do: kernel, addresses and routes, limits, clock.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mesh_daemon::REDACTED;
use tokio::process::Command;

use super::archive::Bundle;
use crate::redact::{is_path_of_secret, is_secret_name};

/// How long a program may take to answer.
const LIMIT: Duration = Duration::from_secs(10);

const FILES: [(&str, &str); 10] = [
    ("kernel", "/proc/version"),
    ("os-release", "/etc/os-release"),
    ("limits", "/proc/self/limits"),
    ("memory", "/proc/meminfo"),
    ("load", "/proc/loadavg"),
    ("uptime", "/proc/uptime"),
    ("resolver", "/etc/resolv.conf"),
    ("sockets", "/proc/net/sockstat"),
    ("udp-and-tcp", "/proc/net/snmp"),
    ("open-files", "/proc/sys/fs/file-nr"),
];

const PROGRAMS: [(&str, &str, &[&str]); 7] = [
    ("addresses", "ip", &["address", "show"]),
    ("routes-v4", "ip", &["-4", "route", "show", "table", "all"]),
    ("routes-v6", "ip", &["-6", "route", "show", "table", "all"]),
    ("rules", "ip", &["rule", "show"]),
    ("listening", "ss", &["-lntu"]),
    ("disks", "df", &["-h"]),
    ("clock", "timedatectl", &["show"]),
];

pub(super) async fn gather(bundle: &mut Bundle) {
    for (name, path) in FILES {
        let read = std::fs::read_to_string(path).with_context(|| format!("read {path}"));
        bundle.take(&format!("system/{name}.txt"), read);
    }
    for (name, program, words) in PROGRAMS {
        let printed = printed(program, words).await;
        bundle.take(&format!("system/{name}.txt"), printed);
    }
    bundle.add("system/environment.txt", &environment(variables()));
}

/// This process's variables, whatever bytes are in them.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// The variables that our programs read. Secret ones are taken out here, where it is known where
/// they end.
fn environment(variables: impl Iterator<Item = (String, String)>) -> String {
    let ours = ["MESH_", "OTEL_", "XDG_", "RUST_LOG", "NO_COLOR"];
    let mut lines: Vec<String> = variables
        .filter(|(name, _)| ours.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| {
            let is_secret = is_secret_name(&name) && !is_path_of_secret(&name, &value);
            let value = if is_secret && !value.is_empty() {
                REDACTED
            } else {
                &value
            };
            format!("{name}={value}\n")
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// What a program prints.
pub(super) async fn printed(program: impl AsRef<OsStr>, words: &[&str]) -> Result<String> {
    printed_within(LIMIT, program.as_ref(), words).await
}

async fn printed_within(limit: Duration, program: &OsStr, words: &[&str]) -> Result<String> {
    let run = Command::new(program)
        .args(words)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let program = program.display();
    let Ok(ran) = tokio::time::timeout(limit, run).await else {
        bail!("{program} gave no answer within {} s", limit.as_secs_f32());
    };
    let ran = ran.with_context(|| format!("run {program}"))?;
    if !ran.status.success() {
        let said = String::from_utf8_lossy(&ran.stderr);
        bail!("{program}: {}: {}", ran.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_not_there_or_fails_is_named() {
        let none = printed("no-such-program", &[]).await.expect_err("none");
        assert!(format!("{none:#}").contains("no-such-program"));
        let fails = printed("sh", &["-c", "echo why >&2; exit 3"]).await;
        let fails = fails.expect_err("fails").to_string();
        assert!(fails.contains("why") && fails.contains('3'), "{fails}");
        assert_eq!(printed("echo", &["a"]).await.expect("runs"), "a\n");
        let limit = Duration::from_millis(100);
        let slow = printed_within(limit, "sleep".as_ref(), &["600"]).await;
        let slow = slow.expect_err("too slow").to_string();
        assert_eq!(slow, "sleep gave no answer within 0.1 s");
    }

    #[test]
    fn other_programs_variables_are_left_out() {
        let variable = |name: &str| (name.to_owned(), "x".to_owned());
        let shown = environment([variable("PGDATA"), variable("MESH_CONTEXT")].into_iter());
        assert_eq!(shown, "MESH_CONTEXT=x\n");
    }

    #[test]
    fn a_secret_variable_is_taken_out_whole_whatever_is_in_it() {
        let odd = r#"Vex!ng 7(Ostrich) "x",Lantern9"#;
        let variables = [
            ("MESH_A__PASSWORD", odd),
            ("MESH_B__PASSWORD", "first\nsecond"),
            ("MESH_C__PASSWORD_FILE", odd),
            ("MESH_D__PASSWORD_FILE", "/run/secrets/pg"),
            ("MESH_E__PASSWORD", ""),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            environment(variables.into_iter()),
            "MESH_A__PASSWORD=[redacted]\nMESH_B__PASSWORD=[redacted]\n\
             MESH_C__PASSWORD_FILE=[redacted]\nMESH_D__PASSWORD_FILE=/run/secrets/pg\n\
             MESH_E__PASSWORD=\n"
        );
    }
}
