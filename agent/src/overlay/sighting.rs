//! Which of a peer's rows the dump under way has shown.

/// The rows of one peer that the dump under way has shown as they should be. One byte, since there is one for each peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sighting(u8);

/// One of a peer's three rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum PeerRow {
    /// The FDB row of its VTEP's MAC.
    Fdb = 1,
    /// The neighbour of its gateway address.
    Neigh = 2,
    /// The route of its subnet.
    Route = 4,
}

const ALL: u8 = PeerRow::Fdb as u8 | PeerRow::Neigh as u8 | PeerRow::Route as u8;
/// No packet has used the FDB row for long.
const IDLE: u8 = 8;

impl Sighting {
    /// The dump shows this row.
    pub(super) fn show(&mut self, row: PeerRow) {
        self.0 |= row as u8;
    }

    /// The dump shows the FDB row, and no packet has used it for long.
    pub(super) fn show_idle_fdb(&mut self) {
        self.0 |= PeerRow::Fdb as u8 | IDLE;
    }

    /// The dump may have shown this row, which is gone now.
    pub(super) fn withdraw(&mut self, row: PeerRow) {
        self.0 &= !(row as u8);
        if self.0 & PeerRow::Fdb as u8 == 0 {
            self.0 &= !IDLE;
        }
    }

    /// What the dump has shown of the peer counts no longer. Says whether it had shown anything.
    pub(super) fn clear(&mut self) -> bool {
        !std::mem::take(self).is_empty()
    }

    /// Whether the dump has shown no row of the peer.
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the dump has shown all that the peer needs: a direct one its route alone.
    pub(super) fn is_complete(self, is_direct: bool) -> bool {
        self.0 & ALL == if is_direct { PeerRow::Route as u8 } else { ALL }
    }

    /// Whether the dump has shown that no packet used the peer for long.
    pub(super) fn is_idle(self) -> bool {
        self.0 & IDLE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_complete_with_all_rows_and_a_direct_one_with_its_route_alone() {
        let mut sighting = Sighting::default();
        sighting.show(PeerRow::Route);
        assert!(sighting.is_complete(true) && !sighting.is_complete(false));
        sighting.show(PeerRow::Neigh);
        sighting.show_idle_fdb();
        assert!(sighting.is_complete(false) && sighting.is_idle() && !sighting.is_complete(true));
    }

    #[test]
    fn an_fdb_row_that_is_gone_is_not_idle() {
        let mut sighting = Sighting::default();
        sighting.show_idle_fdb();
        sighting.withdraw(PeerRow::Fdb);
        assert!(sighting.is_empty() && !sighting.is_idle() && !sighting.clear());
    }
}
