//! How long to wait before the next try. Pure but for the random numbers; whoever waits does the waiting.

use std::time::Duration;

use rand::Rng;

/// The wait after the first failure.
pub const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(5);

/// Waits that double from [`FIRST`] to [`LONGEST`], each shortened at random by up to a half, so that the nodes that lost
/// the store together don't come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Backoff {
    /// With another longest wait.
    pub fn up_to(longest: Duration) -> Self {
        Self { next: FIRST, longest }
    }

    /// The wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        self.failed_with(&mut rand::rng())
    }

    /// The same, with random numbers of the caller's.
    pub fn failed_with(&mut self, random: &mut impl Rng) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait.mul_f64(random.random_range(0.5..=1.0))
    }

    /// It worked: the next failure is a first one.
    pub fn worked(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let (mut backoff, mut random) = (Backoff::default(), SmallRng::seed_from_u64(1));
        let mut full = FIRST;
        for _ in 0..20 {
            let wait = backoff.failed_with(&mut random);
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(LONGEST);
        }
        assert_eq!(full, LONGEST);
        backoff.worked();
        assert!(backoff.failed_with(&mut random) <= FIRST);
    }
}
