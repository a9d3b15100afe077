//! Secrets, every form in which one could be printed, and the search for them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// How much of a long secret is enough to tell it: nothing that is no secret has these bytes.
const ENOUGH: usize = 12;

/// Everything that nobody may ever print.
#[derive(Debug, Default)]
pub(crate) struct Markers(Vec<(String, String)>);

impl Markers {
    /// A secret that is text: as it is, and as a program would print its bytes.
    pub(crate) fn text(&mut self, name: &str, secret: &str) {
        assert!(secret.len() >= ENOUGH, "{name} is too short to be searched");
        self.add(name, secret.to_owned());
        self.bytes(name, secret.as_bytes());
    }

    /// A secret of bytes, in every usual spelling.
    pub(crate) fn bytes(&mut self, name: &str, secret: &[u8]) {
        let short = &secret[..ENOUGH];
        let hex: String = short.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{short:?}");
        self.add(name, hex.to_uppercase());
        self.add(name, hex);
        // `Debug` of bytes, alone and as the beginning of a longer list.
        self.add(name, list.trim_matches(['[', ']']).to_owned());
        self.add(name, short.escape_ascii().to_string());
        // The whole groups of base64 only: the rest depends on what follows.
        self.add(name, STANDARD_NO_PAD.encode(short));
        self.add(name, URL_SAFE_NO_PAD.encode(short));
    }

    /// A P-256 private key: its PKCS#8 DER (RFC 5208) and the number in it (RFC 5915).
    pub(crate) fn p256(&mut self, name: &str, der: &[u8]) {
        let text = STANDARD_NO_PAD.encode(der);
        // The head is the same for every such key.
        self.add(name, text[48..80].to_owned());
        self.bytes(name, &der[36..68]);
    }

    /// A private key in PEM or OpenSSH's form, whose first `public` lines tell nothing.
    pub(crate) fn pem(&mut self, name: &str, pem: &str, public: usize) {
        let body = pem.lines().filter(|line| !line.starts_with("-----"));
        let secret: Vec<&str> = body.skip(public).filter(|line| line.len() > 40).collect();
        assert!(!secret.is_empty(), "{name} has no lines");
        for line in secret {
            self.add(name, line[..40].to_owned());
        }
    }

    fn add(&mut self, name: &str, form: String) {
        let known = self.0.iter().any(|(_, other)| *other == form);
        if !known {
            self.0.push((name.to_owned(), form));
        }
    }

    /// What of it a text tells: the secret's name, and the line.
    pub(crate) fn found_in(&self, text: &str) -> Vec<String> {
        let told = |line: &str| {
            let of = self.0.iter().find(|(_, form)| line.contains(form.as_str()));
            of.map(|(name, _)| format!("{name}: {line}"))
        };
        text.lines().filter_map(told).collect()
    }

    /// Fails unless the search finds each secret, in each of its forms, in a line like this one.
    #[track_caller]
    pub(crate) fn assert_search_works(&self, line: &str) {
        assert_eq!(self.found_in(line), Vec::<String>::new(), "a clean line");
        for (name, form) in &self.0 {
            let planted = format!("{line}\n{line} detail=\"{form}\"\n{line}");
            let found = self.found_in(&planted);
            assert_eq!(found.len(), 1, "{name} as {form:?} was not found");
        }
    }

    /// A secret that is text, by its name.
    pub(crate) fn of(&self, name: &str) -> &str {
        let mut of = self.forms().filter(|(known, _)| *known == name);
        of.next().expect("a secret of that name").1
    }

    /// Each secret's name with each of its forms.
    pub(crate) fn forms(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, form)| (name.as_str(), form.as_str()))
    }

    /// How many forms are searched.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
