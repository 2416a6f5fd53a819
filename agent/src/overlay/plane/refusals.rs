//! The unleased blocks whose senders get an error.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;

/// How long an unleased block is refused before it is asked for again.
pub const REFUSAL_TIME: Duration = Duration::from_secs(60);

/// How many unleased blocks are refused at the most; the oldest goes.
pub const REFUSALS: usize = 1024;

/// The unleased blocks that have an `unreachable` route, bounded in number and time.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    ends: BTreeMap<IpNetwork, Instant>,
    queue: VecDeque<(Instant, IpNetwork)>,
}

impl Refusals {
    pub(super) fn contains(&self, block: &IpNetwork) -> bool {
        self.ends.contains_key(block)
    }

    /// Adds a block; returns the oldest one where there are too many.
    pub(super) fn add(&mut self, block: IpNetwork, now: Instant) -> Option<IpNetwork> {
        let end = now + REFUSAL_TIME;
        self.ends.insert(block, end);
        self.queue.push_back((end, block));
        if self.ends.len() <= REFUSALS {
            return None;
        }
        loop {
            let (end, oldest) = self.queue.pop_front()?;
            if self.ends.get(&oldest) == Some(&end) {
                self.ends.remove(&oldest);
                return Some(oldest);
            }
        }
    }

    /// Drops a block. Says whether it was there.
    pub(super) fn forget(&mut self, block: &IpNetwork) -> bool {
        self.ends.remove(block).is_some()
    }

    /// Drops and returns the blocks whose time is over.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<IpNetwork> {
        let mut ended = Vec::new();
        while let Some((end, block)) = self.queue.front().copied()
            && (end <= now || self.ends.get(&block) != Some(&end))
        {
            self.queue.pop_front();
            if self.ends.get(&block) == Some(&end) {
                self.ends.remove(&block);
                ended.push(block);
            }
        }
        ended
    }

    /// When the next block's time is over.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.queue.front().map(|(end, _)| *end)
    }

    /// The blocks.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &IpNetwork> {
        self.ends.keys()
    }
}
