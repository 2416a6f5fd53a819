//! Failures that pass: at the start of the daemon they are waited for, and said, instead of ending it.
//!
//! A kernel that is short of memory, or a process out of descriptors, may do a moment later what it refuses now.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::reader::REMIND;
use crate::snapshot::Publisher;
use crate::{dataplane, handoff};

/// The first pause; each further one is twice as long, up to [`PAUSE_MOST`].
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MOST: Duration = Duration::from_secs(5);

/// Whether a failure may pass with nothing done about it.
pub(crate) trait Passes: Display {
    /// `false` where only a person can help.
    fn passes(&self) -> bool;
}

impl Passes for dataplane::Error {
    fn passes(&self) -> bool {
        self.is_passing()
    }
}

impl Passes for io::Error {
    fn passes(&self) -> bool {
        self.raw_os_error().is_some_and(dataplane::is_passing)
    }
}

/// Who is told while something is waited for.
#[derive(Clone)]
pub(crate) struct Passing {
    publisher: Publisher,
    subnet_file: PathBuf,
}

impl Passing {
    /// Tells `/readyz`, and the CNI plugin beside this `subnet.env`.
    pub(crate) fn new(publisher: &Publisher, subnet_file: &Path) -> Self {
        Self { publisher: publisher.clone(), subnet_file: subnet_file.to_owned() }
    }

    /// Tries until it works or fails for good. The log has a line at the first failure and then every half minute.
    pub(crate) async fn wait<T, E: Passes>(
        &self,
        step: &str,
        mut attempt: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut pause = PAUSE_FIRST;
        let mut said: Option<Instant> = None;
        loop {
            match attempt().await {
                Err(error) if error.passes() => {
                    let why = format!("{step}: {error}; trying until it works");
                    if said.is_none_or(|at| at.elapsed() >= REMIND) {
                        warn!("cannot {why}");
                        said = Some(Instant::now());
                    }
                    self.publisher.cannot(&why);
                    handoff::explain(&self.subnet_file, Some(&format!("cannot {why}")));
                }
                result => {
                    if said.is_some() && result.is_ok() {
                        info!(step, "succeeded after retries");
                    }
                    return result;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::in_words;

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_waited_for_and_what_may_not_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (publisher, told) = Publisher::new();
        let file = folder.path().join("subnet.env");
        let passing = Passing::new(&publisher, &file);
        let mut errnos = vec![libc::ENOMEM, libc::EMFILE, libc::EINTR, libc::ENOBUFS];
        let mut attempts = 0;
        let result = passing.wait("make the device", async || {
            attempts += 1;
            errnos.pop().map_or(Ok(7), |errno| Err(io::Error::from_raw_os_error(errno)))
        });
        assert_eq!(result.await.unwrap(), 7);
        assert_eq!(attempts, 5);
        let waited = in_words(&told.borrow().missing);
        assert!(waited.contains("this node cannot make the device: ") && waited.contains("os error 12"), "{waited}");
        let denied = async || Err::<(), _>(io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(passing.wait("make the device", denied).await.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
