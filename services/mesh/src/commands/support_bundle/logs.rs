//! What services wrote lately: from the journal, and from files that a person names.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::archive::{Bundle, FILE_MAX};
use super::local::PROGRAMS;
use super::machine;

/// Lines of each unit.
const LINES: &str = "5000";

pub(super) async fn gather(files: &[PathBuf], bundle: &mut Bundle) {
    for (at, path) in files.iter().enumerate() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        bundle.take(&format!("logs/{}-{name}", at + 1), end_of(path));
    }
    if !Path::new("/run/systemd/system").is_dir() {
        bundle.miss(
            "logs of units",
            "this machine does not run systemd; name log files with --log FILE",
        );
        return;
    }
    for program in PROGRAMS {
        let unit = format!("mesh-{program}.service");
        let name = format!("logs/{unit}.log");
        let words = [
            "-u",
            &unit,
            "-n",
            LINES,
            "--no-pager",
            "-q",
            "-o",
            "short-iso",
        ];
        match machine::printed("journalctl", &words).await {
            Ok(lines) if lines.trim().is_empty() => bundle.miss(&name, "the journal has no line"),
            read => bundle.take(&name, read),
        }
    }
}

/// The last lines of a file, whole ones.
fn end_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let found = file.metadata()?;
    ensure!(found.is_file(), "{} is no ordinary file", path.display());
    let skipped = found.len().saturating_sub(FILE_MAX as u64);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    // No more than was there: the file may grow.
    file.take(FILE_MAX as u64).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    if skipped == 0 {
        return Ok(text.into_owned());
    }
    // A line that is cut in two may begin in the middle of a secret, which nobody would recognise.
    let whole = text.split_once('\n').map_or("", |(_, whole)| whole);
    Ok(format!(
        "[{skipped} bytes before this are not shown]\n{whole}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_log_begins_with_a_whole_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let secret = "Vexing7Ostrich4Lantern9";
        let line = format!("{}\n", "y".repeat(99));
        let mut text = format!("first {secret}");
        text.push_str(&"x".repeat(50));
        text.push('\n');
        // The cut falls into the first line, in the middle of the secret.
        while text.len() < FILE_MAX + 10 {
            text.push_str(&line);
        }
        text.truncate(FILE_MAX + 10);
        std::fs::write(&path, &text).expect("written");
        let end = end_of(&path).expect("read");
        assert!(
            end.starts_with("[10 bytes before this are not shown]\nyyy"),
            "{}",
            &end[..80]
        );
        assert!(!end.contains("Lantern9"));
    }

    #[test]
    fn a_short_log_is_whole_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        std::fs::write(&path, b"a\xff\nb").expect("written");
        assert_eq!(end_of(&path).expect("read"), "a\u{fffd}\nb");
        let error = end_of(&dir.path().join("none")).expect_err("not there");
        assert!(error.to_string().contains("none"));
        assert!(end_of(dir.path()).is_err());
    }
}
