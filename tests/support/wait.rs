//! Waiting for a state instead of sleeping: polled often, with a limit and a message that says what was last seen.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Short against what a reader notices, long against what a poll costs (most polls run a program).
const INTERVAL: Duration = Duration::from_millis(10);

/// What a poll may return: `bool`, `Option<T>`, or `Result<T, E>` whose error is the last state in the message.
pub trait Outcome {
    /// What the wait returns once it is there.
    type Value;
    /// The value, or why it is not there yet.
    fn settle(self) -> Result<Self::Value, Option<String>>;
}

impl Outcome for bool {
    type Value = ();
    fn settle(self) -> Result<(), Option<String>> {
        if self { Ok(()) } else { Err(None) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn settle(self) -> Result<T, Option<String>> {
        self.ok_or(None)
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;
    fn settle(self) -> Result<T, Option<String>> {
        // `{:#}` prints an anyhow error with its sources.
        self.map_err(|e| Some(format!("{e:#}")))
    }
}

/// Polls until `poll` succeeds and returns its value; after `limit`, an error that names `what` and the last state.
pub fn wait_for<O: Outcome>(what: &str, limit: Duration, mut poll: impl FnMut() -> O) -> anyhow::Result<O::Value> {
    let end = Instant::now() + limit;
    loop {
        match poll().settle() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => {
                let last = last.map(|l| format!("; last seen: {l}")).unwrap_or_default();
                anyhow::bail!("waited {limit:?} in vain for: {what}{last}");
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}

/// [`wait_for`] that panics: what tests use.
#[track_caller]
pub fn wait_until<O: Outcome>(what: &str, limit: Duration, poll: impl FnMut() -> O) -> O::Value {
    match wait_for(what, limit, poll) {
        Ok(value) => value,
        Err(e) => panic!("{e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_value_once_it_is_there() {
        let mut polls = 0;
        let value = wait_until("the third poll", Duration::from_secs(5), || {
            polls += 1;
            (polls == 3).then_some("there")
        });
        assert_eq!((value, polls), ("there", 3));
    }

    #[test]
    fn a_vain_wait_names_what_and_the_last_state() {
        let error = wait_for("rain", Duration::from_millis(1), || Err::<(), _>("sun")).unwrap_err();
        assert_eq!(error.to_string(), "waited 1ms in vain for: rain; last seen: sun");
    }
}
