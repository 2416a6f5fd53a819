//! The loop's clock: tokio's, which a test can move.

use std::time::Instant;

/// The time now.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
