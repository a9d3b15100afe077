//! The single-dash flags of the first deploy-cli: `-user NAME`, `-pass=VALUE`, `-port`, `-socks`.
//!
//! They are turned into long flags ahead of the verb, before the real parser sees them; behind the
//! verb everything is left alone, since it may belong to a remote command.

use std::ffi::{OsStr, OsString};

const OLD: [(&str, &str); 4] = [
    ("-user", "--user"),
    ("-pass", "--password"),
    ("-port", "--port"),
    ("-socks", "--socks"),
];

/// Long flags that take a value, which must not be mistaken for the verb.
const WITH_VALUE: [&str; 12] = [
    "--user",
    "--password",
    "--port",
    "--socks",
    "--network",
    "--context",
    "--via",
    "--password-file",
    "--identity",
    "--timeout",
    "--parallel",
    "--socks-auth-file",
];

/// Rewrites the old flags ahead of the verb. `args` are without the program's name.
pub fn rewrite(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out = Vec::new();
    while let Some(arg) = args.next() {
        let is_flag = arg.as_encoded_bytes().starts_with(b"-") && arg != "--";
        let (arg, takes_next) = replace(&arg);
        out.push(arg);
        if takes_next {
            out.extend(args.next());
        }
        if !is_flag {
            break;
        }
    }
    out.extend(args);
    out
}

/// The flag as the parser knows it, and whether its value is the next argument.
fn replace(arg: &OsStr) -> (OsString, bool) {
    let Some(text) = arg.to_str() else {
        return (arg.to_owned(), false);
    };
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let new = OLD
        .iter()
        .find(|(old, _)| *old == name)
        .map_or(name, |(_, new)| new);
    match value {
        Some(value) => (format!("{new}={value}").into(), false),
        None => (new.into(), WITH_VALUE.contains(&new)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> String {
        let args = line.split(' ').map(OsString::from);
        let out: Vec<String> = rewrite(args)
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect();
        out.join(" ")
    }

    #[test]
    fn old_flags_ahead_of_the_verb_become_long_ones_and_the_rest_is_left_alone() {
        for (given, expected) in [
            ("-user root status a", "--user root status a"),
            (
                "-user=root -port 2222 status a",
                "--user=root --port 2222 status a",
            ),
            ("-pass=a=b status a", "--password=a=b status a"),
            (
                "-socks localhost:1 --user x exec -user a",
                "--socks localhost:1 --user x exec -user a",
            ),
            ("status -user a", "status -user a"),
            ("exec ls -port", "exec ls -port"),
            ("-user -pass status", "--user -pass status"),
            ("--json -pass x status a", "--json --password x status a"),
            ("-- -user a", "-- -user a"),
            ("-users a", "-users a"),
            ("-h", "-h"),
        ] {
            assert_eq!(rewritten(given), expected);
        }
    }

    #[test]
    fn an_old_flag_without_its_value_at_the_end_is_passed_on_for_the_parser_to_refuse() {
        assert_eq!(rewritten("-user"), "--user");
        assert!(rewrite([]).is_empty());
    }
}
