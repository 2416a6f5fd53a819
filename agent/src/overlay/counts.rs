//! What one family's plane has counted since the daemon began, for whoever watches a node.

use super::kernel::Miss;

/// What a miss came to, in the order of [`Counts::misses`].
pub(super) const RESULTS: [&str; 4] = ["answered", "refused", "refused_before", "unknown"];

/// What a miss asked for, in the same way.
const KINDS: [&str; 2] = ["l3", "l2"];

/// The rows that other programs spoil, in the order of [`Counts::mended`].
const ROWS: [&str; 3] = ["route", "neighbour", "fdb"];

/// Numbers that only grow. Counting costs an addition, reading them a copy of some hundred bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    misses: [[u64; RESULTS.len()]; KINDS.len()],
    /// Rows of other programs that contradicted the records and were put right: routes, neighbours, FDB rows.
    pub(super) mended: [u64; ROWS.len()],
    /// Peers of which rows were missing or wrong in the kernel, and were put again.
    pub peers_mended: u64,
    /// Complete comparisons of the kernel with the records.
    pub comparisons: u64,
    /// Batches of operations that went to the kernel.
    pub batches: u64,
    /// The operations in them.
    pub operations: u64,
    /// Those that the kernel did not carry out.
    pub failures: u64,
}

impl Counts {
    /// A miss came to the result of this place among `RESULTS`.
    pub(super) fn count_miss(&mut self, miss: Miss, result: usize) {
        let kind = match miss {
            Miss::Address(_) => 0,
            Miss::Mac(_) => 1,
        };
        self.misses[kind][result] += 1;
    }

    /// A batch of so many operations went to the kernel, and so many of them failed.
    pub(super) fn count_batch(&mut self, operations: usize, failures: usize) {
        self.batches += 1;
        self.operations += operations as u64;
        self.failures += failures as u64;
    }

    /// How many misses of each kind (`l3`, `l2`) came to each result.
    pub fn misses(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let of_kind = |(kind, counts): (&'static str, [u64; RESULTS.len()])| {
            RESULTS.into_iter().zip(counts).map(move |(result, count)| (kind, result, count))
        };
        KINDS.into_iter().zip(self.misses).flat_map(of_kind)
    }

    /// How many rows of other programs contradicted the records and were put right, by kind of row.
    pub fn mended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ROWS.into_iter().zip(self.mended)
    }
}
