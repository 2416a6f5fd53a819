//! The records that are ignored. Whoever may write to etcd decides how many there are and how large: of each only some bytes
//! are kept, less than of a peer.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::overlay::record::BadRecord;
use crate::overlay::shown;

/// How many of them are remembered with key and reason.
const NAMED: usize = 10;

/// What is kept of them.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    /// By the hash of the key.
    all: HashMap<u64, Objection>,
    /// What was ignored before the complete read under way.
    before: HashMap<u64, Objection>,
    /// The first few, by the key as it is shown.
    named: BTreeMap<String, (u64, BadRecord)>,
}

/// Enough of a reason to tell it from another one, and to count it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Objection {
    kind: &'static str,
    text: u64,
}

impl Ignored {
    /// Ignores this key from now on; returns the reason if it is news.
    pub(super) fn insert(&mut self, key: &str, reason: BadRecord) -> Option<BadRecord> {
        let id = hash(key);
        let objection = Objection { kind: reason.kind(), text: hash(&reason.to_string()) };
        let before = self.all.insert(id, objection).or_else(|| self.before.remove(&id));
        if before == Some(objection) && self.named.len() >= NAMED {
            return None;
        }
        let name = shown(key);
        if self.named.len() < NAMED || self.named.contains_key(&name) {
            self.named.insert(name, (id, reason.clone()));
        }
        (before != Some(objection)).then_some(reason)
    }

    /// Whether this key is ignored.
    pub(super) fn has(&self, key: &str) -> bool {
        self.all.contains_key(&hash(key))
    }

    /// This key is not ignored, or there no more.
    pub(super) fn remove(&mut self, key: &str) {
        if self.all.is_empty() {
            return;
        }
        let id = hash(key);
        if self.all.remove(&id).is_some() {
            self.named.retain(|_, (named, _)| *named != id);
        }
    }

    /// A complete read begins: what it does not name is there no more.
    pub(super) fn listing(&mut self) {
        self.before = std::mem::take(&mut self.all);
        self.named.clear();
    }

    /// The complete read is done.
    pub(super) fn listed(&mut self) {
        self.before = HashMap::new();
    }

    /// The first few, with the key as it is shown.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, &BadRecord)> {
        self.named.iter().map(|(key, (_, reason))| (key.as_str(), reason))
    }

    /// How many there are of each kind.
    pub(super) fn by_kind(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        self.all.values().for_each(|objection| *counts.entry(objection.kind).or_default() += 1);
        counts
    }
}

/// Not a hash for ever: it only has to be the same within one process.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(text: &str) -> BadRecord {
        BadRecord::OtherBackend(text.to_owned(), "vxlan")
    }

    #[test]
    fn only_news_is_told_and_a_complete_read_forgets_what_it_does_not_name() {
        let mut ignored = Ignored::default();
        assert_eq!(ignored.insert("a", bad("x")), Some(bad("x")));
        assert_eq!(ignored.insert("a", bad("x")), None);
        assert_eq!(ignored.insert("a", bad("y")), Some(bad("y")));
        ignored.insert("b", bad("x"));
        ignored.listing();
        assert_eq!(ignored.insert("a", bad("y")), None, "it was known before");
        ignored.listed();
        assert_eq!(ignored.named().collect::<Vec<_>>(), [("a", &bad("y"))]);
        assert_eq!(ignored.by_kind(), [(bad("").kind(), 1)].into());
        assert_eq!(ignored.insert("b", bad("x")), Some(bad("x")), "it was gone in between");
        ignored.remove("a");
        ignored.remove("b");
        assert_eq!((ignored.named().count(), ignored.by_kind().len()), (0, 0));
    }

    #[test]
    fn a_hundred_thousand_cost_a_few_bytes_each() {
        let mut ignored = Ignored::default();
        for number in 0..100_000 {
            ignored.insert(&format!("{number}{}", "\u{1b}".repeat(1_000)), bad(&"x".repeat(100)));
        }
        assert_eq!((ignored.named().count(), ignored.by_kind()[bad("").kind()]), (NAMED, 100_000));
        assert!(ignored.named().all(|(key, _)| key.len() < 200 && !key.contains('\u{1b}')));
        assert!(ignored.all.capacity() * size_of::<(u64, Objection)>() < 100_000 * 100);
    }
}
