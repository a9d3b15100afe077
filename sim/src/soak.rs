//! A soak: a long life under load, and a verdict on whether memory stayed flat.

use std::fmt;
use std::time::{Duration, Instant};

use crate::flat::{self, Allowance, Verdict};
use crate::planted::Bug;
use crate::run;
use crate::trace::Trace;
use crate::world::{Census, World};

/// Bytes that are in use on the heap of the calling thread, and in how many pieces.
pub type Gauge = fn() -> (i64, i64);

/// How a soak is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Where everything follows from.
    pub seed: u64,
    /// The fault that is planted.
    pub bug: Option<Bug>,
    /// How long the world lives, by its own clock.
    pub span: Duration,
}

/// What was held at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// By the world's clock.
    pub at: Duration,
    /// On the heap, for each node.
    pub bytes: u64,
    /// Pieces of it, for each node.
    pub blocks: u64,
    /// What there was.
    pub census: Census,
}

/// What became of a soak.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What was found besides growth.
    pub failure: Option<String>,
    /// Oldest first.
    pub samples: Vec<Sample>,
    /// By figure; empty when there were too few samples.
    pub verdicts: Vec<(&'static str, Verdict)>,
    /// How many events there were.
    pub events: u64,
    /// How long it took.
    pub took: Duration,
}

/// Of the heap for each node: what tables have to spare, and flows that nobody closed. Those rest
/// for 2 h 4 min (RFC 5382) before they are forgotten, longer than a soak lasts, so that their
/// number is told and not judged; the bounds of every life hold for it.
const BYTES: Allowance = Allowance {
    percent: 15,
    besides: 0,
};
const FLOWS: &str = "flows";
/// Of what there is: what is under way at the moment of a sample.
const SIZES: Allowance = Allowance {
    percent: 10,
    besides: 8,
};

/// Runs one.
pub fn run(options: Options, gauge: Gauge) -> Outcome {
    let begun = Instant::now();
    let (before, pieces_before) = gauge();
    let start = run::start();
    let trace = Trace::new(false);
    let keys = run::identities();
    let mut world = World::for_soak(options.seed, options.bug, trace, start, keys);
    let mut samples: Vec<Sample> = Vec::with_capacity(64);
    let failure = run::watched(|| {
        world.soak(options.span, |at, census| {
            let (bytes, blocks) = gauge();
            let each = |whole: i64| u64::try_from(whole).unwrap_or(0) / census.nodes.max(1);
            samples.push(Sample {
                at,
                bytes: each(bytes - before),
                blocks: each(blocks - pieces_before),
                census,
            });
        });
    });
    Outcome {
        failure,
        verdicts: verdicts(&samples),
        samples,
        events: world.trace().counts().values().sum(),
        took: begun.elapsed(),
    }
}

fn verdicts(samples: &[Sample]) -> Vec<(&'static str, Verdict)> {
    let Some(first) = samples.first() else {
        return Vec::new();
    };
    let judge = |name: &'static str, of: &dyn Fn(&Sample) -> u64, allowance| {
        let figures: Vec<u64> = samples.iter().map(of).collect();
        Some((name, flat::judge(&figures, allowance)?))
    };
    let heap = [
        judge("heap bytes a node", &|sample| sample.bytes, BYTES),
        judge("heap pieces a node", &|sample| sample.blocks, BYTES),
    ];
    let sizes = first.census.sizes.iter().enumerate();
    let sizes = sizes.filter(|(_, (name, _))| *name != FLOWS);
    let sizes =
        sizes.map(|(at, &(name, _))| judge(name, &|sample| sample.census.sizes[at].1, SIZES));
    heap.into_iter().chain(sizes).flatten().collect()
}

impl Outcome {
    /// Whether nothing was found.
    pub fn is_good(&self) -> bool {
        self.failure.is_none() && !self.verdicts.is_empty() && self.growing().next().is_none()
    }

    /// The figures that grew.
    pub fn growing(&self) -> impl Iterator<Item = &(&'static str, Verdict)> {
        self.verdicts
            .iter()
            .filter(|(_, verdict)| !verdict.is_flat())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.samples.first() else {
            return writeln!(f, "no sample was taken");
        };
        write!(
            f,
            "{:>8} {:>6} {:>10} {:>8}",
            "minutes", "nodes", "bytes/node", "pieces"
        )?;
        for (name, _) in &first.census.sizes {
            write!(f, " {name:>width$}", width = name.len().max(6))?;
        }
        writeln!(f)?;
        for sample in &self.samples {
            write!(
                f,
                "{:>8} {:>6} {:>10} {:>8}",
                sample.at.as_secs() / 60,
                sample.census.nodes,
                sample.bytes,
                sample.blocks
            )?;
            for (name, size) in &sample.census.sizes {
                write!(f, " {size:>width$}", width = name.len().max(6))?;
            }
            writeln!(f)?;
        }
        for (name, verdict) in &self.verdicts {
            let Verdict { early, late, most } = verdict;
            let word = if verdict.is_flat() { "flat" } else { "GROWS" };
            writeln!(f, "{name:>20}: {early} -> {late}, at most {most}: {word}")?;
        }
        Ok(())
    }
}
