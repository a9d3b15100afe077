//! What a program finds to be wrong.

use mesh_types::{Finding, Severity};

/// One of these has this word, is so bad, and says this, with this in its next command.
///
/// # Panics
/// When none does.
#[track_caller]
pub fn assert_found(found: &[Finding], code: &str, severity: Severity, what: &str, next: &str) {
    let finding = found
        .iter()
        .find(|finding| finding.code == code)
        .unwrap_or_else(|| panic!("no {code} in {found:?}"));
    assert_eq!(finding.severity, severity, "{code}");
    assert!(finding.what.contains(what), "{code}: {}", finding.what);
    assert!(finding.next.contains(next), "{code}: {}", finding.next);
}
