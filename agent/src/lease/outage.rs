//! Failures of the store while a node gets its lease.

use crate::store::Error;
use crate::store::backoff::Backoff;

/// Failures in a row: waits between tries, one line in the log when they begin and one when they end.
pub(super) struct Outage<'a> {
    tell: Tell<'a>,
    backoff: Backoff,
    /// What was logged, while it lasts.
    logged: Option<String>,
    /// Whether etcd answered the last request with a refusal.
    pub(super) is_refusal: bool,
    /// How many requests have failed so far.
    pub(super) failures: u64,
}

/// What happens while a node looks for a subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The store fails, for this reason. Tries go on.
    StoreFails(&'a str),
    /// The store works again.
    StoreWorks,
    /// The search does not aim at the node's previous subnet, for this reason: no pod may have an address of it.
    PreviousGivenUp(&'a str),
}

/// Who is told of it.
pub type Tell<'a> = &'a (dyn Fn(Progress<'_>) + Sync);

impl<'a> Outage<'a> {
    pub(super) fn new(tell: Tell<'a>) -> Self {
        Self { tell, backoff: Backoff::default(), logged: None, is_refusal: false, failures: 0 }
    }

    /// Tries until it works. Only for what may be done twice.
    pub(super) async fn retry<T, F>(&mut self, step: &str, attempt: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            match attempt().await {
                Ok(answer) => {
                    self.worked();
                    return answer;
                }
                Err(error) => self.failed(step, &error).await,
            }
        }
    }

    pub(super) async fn failed(&mut self, step: &str, error: &Error) {
        self.failures += 1;
        self.is_refusal = !error.is_transient();
        if self.logged.is_none() || (self.is_refusal && self.logged.as_deref() != Some(error.reason.as_str())) {
            tracing::warn!(step, %error, "etcd fails while this node gets its lease; retrying");
            self.logged = Some(error.reason.clone());
            self.tell(Progress::StoreFails(&error.to_string()));
        }
        tokio::time::sleep(self.backoff.failed()).await;
    }

    pub(super) fn worked(&mut self) {
        self.backoff.worked();
        self.is_refusal = false;
        if self.logged.take().is_some() {
            tracing::info!("etcd works again");
            self.tell(Progress::StoreWorks);
        }
    }

    pub(super) fn tell(&self, progress: Progress<'_>) {
        (self.tell)(progress);
    }
}
