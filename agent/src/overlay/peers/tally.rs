//! How many peers have come how far: kept with each change, so that asking costs nothing however many there are.

use std::iter::Sum;
use std::ops::{Deref, DerefMut};

use super::Peer;
use crate::overlay::presence::Presence;

/// How many peers have come how far on their way into the kernel ([`Presence`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Known from their records, and not in the kernel since no packet has asked for them.
    pub absent: usize,
    /// Without a way to them: there is no tunnel, and their hosts are not on a link of this node.
    pub unreached: usize,
    /// Wanted in the kernel, and not all of their rows are there yet.
    pub wanted: usize,
    /// Completely in the kernel.
    pub in_kernel: usize,
}

impl Tally {
    /// How many peers there are.
    pub fn all(&self) -> usize {
        self.absent + self.unreached + self.wanted + self.in_kernel
    }

    /// A peer joins.
    pub(super) fn joins(&mut self, presence: Presence) {
        *self.place(presence) += 1;
    }

    /// A peer leaves.
    pub(super) fn leaves(&mut self, presence: Presence) {
        *self.place(presence) -= 1;
    }

    fn place(&mut self, presence: Presence) -> &mut usize {
        if presence.is_in_kernel() {
            &mut self.in_kernel
        } else if presence.is_wanted() {
            &mut self.wanted
        } else if presence.is_unreached() {
            &mut self.unreached
        } else {
            &mut self.absent
        }
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |sum, tally| Self {
            absent: sum.absent + tally.absent,
            unreached: sum.unreached + tally.unreached,
            wanted: sum.wanted + tally.wanted,
            in_kernel: sum.in_kernel + tally.in_kernel,
        })
    }
}

/// A peer that is being changed. The tally follows when the change is over.
pub(in crate::overlay) struct PeerMut<'a> {
    peer: &'a mut Peer,
    before: Presence,
    tally: &'a mut Tally,
}

impl<'a> PeerMut<'a> {
    pub(super) fn new(peer: &'a mut Peer, tally: &'a mut Tally) -> Self {
        Self { before: peer.presence, peer, tally }
    }
}

impl Drop for PeerMut<'_> {
    fn drop(&mut self) {
        if self.before != self.peer.presence {
            self.tally.leaves(self.before);
            self.tally.joins(self.peer.presence);
        }
    }
}

impl Deref for PeerMut<'_> {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        self.peer
    }
}

impl DerefMut for PeerMut<'_> {
    fn deref_mut(&mut self) -> &mut Peer {
        self.peer
    }
}
