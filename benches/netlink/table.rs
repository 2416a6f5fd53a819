//! The table that everything ends in: what was measured, what stands beside it, and whether that is good enough.

use std::fmt;
use std::time::Duration;

/// A measured value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value {
    Time(Duration),
    Count(usize),
}

/// How a row's value is to compare with the one beside it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// At most this many times the other's.
    Times(f64),
    /// No more than the other's.
    NoMore,
    /// None at all, whatever the other has.
    Zero,
    /// Shown for comparison only.
    Shown,
}

/// One comparison.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) ours: Value,
    pub(crate) beside: String,
    pub(crate) floor: Value,
    pub(crate) target: Target,
}

impl Value {
    fn number(self) -> f64 {
        match self {
            Self::Time(time) => time.as_secs_f64(),
            Self::Count(count) => count as f64,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Count(count) => count.to_string(),
            Self::Time(time) => {
                let us = time.as_secs_f64() * 1e6;
                match us {
                    ..100.0 => format!("{us:.2} us"),
                    ..1e3 => format!("{us:.0} us"),
                    ..1e5 => format!("{:.2} ms", us / 1e3),
                    _ => format!("{:.0} ms", us / 1e3),
                }
            }
        };
        f.pad(&text)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Times(limit) => f.pad(&format!("<= {limit:.2} x")),
            Self::NoMore => f.pad("no more"),
            Self::Zero => f.pad("none"),
            Self::Shown => f.pad(""),
        }
    }
}

impl Row {
    /// Compares times.
    pub(crate) fn times(work: &str, ours: Duration, beside: &str, floor: Duration, target: Target) -> Self {
        let (ours, floor) = (Value::Time(ours), Value::Time(floor));
        Self { work: work.to_owned(), ours, beside: beside.to_owned(), floor, target }
    }

    /// Compares counts.
    pub(crate) fn counts(work: &str, ours: usize, beside: &str, floor: usize, target: Target) -> Self {
        let (ours, floor) = (Value::Count(ours), Value::Count(floor));
        Self { work: work.to_owned(), ours, beside: beside.to_owned(), floor, target }
    }

    /// `None` where there is no target.
    pub(crate) fn reached(&self) -> Option<bool> {
        let (ours, floor) = (self.ours.number(), self.floor.number());
        match self.target {
            Target::Times(limit) => Some(ours <= limit * floor),
            Target::NoMore => Some(ours <= floor),
            Target::Zero => Some(ours == 0.0),
            Target::Shown => None,
        }
    }

    fn ratio(&self) -> String {
        match (self.ours, self.floor) {
            (Value::Time(ours), Value::Time(floor)) => format!("{:.2} x", ours.as_secs_f64() / floor.as_secs_f64()),
            _ => String::new(),
        }
    }
}

/// Prints a heading and its rows; how many targets were missed.
pub(crate) fn print(heading: &str, rows: &[Row]) -> usize {
    println!("\n{heading}");
    println!("  {:<44}{:>10}  {:<40}{:>10}{:>9}  {:<11}", "", "ours", "beside", "it takes", "ratio", "target");
    let mut work = "";
    for row in rows {
        // What is compared with several things is named once.
        let name = if row.work == work { "" } else { &row.work };
        work = &row.work;
        let verdict = row.reached().map_or("", |reached| if reached { "ok" } else { "MISS" });
        let Row { ours, beside, floor, target, .. } = row;
        println!("  {name:<44}{ours:>10}  {beside:<40}{floor:>10}{:>9}  {target:<11}{verdict}", row.ratio());
    }
    rows.iter().filter(|row| row.reached() == Some(false)).count()
}
