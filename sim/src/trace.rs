//! What happened, as one number and as counts: the same seed must give the same trace.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

/// A running hash of all events, and how many there were of each kind.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    hash: Fnv,
    counts: BTreeMap<&'static str, u64>,
    print: bool,
}

/// FNV-1a, 64 bits: the same on every machine.
#[derive(Debug, Clone, Copy)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}

impl Trace {
    /// A trace that is printed line by line if `print`.
    pub fn new(print: bool) -> Self {
        Self {
            print,
            ..Self::default()
        }
    }

    /// Notes an event. `detail` must not show anything that the seed does not decide, such as
    /// ciphertext.
    #[allow(clippy::print_stdout, reason = "who asks for a trace reads it")]
    pub(crate) fn note(&mut self, at: Duration, kind: &'static str, detail: fmt::Arguments<'_>) {
        let micros = at.as_micros();
        *self.counts.entry(kind).or_default() += 1;
        let _infallible = writeln!(self.hash, "{micros} {kind} {detail}");
        if self.print {
            println!("{:>12.6} {kind:<18} {detail}", at.as_secs_f64());
        }
    }

    /// The hash of everything so far.
    pub fn hash(&self) -> u64 {
        self.hash.0
    }

    /// How many events of each kind.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}
