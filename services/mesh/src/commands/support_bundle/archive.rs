//! What is in a bundle, and the file it becomes.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use mesh_daemon::build_info;
use mesh_types::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::redact::Redactor;
use crate::text;

/// The schema of the manifest and of `--json`.
pub(super) const SCHEMA: &str = "mesh.support-bundle/1";
/// The longest file, in bytes.
pub(super) const FILE_MAX: usize = 4 << 20;
/// All files together, in bytes; what comes after is left out, and said to be.
const TOTAL_MAX: usize = 32 << 20;
const CUT: &str = "\n[the rest was cut off]\n";
const READ_ME: &str = "\
What 'mesh support-bundle' gathered; manifest.json lists it, and what could not be had and why.

Secrets were taken out: those that this machine keeps, wherever they stood, and whatever looks like
one. Names, addresses and users were not. Look through it before you send it to anybody.
";

/// What could not be gathered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Missing {
    pub(super) what: String,
    pub(super) why: String,
}

/// One file of it, redacted.
#[derive(Debug)]
struct Entry {
    name: String,
    text: String,
    cut: Option<Cut>,
}

impl Entry {
    /// What the manifest says of it.
    fn listed(&self) -> Value {
        let mut listed = json!({
            "name": self.name,
            "bytes": self.text.len(),
            "sha256": sha256(self.text.as_bytes()),
        });
        if let Some(cut) = &self.cut {
            listed["cut"] = json!(cut);
        }
        listed
    }
}

/// What is left out of a file that was too long.
#[derive(Debug, Serialize)]
struct Cut {
    /// Which part of it is left out: `front` or `end`.
    from: &'static str,
    bytes: usize,
}

/// Keeps the part of a text of `longest` bytes that says most: of what has its newest lines last
/// those, and of everything else the beginning.
fn shortened(name: &str, text: &mut String, longest: usize) -> Option<Cut> {
    if text.len() <= longest {
        return None;
    }
    let is_list = name.ends_with(".jsonl");
    if !is_list && !name.starts_with("logs/") {
        let kept = text.floor_char_boundary(longest);
        let bytes = text.len() - kept;
        text.truncate(kept);
        text.push_str(CUT);
        return Some(Cut { from: "end", bytes });
    }
    // From the first line that is there whole.
    let end = text.len() - longest;
    let newline = text.bytes().skip(end - 1).position(|byte| byte == b'\n');
    let bytes = newline.map_or(text.len(), |at| end + at);
    let cut = Cut {
        from: "front",
        bytes,
    };
    // A list of documents stays one.
    let note = if is_list {
        format!("{}\n", json!({ "cut": cut }))
    } else {
        format!("[{bytes} bytes before this are not shown]\n")
    };
    text.replace_range(..bytes, &note);
    Some(cut)
}

/// A bundle that is being gathered.
#[derive(Debug)]
pub(super) struct Bundle {
    redactor: Redactor,
    entries: Vec<Entry>,
    missing: Vec<Missing>,
    /// The longest file and all of them together, in bytes.
    limits: (usize, usize),
    total: usize,
    taken: usize,
}

/// A bundle that is ready to be written.
#[derive(Debug)]
pub(super) struct Packed {
    /// The compressed archive.
    pub(super) bytes: Vec<u8>,
    pub(super) manifest: Value,
    /// Each file with its size in bytes.
    pub(super) listing: Vec<(String, usize)>,
    pub(super) missing: Vec<Missing>,
    /// How many secrets were taken out.
    pub(super) taken: usize,
}

impl Bundle {
    pub(super) fn new(redactor: Redactor) -> Self {
        Self {
            redactor,
            entries: Vec::new(),
            missing: Vec::new(),
            limits: (FILE_MAX, TOTAL_MAX),
            total: 0,
            taken: 0,
        }
    }

    /// Adds a file. INVARIANT: this is the only way in, and everything is redacted here, its name
    /// too.
    pub(super) fn add(&mut self, name: &str, text: &str) {
        let name = self.redacted(name);
        let mut text = self.redacted(text);
        // After redacting: a secret that is cut in two would not be recognised.
        let (longest, most) = self.limits;
        let cut = shortened(&name, &mut text, longest);
        if self.total + text.len() > most {
            let why = format!("the bundle would be larger than {most} bytes");
            return self.miss(&name, &why);
        }
        self.total += text.len();
        self.entries.push(Entry { name, text, cut });
    }

    /// Adds a JSON document.
    pub(super) fn add_json(&mut self, name: &str, value: &Value) {
        self.add(name, &format!("{value:#}\n"));
    }

    /// Says what could not be gathered.
    pub(super) fn miss(&mut self, what: &str, why: &str) {
        let (what, why) = (self.redacted(what), self.redacted(why.trim()));
        self.missing.push(Missing { what, why });
    }

    /// Adds what was gathered, or says why it was not.
    pub(super) fn take<E: std::fmt::Display>(&mut self, name: &str, gathered: Result<String, E>) {
        match gathered {
            Ok(text) => self.add(name, &text),
            Err(error) => self.miss(name, &format!("{error:#}")),
        }
    }

    fn redacted(&mut self, text: &str) -> String {
        let (text, taken) = self.redactor.redact(text);
        self.taken += taken;
        text
    }

    /// The archive: everything in the directory `root`, readable by its owner only.
    pub(super) fn pack(self, root: &str, made: Timestamp) -> Result<Packed> {
        let files: Vec<Value> = self.entries.iter().map(Entry::listed).collect();
        let manifest = json!({
            "schema": SCHEMA,
            "made_at": text::rfc3339(made.as_micros()),
            "by": build_info::manifest("mesh"),
            "redacted": self.taken,
            "files": files,
            "missing": self.missing,
        });
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let mut put = |name: &str, content: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(u64::try_from(made.as_secs()).unwrap_or_default());
            tar.append_data(&mut header, format!("{root}/{name}"), content.as_bytes())
                .with_context(|| format!("pack {name}"))
        };
        put("README.txt", READ_ME)?;
        put("manifest.json", &format!("{manifest:#}\n"))?;
        for entry in &self.entries {
            put(&entry.name, &entry.text)?;
        }
        let mut gzip = tar.into_inner().context("pack")?;
        gzip.flush().context("pack")?;
        Ok(Packed {
            bytes: gzip.finish().context("compress")?,
            manifest,
            listing: self
                .entries
                .into_iter()
                .map(|entry| (entry.name, entry.text.len()))
                .collect(),
            missing: self.missing,
            taken: self.taken,
        })
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;
    use crate::redact::Secrets;

    const PLANT: &str = "Vexing7Ostrich4Lantern9";

    fn bundle() -> Bundle {
        let mut secrets = Secrets::default();
        secrets.learn_text(PLANT);
        Bundle::new(Redactor::new(&secrets).expect("few"))
    }

    fn unpacked(packed: &Packed) -> BTreeMap<String, String> {
        let plain = flate2::read::GzDecoder::new(&packed.bytes[..]);
        let mut archive = tar::Archive::new(plain);
        let entries = archive.entries().expect("an archive");
        let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.expect("whole");
            assert_eq!(entry.header().mode().expect("a mode"), 0o600);
            let path = entry.path().expect("a path").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            (path, text)
        };
        entries.map(read).collect()
    }

    #[test]
    fn whatever_goes_in_is_redacted_and_listed_with_its_digest() {
        let mut bundle = bundle();
        bundle.add("a.txt", &format!("it said {PLANT}"));
        bundle.miss("b", &format!("refused {PLANT}"));
        bundle.take::<String>(&format!("{PLANT}.txt"), Ok("abc".into()));
        let packed = bundle.pack("root", Timestamp::from_secs(1)).expect("packs");
        let files = unpacked(&packed);
        assert!(
            files.values().all(|text| !text.contains(PLANT)),
            "{files:?}"
        );
        assert!(files.keys().all(|name| !name.contains(PLANT)), "{files:?}");
        assert_eq!(files["root/a.txt"], "it said [redacted]");
        let manifest: Value =
            serde_json::from_str(&files["root/manifest.json"]).expect("a document");
        assert_eq!(manifest["schema"], SCHEMA);
        assert_eq!(manifest["redacted"], 3);
        assert_eq!(manifest["missing"][0]["why"], "refused [redacted]");
        // FIPS 180-4's own example.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(manifest["files"][1]["sha256"], abc);
    }

    #[test]
    fn it_stays_small_and_says_what_is_left_out() {
        let mut bundle = bundle();
        bundle.limits = (1000, 8000);
        let long = "x".repeat(1001);
        for at in 0..9 {
            bundle.add(&format!("{at}.txt"), &long);
        }
        let packed = bundle.pack("root", Timestamp::from_secs(1)).expect("packs");
        let cut = 1000 + CUT.len();
        assert!(packed.listing.iter().all(|(_, bytes)| *bytes == cut));
        assert_eq!((packed.listing.len(), packed.missing.len()), (7, 2));
        assert!(packed.missing[0].why.contains("larger than 8000 bytes"));
        let files = packed.manifest["files"].as_array().expect("a list");
        let cut = json!({ "from": "end", "bytes": 1 });
        assert!(files.iter().all(|file| file["cut"] == cut), "{files:?}");
    }

    #[test]
    fn the_newest_lines_of_a_long_list_are_kept_whole_and_the_manifest_says_what_is_not() {
        let mut bundle = bundle();
        bundle.limits = (1000, 8000);
        let list: String = (1..=40)
            .map(|n| format!("{{\"n\":{n},\"say\":\"{}\"}}\n", "é".repeat(20)))
            .collect();
        bundle.add("events.jsonl", &list);
        bundle.add("short.jsonl", "{\"n\":1}\n");
        let packed = bundle.pack("root", Timestamp::from_secs(1)).expect("packs");
        let files = unpacked(&packed);
        let kept = &files["root/events.jsonl"];
        let lines: Vec<Value> = kept
            .lines()
            .map(|line| serde_json::from_str(line).expect("whole"))
            .collect();
        let numbers: Vec<_> = lines.iter().filter_map(|line| line["n"].as_u64()).collect();
        let first = *numbers.first().expect("some are kept");
        assert!(first > 1);
        assert!(numbers.iter().copied().eq(first..=40), "{numbers:?}");
        assert_eq!(lines.len(), numbers.len() + 1, "one says what was cut");
        let cut = &packed.manifest["files"][0]["cut"];
        assert_eq!(cut["from"], "front");
        let before = |line: &&str| !line.starts_with(&format!("{{\"n\":{first},"));
        let gone: usize = list
            .split_inclusive('\n')
            .take_while(before)
            .map(str::len)
            .sum();
        assert_eq!(cut["bytes"], gone);
        assert_eq!(lines[0]["cut"], *cut);
        assert!(kept.len() > 900, "no more is cut than must be");
        assert_eq!(packed.manifest["files"][1]["cut"], Value::Null);
        assert_eq!(files["root/short.jsonl"], "{\"n\":1}\n");
        for (text, newest) in [
            (format!("{}\nnew\n", "x".repeat(996)), "new\n"),
            ("x".repeat(1001), ""),
        ] {
            let mut log = text.clone();
            let cut = shortened("logs/a.log", &mut log, 1000).expect("too long");
            let gone = text.len() - newest.len();
            assert_eq!(cut.bytes, gone);
            assert_eq!(
                log,
                format!("[{gone} bytes before this are not shown]\n{newest}")
            );
        }
        let mut exact = format!("a\n{}\n", "x".repeat(999));
        shortened("logs/a.log", &mut exact, 1000).expect("too long");
        assert!(
            exact.contains("\nxxx"),
            "a line that is there whole is kept"
        );
    }
}
