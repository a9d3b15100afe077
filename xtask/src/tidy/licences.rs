//! The licences of everything that is built in.

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Findings;
use crate::process;

const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "CDLA-Permissive-2.0",
    "Unlicense",
    "Zlib",
];

/// Crates whose licence asks for more, and why they may stay.
const EXCEPTIONS: &[(&str, &str)] = &[
    // File-level copyleft; drives the browser in tests, part of no binary that is shipped.
    ("webdriver", "MPL-2.0"),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
}

pub(super) fn check(findings: &mut Findings) -> Result<()> {
    let output = process::cargo()
        .args(["metadata", "--format-version", "1"])
        .output()
        .context("run cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("read what cargo metadata prints")?;
    for Package { name, license } in &metadata.packages {
        let license = license.as_deref().unwrap_or("none");
        let excepted = EXCEPTIONS.contains(&(name.as_str(), license));
        if !is_permissive(license) && !excepted {
            findings.fault(format!(
                "{name} has the licence {license}: see CONTRIBUTING, \"A new dependency\""
            ));
        }
    }
    Ok(())
}

/// Whether an SPDX expression leaves a permissive choice. `OR` binds less than `AND`; parentheses
/// only ever hold choices joined by `AND` in what we use, anything else is refused.
fn is_permissive(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    if expression.contains('(') {
        return parts(&expression).iter().all(|part| is_permissive(part));
    }
    expression.split(" OR ").any(|choice| {
        choice
            .split(" AND ")
            .all(|licence| PERMISSIVE.contains(&licence.trim()))
    })
}

/// The operands of the outermost `AND`s, without their parentheses; none when there is something
/// else outside of the parentheses.
fn parts(expression: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_u32;
    for word in expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .split_whitespace()
    {
        match word {
            "(" => depth += 1,
            ")" => depth = depth.saturating_sub(1),
            "AND" if depth == 0 => parts.push(String::new()),
            "OR" if depth == 0 => return vec!["unreadable".to_owned()],
            word => {
                let part = parts.last_mut().expect("there is always one");
                part.push(' ');
                part.push_str(word);
            }
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_permissive_choice_is_enough_and_every_duty_counts() {
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "MIT OR LGPL-2.1-or-later",
            "Apache-2.0 AND ISC",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        ] {
            assert!(is_permissive(good), "{good}");
        }
        for bad in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "none",
            "(MIT OR ISC) AND GPL-3.0",
            "(MIT) OR X",
        ] {
            assert!(!is_permissive(bad), "{bad}");
        }
    }
}
