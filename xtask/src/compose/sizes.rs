//! What the images weigh and what their labels say.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Engine;
use crate::process::output;

/// One of our images.
struct Image {
    name: &'static str,
    /// What it may weigh at most with programs built for release, in MB (10^6 bytes).
    ceiling: u64,
    /// What may be in it besides our programs, whatever profile they were built with, in MB.
    rest: u64,
}

const IMAGES: &[Image] = &[
    image("coordinator", 37, 4),
    image("relay", 18, 4),
    image("traffic-gateway", 23, 4),
    image("deploy-manager", 88, 4),
    image("worker-agent", 26, 4),
    image("mesh", 56, 4),
    // The day of its Debian may lie some way back, and what was mended since is in it twice.
    image("worker-node", 190, 165),
];

const fn image(name: &'static str, ceiling: u64, rest: u64) -> Image {
    Image {
        name,
        ceiling,
        rest,
    }
}

/// Prints the size of every image; a fault when one is too large, or does not say what it is and
/// which commit it comes from.
pub(super) fn check(engine: &Engine, version: &str, revision: &str, profile: &str) -> Result<()> {
    println!("\n== images (MB)");
    let mut faults = Vec::new();
    for image in IMAGES {
        let tag = format!("wonder-mesh/{}:{version}", image.name);
        let seen = output(engine.docker().args(["image", "inspect", &tag]))?;
        let seen: Value = serde_json::from_str(&seen).context("read what docker inspect says")?;
        let size = seen[0]["Size"].as_u64().context("an image has no size")?;
        let programs = programs(engine, &tag)?;
        println!(
            "{tag:<36} {:>6.1}, of which programs {:>6.1}",
            mb(size),
            mb(programs)
        );
        if profile == "release" && size > image.ceiling * 1_000_000 {
            faults.push(format!("{tag} is above {} MB", image.ceiling));
        }
        if size.saturating_sub(programs) > image.rest * 1_000_000 {
            faults.push(format!(
                "{tag} holds more than {} MB besides programs",
                image.rest
            ));
        }
        let labels = &seen[0]["Config"]["Labels"];
        faults.extend(
            wrong_labels(labels, image.name, version, revision)
                .map(|fault| format!("{tag}: {fault}")),
        );
    }
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}

fn wrong_labels(
    labels: &Value,
    name: &str,
    version: &str,
    revision: &str,
) -> impl Iterator<Item = String> {
    let said = |key: &str| {
        let label = &labels[format!("org.opencontainers.image.{key}")];
        label.as_str().unwrap_or_default().to_owned()
    };
    let wanted = [
        ("title", name),
        ("version", version),
        ("revision", revision),
    ];
    let wrong = wanted.map(|(key, wanted)| (key, said(key), wanted.to_owned()));
    let mut faults: Vec<String> = wrong
        .into_iter()
        .filter(|(_, said, wanted)| said != wanted)
        .map(|(key, said, wanted)| format!("its {key} is {said:?}, not {wanted:?}"))
        .collect();
    for key in ["description", "licenses", "vendor"] {
        if said(key).is_empty() {
            faults.push(format!("it has no {key}"));
        }
    }
    faults.into_iter()
}

/// What the layers with our programs weigh, in bytes.
fn programs(engine: &Engine, tag: &str) -> Result<u64> {
    let mut history = engine.docker();
    history.args(["history", "--no-trunc", "--human=false"]);
    let layers = output(history.args(["--format", "{{.Size}} {{.CreatedBy}}", tag]))?;
    let mut sum = 0;
    for line in layers.lines() {
        if let Some((size, made_by)) = line.split_once(' ')
            && made_by.contains("/out/bin/")
        {
            sum += size.parse::<u64>().context("the size of a layer")?;
        }
    }
    ensure!(sum > 0, "{tag} has no layer with our programs");
    Ok(sum)
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_of_another_commit_or_without_a_title_is_found() {
        let labels = |title: &str, revision: &str| {
            json!({
                "org.opencontainers.image.title": title,
                "org.opencontainers.image.version": "0.1.0",
                "org.opencontainers.image.revision": revision,
                "org.opencontainers.image.description": "x",
                "org.opencontainers.image.licenses": "MIT",
                "org.opencontainers.image.vendor": "x",
            })
        };
        let faults = |labels: &Value| wrong_labels(labels, "relay", "0.1.0", "abc").count();
        assert_eq!(faults(&labels("relay", "abc")), 0);
        assert_eq!(faults(&labels("relay", "abd")), 1);
        assert_eq!(faults(&labels("", "abc")), 1);
        assert_eq!(faults(&json!({})), 6);
    }
}
