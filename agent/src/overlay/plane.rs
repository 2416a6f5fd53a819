//! One address family's overlay: what its peers' records ask of the kernel, and what is still to be done there.
//!
//! From below: `refusals` and `temporary` hold what misses have left in the kernel. `desired` says which rows should be there,
//! `ours` which rows are ours, `contradiction` which of other programs' are wrong. `work` owns what is due. `comparison` and
//! `strangers` hold what dumps and notifications have shown. None of these knows [`Plane`], which joins them. What a plane is
//! told comes in through `deltas`, `miss`, `direct`, `dump` and `notified`.

use std::collections::BTreeSet;
use std::time::Instant;

use ipnetwork::IpNetwork;

use super::counts::Counts;
use super::kernel::{Route, Row};
use super::peers::{Peer, Peers, Tally};
use super::programmed::{Programmed, Unreached};

pub mod comparison;
pub mod contradiction;
mod deltas;
mod desired;
mod direct;
mod dump;
pub mod miss;
mod notified;
mod ours;
pub mod refusals;
pub mod strangers;
mod temporary;
mod work;

use comparison::Comparison;
use contradiction::Contested;
use desired::Desired;
pub use desired::{PeerMode, Setup};
use strangers::{Mended, Strangers};
pub use work::Chunk;
use work::{Purpose, WorkQueue};

/// One address family's way into the kernel.
///
/// # The way of a packet
/// A pod sends a packet to a pod on another host, a *peer*. Three rows of the kernel lead the packet there:
/// 1. The **route** of the peer's subnet sends it through our VXLAN device to the peer's gateway, the first address of that
///    subnet.
/// 2. The **neighbour** of the gateway names the MAC of the peer's VTEP. The kernel writes it into the inner Ethernet frame.
/// 3. The **FDB row** of that MAC names the peer's host. The kernel sends the outer UDP packet to its address.
///
/// A neighbour and an FDB row look alike: both pair a MAC with an address. The neighbour leads from an address to a MAC, inside
/// the tunnel; the FDB row from a MAC to a host, outside.
///
/// On demand most peers have none of these rows. The **base route** then takes the packet: the whole network is on the link of
/// our device, so the kernel looks for a neighbour of the pod's own address, has none, and asks (an *L3 miss*). The answer is
/// the FDB row and a **temporary neighbour** for that very address, which lets the packet go. The peer's own three rows follow,
/// and the temporary neighbour is deleted. Nobody has the address: its block gets an `unreachable` route, a *refusal*. A MAC
/// without an FDB row is an *L2 miss*: that row is put again. A peer whose host needs no tunnel (DirectRouting,
/// host-gw) has one row, a route through that host.
///
/// # The plane
/// A plane is told of records, misses, dumps and notifications. It hands out chunks of operations ([`Plane::next_chunk`]), and
/// [`Plane::settle`] takes their results. It does no I/O and has no clock.
#[derive(Debug)]
pub struct Plane {
    /// What should be in the kernel. How far each peer has come stands with the peer.
    desired: Desired,
    /// What is to be done there.
    work: WorkQueue,
    /// What the dump under way has shown.
    comparison: Comparison,
    /// Rows of other programs.
    strangers: Strangers,
    /// What the log has still to say.
    programmed: Programmed,
    unreached: Unreached,
    /// What has been counted so far.
    counts: Counts,
}

impl Plane {
    /// A plane with no peers; its base route is due where the mode has one.
    pub fn new(setup: Setup) -> Self {
        let mut work = WorkQueue::default();
        work.set_base_due(setup.ways.tunnel && setup.mode == PeerMode::OnDemand);
        Self {
            desired: Desired::new(setup),
            work,
            comparison: Comparison::default(),
            strangers: Strangers::default(),
            programmed: Programmed::default(),
            unreached: Unreached::default(),
            counts: Counts::default(),
        }
    }

    /// What it was made of.
    pub fn setup(&self) -> &Setup {
        &self.desired.setup
    }

    /// The peers.
    pub fn peers(&self) -> &Peers {
        &self.desired.peers
    }

    /// Our own subnet gets a route that drops what nothing else takes (`--ip-blackhole-route`).
    pub fn drop_own(&mut self) {
        self.desired.blackhole = true;
        self.work.set_base_due(true);
    }

    /// From now on every known peer is wanted in the kernel: what a clean stop asks for.
    pub fn want_everyone(&mut self) {
        self.desired.everyone = true;
        if !self.desired.is_everyone_wanted() {
            return;
        }
        self.desired.peers.update_all(|subnet, peer| {
            peer.presence.want();
            if !peer.presence.is_in_kernel() {
                self.work.put_peer(subnet);
            }
        });
    }

    /// Whether anything is to be done now.
    pub fn is_due(&self) -> bool {
        self.work.is_due()
    }

    /// Whether waiting packets wait for something.
    pub fn is_urgent(&self) -> bool {
        self.work.is_urgent()
    }

    /// Whether the kernel has all that is wanted, as far as is known.
    pub fn is_settled(&self) -> bool {
        self.work.is_done()
    }

    /// What waiting packets wait for.
    pub fn urgent_chunk(&mut self) -> Chunk {
        self.work.urgent_chunk()
    }

    /// The next operations, about `limit` of them. Whoever takes them gives the results to [`Plane::settle`].
    pub fn next_chunk(&mut self, limit: usize) -> Chunk {
        self.work.next_chunk(limit, &self.desired)
    }

    /// Takes the results of a chunk: `failed` are the indices of the operations that did not work, ascending.
    ///
    /// What failed is due again after a pause; what worked is known to be in the kernel.
    pub fn settle(&mut self, chunk: Chunk, failed: &[usize], now: Instant) {
        self.counts.count_batch(chunk.ops().len(), failed.len());
        let mut failed_peers = BTreeSet::new();
        for purpose in chunk.purposes(failed) {
            self.work.fail(purpose);
            match purpose {
                Purpose::Peer(subnet) => drop(failed_peers.insert(subnet)),
                Purpose::Answer(address) => self.desired.temporary.forget(&address),
                Purpose::Refusal(block) => drop(self.desired.refusals.forget(&block)),
                Purpose::Base | Purpose::Ahead | Purpose::Stray(_) => {}
            }
        }
        for subnet in chunk.peers() {
            if failed_peers.contains(&subnet) {
                self.peer_failed(subnet);
            } else {
                self.peer_arrived(subnet);
            }
        }
        self.work.pause(now);
    }

    fn peer_failed(&mut self, subnet: IpNetwork) {
        let Some(mut peer) = self.desired.peers.get_mut(&subnet) else { return };
        peer.presence.lose();
        // Whatever the dump under way has shown of the peer.
        peer.sighting.clear();
    }

    /// All rows of a peer are in the kernel, as a chunk's results or a dump say.
    fn peer_arrived(&mut self, subnet: IpNetwork) {
        let Some(mut peer) = self.desired.peers.get_mut(&subnet) else { return };
        if let Some(cause) = peer.presence.arrive() {
            self.programmed.add(subnet, cause);
        }
        self.work.delete_all(self.desired.temporary.take(subnet));
        self.strangers.recheck_contested();
    }

    /// Moves what is due by the clock: failed operations, and refusals whose time is over.
    pub fn wake(&mut self, now: Instant) {
        let ended = self.desired.refusals.expire(now);
        self.work.delete_all(ended.into_iter().map(|block| Row::Route(Route::refusal(block))));
        self.work.wake(now);
    }

    /// When [`Plane::wake`] has something to do.
    pub fn next_wake(&self) -> Option<Instant> {
        [self.work.next_wake(), self.desired.refusals.next_end()].into_iter().flatten().min()
    }
}

/// What the log and the probes ask.
impl Plane {
    /// How many peers have come how far.
    pub fn tally(&self) -> Tally {
        self.desired.peers.tally()
    }

    /// What has been counted since the daemon began.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        counts.mended = self.strangers.counts();
        counts
    }

    /// Whether peers were put into the kernel since [`Plane::take_programmed`].
    pub fn has_programmed(&self) -> bool {
        !self.programmed.is_empty()
    }

    /// The peers that were put into the kernel since the last call.
    pub fn take_programmed(&mut self) -> Programmed {
        std::mem::take(&mut self.programmed)
    }

    /// Whether it is ours to reach a peer: there is a way to it that we know.
    pub fn reaches(&self, peer: &Peer) -> bool {
        self.desired.is_ours_to_reach(peer)
    }

    /// The peers that turned out to have no way to them since the last call, if there are any.
    pub fn take_unreached(&mut self) -> Option<Unreached> {
        Some(std::mem::take(&mut self.unreached)).filter(|unreached| !unreached.first.is_empty())
    }

    /// Whether rows of other programs were mended since [`Plane::take_mended`].
    pub fn has_mended(&self) -> bool {
        self.strangers.has_mended()
    }

    /// The rows of other programs on our device that contradicted the records, since the last call.
    pub fn take_mended(&mut self) -> Mended {
        self.strangers.take_mended()
    }

    /// Whether [`Plane::contested`] may have another answer than at the last call.
    pub fn take_contested_changed(&mut self) -> bool {
        self.strangers.take_contested_changed()
    }

    /// [`Plane::contested`] is to be asked again.
    pub fn recheck_contested(&mut self) {
        self.strangers.recheck_contested();
    }

    /// The routes of other programs that go before ours, in order.
    pub fn contested(&self) -> Vec<Contested> {
        self.strangers.contested(&self.desired)
    }
}
