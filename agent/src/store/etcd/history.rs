//! Whether an etcd is still the one that counted the revisions we know. Pure.

use etcd_client::ResponseHeader;

/// What tells one etcd from another. A wiped or restored one can have the same id, but begins its terms anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct History {
    /// The cluster's id; 0 where it isn't told, by a proxy for instance.
    pub(super) cluster: u64,
    /// The latest raft term that was heard of.
    pub(super) term: u64,
}

impl History {
    pub(super) fn of(header: &ResponseHeader) -> Self {
        Self { cluster: header.cluster_id(), term: header.raft_term() }
    }

    /// Whether `now`, told later, is of the same etcd.
    pub(super) fn goes_on(self, now: Self) -> bool {
        self.is_cluster(now.cluster) && (now.term >= self.term || now.term == 0)
    }

    /// The same without the term: a member that lags behind knows an earlier one.
    pub(super) fn is_cluster(self, now: u64) -> bool {
        now == self.cluster || now == 0 || self.cluster == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_etcd_is_told_by_its_id_or_an_earlier_term() {
        let known = History { cluster: 7, term: 3 };
        for (cluster, term, goes_on) in
            [(7, 3, true), (7, 4, true), (7, 2, false), (8, 3, false), (0, 3, true), (0, 2, false), (7, 0, true)]
        {
            assert_eq!(known.goes_on(History { cluster, term }), goes_on, "{cluster} {term}");
        }
        assert!(History { cluster: 0, term: 3 }.goes_on(known), "an id that was not told says nothing");
    }
}
