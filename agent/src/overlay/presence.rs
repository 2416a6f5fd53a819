//! How far one peer has come on its way into the kernel.

use super::programmed::Cause;

/// How far a peer has come.
///
/// | stage | the kernel | what leads on |
/// |---|---|---|
/// | absent | should hold no row of the peer | [`Presence::want`], [`Presence::ask`], [`Presence::go_direct`] |
/// | unreached | can hold no row of the peer: there is neither a tunnel nor the peer's host on a link | [`Presence::go_direct`] |
/// | wanted | should hold the peer's rows and lacks some, as far as is known | [`Presence::arrive`], [`Presence::leave`] |
/// | in the kernel | holds every row of the peer, as far as is known | [`Presence::lose`], [`Presence::leave`] |
///
/// A wanted peer waits in the work queue (`plane/work`), is on its way in a chunk, or waits there again after a failure. What
/// leaves the kernel is rows and not a peer: the peer is absent or forgotten by then, and the queue has its rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Presence(Stage);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Absent,
    Unreached,
    Wanted {
        reason: Reason,
        /// The log has said that the peer is in the kernel: some rows were lost since then.
        is_told: bool,
    },
    InKernel {
        reason: Reason,
    },
}

/// Why a peer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Every peer is wanted.
    Record,
    /// A packet to the peer waited.
    Packet,
    /// The peer's host needs no tunnel (DirectRouting).
    Direct {
        /// A packet asked for the peer before that.
        is_asked_for: bool,
    },
}

impl Presence {
    /// Whether the peer's rows should be in the kernel.
    pub fn is_wanted(self) -> bool {
        !matches!(self.0, Stage::Absent | Stage::Unreached)
    }

    /// Whether all of the peer's rows are in the kernel, as far as is known.
    pub fn is_in_kernel(self) -> bool {
        matches!(self.0, Stage::InKernel { .. })
    }

    /// Whether the peer is routed through its host, without a tunnel.
    pub fn is_direct(self) -> bool {
        let (Stage::Wanted { reason, .. } | Stage::InKernel { reason }) = self.0 else { return false };
        matches!(reason, Reason::Direct { .. })
    }

    /// Whether there is no way to the peer's host.
    pub fn is_unreached(self) -> bool {
        self.0 == Stage::Unreached
    }

    /// Every peer is wanted, and so this one.
    pub(super) fn want(&mut self) {
        if self.0 == Stage::Absent {
            self.0 = Stage::Wanted { reason: Reason::Record, is_told: false };
        }
    }

    /// A packet asked for the peer.
    pub(super) fn ask(&mut self) {
        match &mut self.0 {
            Stage::Absent | Stage::Unreached => self.0 = Stage::Wanted { reason: Reason::Packet, is_told: false },
            Stage::Wanted { reason, .. } | Stage::InKernel { reason } => {
                *reason = match reason {
                    Reason::Direct { .. } => Reason::Direct { is_asked_for: true },
                    Reason::Record | Reason::Packet => Reason::Packet,
                }
            }
        }
    }

    /// All of the peer's rows are in the kernel. Says why, unless the log has said so.
    pub(super) fn arrive(&mut self) -> Option<Cause> {
        let Stage::Wanted { reason, is_told } = self.0 else { return None };
        self.0 = Stage::InKernel { reason };
        (!is_told).then_some(reason.into())
    }

    /// An earlier daemon has put the peer's rows: that they are in the kernel is no news.
    pub(super) fn adopt(&mut self) {
        if let Stage::Wanted { is_told, .. } = &mut self.0 {
            *is_told = true;
        }
    }

    /// A row of the peer is missing or wrong. Says whether the peer was in the kernel until now.
    pub(super) fn lose(&mut self) -> bool {
        let Stage::InKernel { reason } = self.0 else { return false };
        self.0 = Stage::Wanted { reason, is_told: true };
        true
    }

    /// No packet has used the peer for long.
    pub(super) fn leave(&mut self) {
        self.0 = Stage::Absent;
    }

    /// The peer's host is reached without a gateway: its route goes through the host from now on.
    pub(super) fn go_direct(&mut self) {
        let (reason, is_told) = self.reason_and_told();
        let is_asked_for = matches!(reason, Some(Reason::Packet | Reason::Direct { is_asked_for: true }));
        self.0 = Stage::Wanted { reason: Reason::Direct { is_asked_for }, is_told };
    }

    /// The peer's host needs the tunnel again. Without a packet that asked for the peer it is wanted only if every peer is.
    pub(super) fn go_through_tunnel(&mut self, is_everyone_wanted: bool) {
        let (Some(Reason::Direct { is_asked_for }), is_told) = self.reason_and_told() else { return };
        self.0 = match (is_asked_for, is_everyone_wanted) {
            (true, _) => Stage::Wanted { reason: Reason::Packet, is_told },
            (false, true) => Stage::Wanted { reason: Reason::Record, is_told },
            (false, false) => Stage::Absent,
        };
    }

    /// The peer has another host: what was known of the way to it counts no longer.
    pub(super) fn forget_way(&mut self, is_everyone_wanted: bool) {
        if self.0 == Stage::Unreached {
            self.0 = Stage::Absent;
        }
        self.go_through_tunnel(is_everyone_wanted);
    }

    /// There is no way to the peer's host. Says whether that is news.
    pub(super) fn go_unreached(&mut self) -> bool {
        std::mem::replace(&mut self.0, Stage::Unreached) != Stage::Unreached
    }

    fn reason_and_told(self) -> (Option<Reason>, bool) {
        match self.0 {
            Stage::Absent | Stage::Unreached => (None, false),
            Stage::Wanted { reason, is_told } => (Some(reason), is_told),
            Stage::InKernel { reason } => (Some(reason), true),
        }
    }
}

impl From<Reason> for Cause {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Record => Self::Record,
            Reason::Packet => Self::Packet,
            Reason::Direct { .. } => Self::Direct,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer that a packet asked for, and whose rows are in the kernel.
    fn in_kernel() -> Presence {
        let mut presence = Presence::default();
        presence.ask();
        assert_eq!(presence.arrive(), Some(Cause::Packet));
        presence
    }

    #[test]
    fn a_peer_is_announced_once_until_it_leaves() {
        let mut presence = in_kernel();
        assert!(presence.lose() && presence.is_wanted() && !presence.is_in_kernel());
        assert!(!presence.lose(), "it is lost already");
        assert_eq!(presence.arrive(), None);
        assert!(presence.is_in_kernel());
        presence.leave();
        assert_eq!(presence, Presence::default());
        presence.want();
        assert_eq!(presence.arrive(), Some(Cause::Record));
    }

    #[test]
    fn a_peer_whose_rows_an_earlier_daemon_put_is_not_announced_until_it_leaves() {
        let mut presence = Presence::default();
        presence.adopt();
        assert_eq!(presence, Presence::default(), "nobody wants it");
        presence.ask();
        presence.adopt();
        assert_eq!(presence.arrive(), None);
        assert!(presence.is_in_kernel());
        presence.leave();
        presence.ask();
        assert_eq!(presence.arrive(), Some(Cause::Packet));
    }

    #[test]
    fn an_absent_peer_neither_arrives_nor_is_lost() {
        let mut presence = Presence::default();
        assert!(presence.arrive().is_none() && !presence.lose() && !presence.is_wanted() && !presence.is_direct());
    }

    #[test]
    fn a_direct_peer_remembers_whether_a_packet_asked_for_it() {
        for (before, everyone, wanted_after) in [(true, false, true), (false, true, true), (false, false, false)] {
            let mut presence = if before { in_kernel() } else { Presence::default() };
            presence.go_direct();
            assert!(presence.is_direct() && presence.is_wanted() && !presence.is_in_kernel());
            assert_eq!(presence.arrive(), (!before).then_some(Cause::Direct));
            presence.go_through_tunnel(everyone);
            assert!(!presence.is_direct() && !presence.is_in_kernel());
            assert_eq!(presence.is_wanted(), wanted_after, "{before} {everyone}");
        }
    }

    #[test]
    fn only_a_direct_peer_goes_back_into_the_tunnel() {
        let mut presence = in_kernel();
        presence.go_through_tunnel(false);
        assert_eq!(presence, in_kernel());
    }

    #[test]
    fn a_peer_without_a_way_is_told_once_until_it_has_one() {
        let mut presence = Presence::default();
        assert!(presence.go_unreached() && !presence.go_unreached());
        assert!(!presence.is_wanted() && !presence.is_in_kernel() && !presence.is_direct());
        presence.go_direct();
        assert_eq!(presence.arrive(), Some(Cause::Direct));
        assert!(presence.go_unreached());
    }

    #[test]
    fn a_packet_for_a_direct_peer_is_remembered() {
        let mut presence = Presence::default();
        presence.go_direct();
        presence.ask();
        presence.go_through_tunnel(false);
        assert_eq!(presence.arrive(), Some(Cause::Packet));
    }
}
