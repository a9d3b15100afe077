//! Takes secrets out of text that is to be shown to somebody else: the one redactor, which
//! everything that leaves a machine for support goes through.
//!
//! It works in two ways at once. *Learned* secrets are those of this machine, read from where they
//! are kept ([`Secrets`]): they are found wherever they stand, without anything around them, also
//! as hexadecimal, base64, a list of numbers or escaped. *Patterns* know what secrets of others look
//! like: private keys, join tokens, passwords in URLs, `Authorization` and cookies, settings whose
//! name says that they are secret. What neither knows stays, so a person looks before sending.

use std::fmt;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use mesh_daemon::REDACTED;
use mesh_types::JoinToken;
use regex::{Captures, Regex};
use zeroize::Zeroizing;

/// This much of a long secret tells it, and is found also where the rest was cut off.
const ENOUGH: usize = 12;
/// A shorter text is too likely to be an ordinary word somewhere.
const SHORTEST: usize = 8;
/// A word of this length in a file of keys is a key, or a part of one.
const WORD: usize = 16;
/// A P-256 private key in PKCS#8 (RFC 5208): its number stands here (RFC 5915), behind what is the
/// same in every such key.
const P256_NUMBER: Range<usize> = 36..68;

/// A longer text is looked for by its beginning and its words only.
const LONGEST: usize = 4096;
/// As much of a secret that is cut off is followed, in characters, whatever they are.
const FOLLOWED: usize = 128;

/// Where the characters of a join token stand that are its secret and nothing else.
const TOKEN_SECRET: Range<usize> = 74..110;

/// Whether the name of a setting, variable or field says that its value is secret.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['-', '.', ' '], "_");
    let words = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "master_key",
        "private_key",
        "privatekey",
        "preshared",
        "api_key",
        "apikey",
        "credential",
        "permit",
        "cookie",
        "authorization",
        "otlp_headers",
        "tls_key",
        "server__tls__key",
    ];
    words.iter().any(|word| name.contains(word)) || name == "key" || name.ends_with("__key")
}

/// The secrets of this machine, in every form in which one could be printed; wiped when dropped.
#[derive(Default)]
pub(crate) struct Secrets {
    /// Whole secrets, as regular expressions.
    whole: Vec<Zeroizing<String>>,
    /// Those of their beginnings.
    forms: Vec<Zeroizing<String>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("whole", &self.whole.len())
            .field("forms", &self.forms.len())
            .finish()
    }
}

impl Secrets {
    /// A secret that is text, such as a password. One too short to be told from other words is only
    /// found by its name.
    pub(crate) fn learn_text(&mut self, secret: &str) {
        let secret = secret.trim();
        if secret.len() < SHORTEST {
            return;
        }
        let tail = if secret.len() < ENOUGH {
            ""
        } else {
            "[A-Za-z0-9+/=_.~-]*"
        };
        if secret.len() <= LONGEST {
            for form in escaped(secret) {
                self.add_whole(format!("{}{tail}", regex::escape(&form)));
            }
        }
        if secret.len() < ENOUGH {
            return;
        }
        let (short, rest) = secret.split_at(secret.floor_char_boundary(ENOUGH));
        let mut form = Zeroizing::new(regex::escape(short));
        // Cut off anywhere: what follows is a part of it for as long as it is the same.
        let mut followed = 0;
        for next in rest.chars().take(FOLLOWED) {
            form.push_str("(?:");
            form.push_str(&regex::escape(next.encode_utf8(&mut [0; 4])));
            followed += 1;
        }
        form.push_str(&")?".repeat(followed));
        form.push_str(tail);
        self.add(std::mem::take(&mut *form));
        self.learn_bytes(secret.as_bytes());
    }

    /// A secret of bytes, such as a key.
    pub(crate) fn learn_bytes(&mut self, secret: &[u8]) {
        let Some(short) = secret.get(..ENOUGH) else {
            return;
        };
        let hex: String = short.iter().map(|byte| format!("{byte:02x}")).collect();
        self.add(format!("(?i:{hex}[0-9a-f]*)"));
        let list: Vec<String> = short.iter().map(u8::to_string).collect();
        self.add(format!("{}(?:, ?[0-9]+)*", list.join(", ?")));
        if secret.len() <= LONGEST {
            self.add_whole(regex::escape(&secret.escape_ascii().to_string()));
        }
        self.add(format!(
            "{}[!#-~]*",
            regex::escape(&short.escape_ascii().to_string())
        ));
        // Twelve bytes are whole groups of base64: the same whatever follows.
        for encoded in [STANDARD_NO_PAD.encode(short), URL_SAFE_NO_PAD.encode(short)] {
            self.add(format!("{}[A-Za-z0-9+/=_-]*", regex::escape(&encoded)));
        }
    }

    /// Everything secret in a file of keys, passwords or tokens: its lines, its words, and what they
    /// are the base64 or the hexadecimal digits of.
    pub(crate) fn learn_file(&mut self, content: &[u8]) {
        let Ok(text) = std::str::from_utf8(content) else {
            self.learn_der(content);
            return;
        };
        let mut lines: Vec<&str> = text.lines().map(str::trim).collect();
        if let [line] = lines[..] {
            self.learn_text(line);
        }
        // The frame of PEM, and what old keys say of themselves (RFC 1421).
        lines.retain(|line| !line.starts_with("-----") && !line.contains(": "));
        let in_key = |c: char| c.is_ascii_alphanumeric() || "+/=_-.".contains(c);
        let words = lines
            .iter()
            .flat_map(|line| line.split(|c: char| !in_key(c)))
            .filter(|word| word.len() >= WORD);
        for word in words {
            // What all tokens of an installation have in common is no secret.
            if let Ok(token) = word.parse::<JoinToken>() {
                self.learn_bytes(&token.secret);
                let thirds = TOKEN_SECRET.step_by(ENOUGH);
                let thirds = thirds.filter_map(|at| word.get(at..at + ENOUGH));
                thirds.for_each(|third| self.learn_text(third));
                continue;
            }
            self.learn_text(word);
            self.learn_encoded(word);
        }
        if text.contains("PRIVATE KEY-----") {
            self.learn_encoded(&lines.concat());
        }
    }

    /// What a text stands for, when it is base64 or hexadecimal.
    fn learn_encoded(&mut self, text: &str) {
        if let Some(bytes) = unhex(text) {
            self.learn_bytes(&bytes);
            return;
        }
        let Ok(bytes) = STANDARD.decode(text).map(Zeroizing::new) else {
            return;
        };
        self.learn_der(&bytes);
    }

    /// Bytes that may be a key in PKCS#8, whose head is the same for all: its number is the secret.
    fn learn_der(&mut self, bytes: &[u8]) {
        match bytes.get(P256_NUMBER) {
            Some(number) if bytes.starts_with(&[0x30, 0x81]) => self.learn_bytes(number),
            _ => self.learn_bytes(bytes),
        }
    }

    fn add(&mut self, form: String) {
        if !self.forms.iter().any(|known| **known == form) {
            self.forms.push(Zeroizing::new(form));
        }
    }

    fn add_whole(&mut self, form: String) {
        if !self.whole.iter().any(|known| **known == form) {
            self.whole.push(Zeroizing::new(form));
        }
    }
}

/// A text as it is, and as it stands in quotes in JSON, TOML, and what Rust prints for debugging.
fn escaped(text: &str) -> Vec<Zeroizing<String>> {
    let json = Zeroizing::new(serde_json::Value::from(text).to_string());
    let in_json = &json[1..json.len() - 1];
    // A document in the text of another.
    let twice = Zeroizing::new(serde_json::Value::from(in_json).to_string());
    [
        text.to_owned(),
        in_json.to_owned(),
        twice[1..twice.len() - 1].to_owned(),
        text.escape_debug().to_string(),
        text.as_bytes().escape_ascii().to_string(),
    ]
    .map(Zeroizing::new)
    .into()
}

fn unhex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits || !text.len().is_multiple_of(2) {
        return None;
    }
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    let bytes: Result<Vec<u8>, _> = pairs.map(|pair| u8::from_str_radix(pair, 16)).collect();
    bytes.ok().map(Zeroizing::new)
}

/// What secrets look like, and what is left of them. `$1` is kept.
const PATTERNS: &[&str] = &[
    // Private keys in PEM (RFC 7468), whole, cut off at the end, or at the beginning. Line ends may
    // be escaped, as in JSON.
    r"()-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?s:.*?)-----END [A-Z0-9 ]*PRIVATE KEY-----",
    r"()-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(?:[A-Za-z0-9+/=:,\s-]|\\[nr])+",
    r"()(?:[A-Za-z0-9+/=]{1,76}(?:\s|\\[nr])+)+-----END [A-Z0-9 ]*PRIVATE KEY-----",
    // The same without its frame: PKCS#8, and OpenSSH's own form.
    r"()\bMI[A-Za-z0-9+/]{2}AgEAM[A-Za-z0-9+/=_-]{20,}",
    r"()\bMC[A-Za-z0-9+/]{2}AQAwBQYDK2V[A-Za-z0-9+/=_-]{20,}",
    r"()\bb3BlbnNzaC1rZXktdj[A-Za-z0-9+/=_-]{20,}",
    r"(mesh1\.)[A-Za-z0-9_.=-]+",
    // JSON Web Tokens (RFC 7519).
    r"()\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
    // Passwords in URLs (RFC 3986, 3.2.1), up to the last @ of the word.
    r#"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@"']*:)[^\s"'<>]*(?P<rest>@)"#,
    r#"([?&](?i:access_token|token|key|api_key|password|passwd|pass|secret|auth|authorization|sig|signature|code|session|permit)=)[^&\s"'#]+"#,
    // Whole header fields: schemes and attributes are many.
    r#"((?i:\b(?:proxy-)?authorization|\bset-cookie|\bcookie)\\?["']?\s*[:=]\s*\\?["']?)[^\r\n"']+"#,
    r"((?i:\b(?:bearer|basic|digest|negotiate))(?:\s+|%20|\+))[A-Za-z0-9._~+/=%-]{16,}",
    r#"(\s--?(?i:pass|password|permit|token|secret|auth)(?:\s+|=))[^\s"']+"#,
];

/// `name = value`, `"name": "value"`, `NAME=value`: the value may be text in quotes, or a word.
const SETTING: &str = r#"(?P<name>[A-Za-z][A-Za-z0-9_.-]*)(?P<is>\\?["']?\s*[:=]\s*)(?P<value>"""(?s:.*?)"""|'''(?s:.*?)'''|\\"[^"\\]*\\"|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|(?:\[redacted\]|[^\s"',;}\]\[{(])+)"#;

/// Takes secrets out of text.
pub(crate) struct Redactor {
    /// Whole secrets and their beginnings.
    learned: Vec<Regex>,
    patterns: Vec<Regex>,
    setting: Regex,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor([redacted])")
    }
}

impl Redactor {
    /// One that knows these secrets, and what others look like.
    ///
    /// # Errors
    /// When there are too many secrets.
    pub(crate) fn new(secrets: &Secrets) -> anyhow::Result<Self> {
        let mut learned = Vec::new();
        for forms in [&secrets.whole, &secrets.forms] {
            if !forms.is_empty() {
                learned.push(any_of(forms)?);
            }
        }
        let pattern = |text: &&str| Regex::new(text).expect("a pattern of ours");
        Ok(Self {
            learned,
            patterns: PATTERNS.iter().map(pattern).collect(),
            setting: Regex::new(SETTING).expect("a pattern of ours"),
        })
    }

    /// The text without what is known, and how many places were taken out. Where a secret and the
    /// beginning of another lie over each other, all of both goes.
    fn without_learned(&self, text: &str) -> (String, usize) {
        let found = self.learned.iter().flat_map(|known| known.find_iter(text));
        let mut spans: Vec<Range<usize>> = found.map(|found| found.range()).collect();
        spans.sort_by_key(|span| span.start);
        spans.dedup_by(|next, last| {
            let is_over = next.start < last.end;
            if is_over {
                last.end = last.end.max(next.end);
            }
            is_over
        });
        let mut left = String::with_capacity(text.len());
        let mut at = 0;
        for span in &spans {
            left.push_str(&text[at..span.start]);
            left.push_str(REDACTED);
            at = span.end;
        }
        left.push_str(&text[at..]);
        (left, spans.len())
    }

    /// The text without secrets, and how many places were taken out.
    pub(crate) fn redact(&self, text: &str) -> (String, usize) {
        let (mut text, mut taken) = self.without_learned(text);
        for pattern in &self.patterns {
            text = replace(pattern, &text, |found| {
                let rest = found.name("rest").map_or("", |rest| rest.as_str());
                if found[0].strip_prefix(&found[1]) == Some(&format!("{REDACTED}{rest}")) {
                    return found[0].to_owned();
                }
                taken += 1;
                format!("{}{REDACTED}{rest}", &found[1])
            });
        }
        text = replace(&self.setting, &text, |found| {
            let (name, is, value) = (&found["name"], &found["is"], &found["value"]);
            if !is_secret_name(name) || is_no_secret(name, value) {
                return found[0].to_owned();
            }
            taken += 1;
            // A document stays one.
            let quotes = ["\\\"", "\"", "'"];
            let quote = quotes.iter().find(|quote| value.starts_with(**quote));
            let quote = quote.copied().unwrap_or_default();
            format!("{name}{is}{quote}{REDACTED}{quote}")
        });
        (text, taken)
    }
}

/// What finds any of these, the longest first: one that is the beginning of another would leave the
/// rest of it.
fn any_of(forms: &[Zeroizing<String>]) -> anyhow::Result<Regex> {
    let mut forms: Vec<&str> = forms.iter().map(|form| form.as_str()).collect();
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    let all = Zeroizing::new(forms.join("|"));
    let built = regex::RegexBuilder::new(&all)
        .unicode(false)
        // A secret that is followed is as many groups in each other, of three levels each.
        .nest_limit(4 * u32::try_from(FOLLOWED).expect("small"))
        .size_limit(1 << 28)
        // With less it forgets what it has compiled over and over, and takes minutes for a megabyte.
        .dfa_size_limit(1 << 27)
        .build();
    // Its own text would show what it was built from.
    built.map_err(|_| anyhow::anyhow!("too many secrets to look for"))
}

fn replace(pattern: &Regex, text: &str, with: impl FnMut(&Captures<'_>) -> String) -> String {
    pattern.replace_all(text, with).into_owned()
}

/// Values that say nothing although the name promises a secret: numbers, switches, what is
/// redacted already, and the path of a file that holds one.
fn is_no_secret(name: &str, value: &str) -> bool {
    let bare = value.trim_matches(|c| "\\\"'".contains(c));
    let is_word = ["", "true", "false", "null", "none", "-"].contains(&bare);
    let is_count = bare.len() < 10 && bare.bytes().all(|byte| byte.is_ascii_digit());
    // Equal, not containing: a part of a secret may have been taken out, with the rest still there.
    bare == REDACTED || is_word || is_count || is_path_of_secret(name, bare)
}

/// Whether this setting names the file of a secret, as `password_file` does.
pub(crate) fn is_path_of_secret(name: &str, value: &str) -> bool {
    let is_path = value.starts_with(['/', '.', '~']) || value.contains('/') && !value.contains('=');
    is_path && name.to_ascii_lowercase().ends_with("file")
}

#[cfg(test)]
mod tests;
