//! Reading what a program finds to be wrong, from what its `status --json` printed.

use anyhow::Context as _;
use mesh_testkit::Finished;
use serde_json::Value;

/// The finding of this word, as `mesh status`, `mesh node show` or the `status` of a service printed
/// it with `--json`; whatever its exit code was.
///
/// # Errors
/// There is none.
pub fn finding(ran: &Finished, code: &str) -> anyhow::Result<Value> {
    let told: Value = serde_json::from_str(&ran.stdout).with_context(|| ran.all())?;
    let places = [&told, &told["status"], &told["node"]];
    let all = places
        .iter()
        .filter_map(|place| place["findings"].as_array());
    let found = all.flatten().find(|finding| finding["code"] == code);
    found
        .cloned()
        .with_context(|| format!("no {code} in {}", ran.all()))
}
