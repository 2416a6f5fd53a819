//! What repeats is counted: the first few lines of a kind are said, the others come to one line with their number.
//!
//! For lines that others can bring about as often as they like, by writing to etcd or by changing the kernel.

use std::time::{Duration, Instant};

/// The first pause, unless it is a minute from the start.
const FIRST_COUNT: Duration = Duration::from_secs(1);
/// The longest time between two counts while it goes on.
const LONGEST: Duration = Duration::from_secs(60);
/// The window, likewise.
const WINDOW: Duration = Duration::from_secs(10);

/// The lines of one kind.
///
/// [`Self::admit`] says of each whether it is said. Where it isn't, [`Self::due`] is the time at which [`Self::count`] gives
/// how many there were since; it comes after a second, then after two, four, and so on up to a minute, until a whole such
/// time has passed without a line. With [`Self::in_a_minute`] it comes every minute.
#[derive(Debug, Clone)]
pub struct Repeats {
    /// How many lines are said in a row.
    few: u32,
    /// From the first line that is not said to the line with the count.
    first: Duration,
    /// Lines are few if no more than the first few come in this time.
    window: Duration,
    said: u32,
    /// Since when `said` counts.
    since: Option<Instant>,
    counting: Option<Counting>,
}

#[derive(Debug, Clone, Copy)]
struct Counting {
    lines: u64,
    due: Instant,
    pause: Duration,
}

impl Repeats {
    /// Says so many lines in a row.
    pub fn new(few: u32) -> Self {
        Self { few, first: FIRST_COUNT, window: WINDOW, said: 0, since: None, counting: None }
    }

    /// The same for what another tool does again and again, however slowly: one count a minute from the start.
    pub fn in_a_minute(few: u32) -> Self {
        Self { first: LONGEST, window: LONGEST, ..Self::new(few) }
    }

    /// Whether the next line of this kind is to be said; else it is counted.
    pub fn admit(&mut self, now: Instant) -> bool {
        if let Some(counting) = &mut self.counting {
            counting.lines += 1;
            return false;
        }
        if self.since.is_none_or(|since| now >= since + self.window) {
            (self.since, self.said) = (Some(now), 0);
        }
        if self.said < self.few {
            self.said += 1;
            return true;
        }
        self.counting = Some(Counting { lines: 1, due: now + self.first, pause: self.first });
        false
    }

    /// When [`Self::count`] is to be asked next, if lines are being counted.
    pub fn due(&self) -> Option<Instant> {
        self.counting.map(|counting| counting.due)
    }

    /// How many lines were counted, where it is time to say so.
    pub fn count(&mut self, now: Instant) -> Option<u64> {
        let counting = self.counting.as_mut().filter(|counting| counting.due <= now)?;
        if counting.lines == 0 {
            // A whole pause without one: it is over.
            (self.said, self.since, self.counting) = (0, None, None);
            return None;
        }
        counting.pause = (counting.pause * 2).min(LONGEST);
        counting.due = now + counting.pause;
        Some(std::mem::take(&mut counting.lines))
    }
}
