//! What the targets share.
//!
//! A target is a program of its own in `fuzz_targets/`: it says in its first lines what must hold
//! for any input, and it asserts that. Beside that it has
//!
//! - **a planted bug**: a fault of the kind that the target is there to find, put between the
//!   parser and the assertions, never into the product. `cargo xtask fuzz --planted` turns it on
//!   ([`planted`]) and expects the target to fail; so nobody has to believe that it can.
//! - **seeds** ([`seeds`]): inputs that the product's own encoders made, so that the fuzzer begins
//!   behind the first checks. `cargo xtask fuzz --write-seeds` writes them to `corpus/<target>`.
//!   Inputs that once found something are put beside them by hand, with a name that says what.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Set by `cargo xtask fuzz --planted`.
const PLANTED: &str = "MESH_FUZZ_PLANTED";
/// Set by `cargo xtask fuzz --write-seeds`: the directory to write to.
const SEEDS: &str = "MESH_FUZZ_SEEDS";

/// Whether the target's planted bug is on.
pub fn planted() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os(PLANTED).is_some())
}

/// Writes the seeds and ends the process, when that is what it was started for.
///
/// # Panics
/// The directory cannot be written to.
pub fn seeds<const N: usize>(make: impl FnOnce() -> [(&'static str, Vec<u8>); N]) {
    let Some(dir) = std::env::var_os(SEEDS).map(PathBuf::from) else {
        return;
    };
    std::fs::create_dir_all(&dir).expect("the directory for the seeds can be made");
    for (name, bytes) in make() {
        std::fs::write(dir.join(name), bytes).expect("a seed can be written");
    }
    std::process::exit(0);
}

/// One step of an input that is a sequence of them.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What is to be done; each target has its own meaning for the bits.
    pub what: u8,
    /// How often, how long, where: as the target likes.
    pub number: u8,
    /// With what.
    pub bytes: &'a [u8],
}

/// An input as a sequence of steps: `what`, `number`, length (2 bytes, big-endian), bytes. The last
/// one may be cut off, so that any input is one.
#[derive(Debug, Clone, Copy)]
pub struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    /// Most steps that are taken; a longer input is no better.
    pub const MAX: usize = 256;

    /// The steps of `input`.
    pub fn new(input: &'a [u8]) -> impl Iterator<Item = Step<'a>> {
        Self(input).take(Self::MAX)
    }

    /// The input that these steps are.
    pub fn write<'b>(steps: impl IntoIterator<Item = (u8, u8, &'b [u8])>) -> Vec<u8> {
        let mut out = Vec::new();
        for (what, number, bytes) in steps {
            let length = u16::try_from(bytes.len()).expect("a step is shorter than 64 KiB");
            out.extend_from_slice(&[what, number]);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(bytes);
        }
        out
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        let (&[what, number, high, low], rest) = self.0.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        self.0 = rest;
        Some(Step {
            what,
            number,
            bytes,
        })
    }
}
