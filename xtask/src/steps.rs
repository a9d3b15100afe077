//! The steps of a verb that takes minutes, each with its duration.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Prints what took how long.
#[derive(Default)]
pub(crate) struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    /// Does one step; its name is in front of its error.
    pub(crate) fn step<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        println!("-- {name}");
        let begun = Instant::now();
        let done = work().context(name);
        self.0.push((name, begun.elapsed()));
        println!("-- {name}: {:.1} s", begun.elapsed().as_secs_f64());
        done
    }

    /// All of them, at the end.
    pub(crate) fn print(&self) {
        println!("\n== steps");
        for (name, took) in &self.0 {
            println!("{name:<28} {:>7.1} s", took.as_secs_f64());
        }
    }
}
