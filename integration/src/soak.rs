//! What a program holds while it works, and whether that stays flat. `cargo xtask soak` takes the
//! samples; nothing here but [`Sample::of`] looks at the machine.

use std::fs;

use anyhow::Context as _;
use mesh_testkit::flat::{self, Allowance};
use serde::Serialize;

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Memory that is its own (`RssAnon`), in bytes: heap and stacks.
    pub anonymous: u64,
    /// All memory that is in use (`VmRSS`), in bytes: the program's pages too.
    pub resident: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Sample {
    /// Of a running process.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let figure = line.and_then(|rest| rest.split_whitespace().next());
            figure
                .and_then(|figure| figure.parse::<u64>().ok())
                .with_context(|| format!("{name} of {pid}"))
        };
        Ok(Self {
            anonymous: figure("RssAnon:")? * 1024,
            resident: figure("VmRSS:")? * 1024,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            threads: figure("Threads:")?,
        })
    }
}

struct Figure {
    name: &'static str,
    of: fn(&Sample) -> u64,
    allowance: Allowance,
}

/// What must stay flat, and what comes and goes anyway: the allocator keeps or returns a few
/// mebibytes, requests are under way, threads for blocking work end when nothing has blocked for
/// ten seconds. Pages of the program and of files come in when they are first used, so that
/// resident memory is told and not judged.
const FIGURES: [Figure; 3] = [
    Figure {
        name: "anonymous",
        of: |sample| sample.anonymous,
        allowance: Allowance {
            percent: 5,
            besides: 2 << 20,
        },
    },
    Figure {
        name: "descriptors",
        of: |sample| sample.descriptors,
        allowance: Allowance {
            percent: 5,
            besides: 6,
        },
    },
    Figure {
        name: "threads",
        of: |sample| sample.threads,
        allowance: Allowance {
            percent: 0,
            besides: 4,
        },
    },
];

/// How many descriptors more a process may have when all is done than before it began: connections
/// that are kept for the next request, to a node that was not there before.
pub const LEFT_OPEN: u64 = 6;

/// One figure of a process.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    /// Which.
    pub figure: &'static str,
    /// The median of the second quarter.
    pub early: u64,
    /// The median of the last quarter.
    pub late: u64,
    /// The most that `late` may be.
    pub most: u64,
    /// Whether it did not grow.
    pub flat: bool,
}

/// Judges what a process held; nothing when there are too few samples.
pub fn judge(samples: &[Sample]) -> Vec<Judged> {
    let judged = FIGURES.iter().map(|figure| {
        let values: Vec<u64> = samples.iter().map(figure.of).collect();
        let verdict = flat::judge(&values, figure.allowance)?;
        Some(Judged {
            figure: figure.name,
            early: verdict.early,
            late: verdict.late,
            most: verdict.most,
            flat: verdict.is_flat(),
        })
    });
    judged.flatten().collect()
}

/// How somebody was served who used the mesh all the time.
#[derive(Debug, Clone, Serialize)]
pub struct Served {
    /// What they did.
    pub what: &'static str,
    /// How often it succeeded.
    pub done: u64,
    /// How often it did not.
    pub failed: u64,
    /// Why, the last time.
    pub last_failure: Option<String>,
}

impl Served {
    /// Whether it was a load at all: done, and hardly ever refused. On a machine that is busy
    /// otherwise one may take too long.
    pub fn is_good(&self) -> bool {
        self.done > 0 && self.failed * 100 <= self.done
    }
}

/// What became of a process.
#[derive(Debug, Clone, Serialize)]
pub struct Process {
    /// Which.
    pub name: String,
    /// While it worked, oldest first.
    pub samples: Vec<Sample>,
    /// What is said of them.
    pub judged: Vec<Judged>,
    /// Before the work began.
    pub before: Sample,
    /// When it had ended.
    pub after: Sample,
    /// WARN and ERROR in its log.
    pub alarms: Vec<String>,
}

impl Process {
    /// Judges a process.
    pub fn new(name: &str, samples: Vec<Sample>, (before, after): (Sample, Sample)) -> Self {
        Self {
            name: name.to_owned(),
            judged: judge(&samples),
            samples,
            before,
            after,
            alarms: Vec::new(),
        }
    }

    /// What is wrong with it; nothing when it stayed as it was.
    pub fn faults(&self) -> Vec<String> {
        let name = &self.name;
        let mut faults = Vec::new();
        if self.judged.is_empty() {
            faults.push(format!("{name}: too few samples for a verdict"));
        }
        for judged in self.judged.iter().filter(|judged| !judged.flat) {
            faults.push(format!(
                "{name}: {} grew from {} to {}, at most {} are allowed",
                judged.figure, judged.early, judged.late, judged.most
            ));
        }
        let (before, after) = (self.before.descriptors, self.after.descriptors);
        if after > before + LEFT_OPEN {
            faults.push(format!(
                "{name}: {before} descriptors before the work, {after} after it"
            ));
        }
        faults.extend(self.alarms.iter().map(|line| format!("{name}: {line}")));
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STILL: Sample = Sample {
        anonymous: 50 << 20,
        resident: 80 << 20,
        descriptors: 60,
        threads: 12,
    };

    fn faults(change: impl Fn(u64, &mut Sample)) -> Vec<String> {
        let sample = |at| {
            let mut sample = STILL;
            change(at, &mut sample);
            sample
        };
        Process::new("x", (0..120).map(sample).collect(), (STILL, STILL)).faults()
    }

    #[test]
    fn what_comes_and_goes_is_no_fault() {
        let found = faults(|at, sample| {
            sample.anonymous += (at % 7) << 18;
            sample.descriptors += at % 5;
            sample.threads += at % 4;
            // Warming up, and the program's own pages.
            sample.anonymous -= if at < 20 { 30 << 20 } else { 0 };
            sample.resident += at << 20;
        });
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_leak_is_found_by_its_name() {
        // 100 KiB each five seconds; a descriptor each half a minute; a thread a minute.
        let memory = faults(|at, sample| sample.anonymous += at * 100 * 1024);
        assert!(
            memory.len() == 1 && memory[0].contains("anonymous"),
            "{memory:?}"
        );
        let files = faults(|at, sample| sample.descriptors += at / 6);
        assert!(
            files.len() == 1 && files[0].contains("descriptors"),
            "{files:?}"
        );
        let threads = faults(|at, sample| sample.threads += at / 12);
        assert!(
            threads.len() == 1 && threads[0].contains("threads"),
            "{threads:?}"
        );
    }

    #[test]
    fn descriptors_that_stay_when_all_is_done_are_a_fault() {
        let mut process = Process::new("x", vec![STILL; 120], (STILL, STILL));
        process.after.descriptors += LEFT_OPEN;
        assert_eq!(process.faults(), Vec::<String>::new());
        process.after.descriptors += 1;
        assert_eq!(process.faults().len(), 1);
    }

    #[test]
    fn no_verdict_and_no_load_are_no_success() {
        assert_eq!(
            Process::new("x", vec![STILL; 7], (STILL, STILL))
                .faults()
                .len(),
            1
        );
        let mut served = Served {
            what: "x",
            done: 0,
            failed: 0,
            last_failure: None,
        };
        assert!(!served.is_good());
        served.done = 200;
        served.failed = 2;
        assert!(served.is_good());
        served.failed = 3;
        assert!(!served.is_good());
    }

    #[test]
    fn a_process_is_known_by_its_figures() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        let sample = Sample::of(own).expect("figures");
        assert!(sample.anonymous > 0 && sample.resident >= sample.anonymous);
        assert!(sample.descriptors >= 3 && sample.threads >= 1);
        assert!(Sample::of(-1).is_err());
    }
}
