//! The record in our name under another key that the other nodes would follow instead of ours.

use ipnetwork::IpNetwork;

use super::{Records, key_of};
use crate::overlay::peers::{Place, Source};
use crate::overlay::plane::Plane;

/// A record that supersedes ours: a node's newer record goes before its older one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InOurName {
    /// Its key as etcd has it, where that is known.
    pub key: Option<String>,
    /// Its subnet in one family.
    pub subnet: IpNetwork,
    /// Its `mod_revision`.
    pub revision: i64,
    /// It hangs on an etcd lease.
    pub is_leased: bool,
}

impl InOurName {
    /// What to call it.
    pub fn name(&self) -> String {
        self.key.clone().unwrap_or_else(|| self.subnet.to_string())
    }
}

impl Records {
    /// The record in our name that supersedes ours, if one does in any family.
    pub fn in_our_name(&self, planes: &[&Plane]) -> Option<InOurName> {
        planes.iter().enumerate().find_map(|(number, plane)| {
            let (place, claim) = plane.peers().in_our_name()?;
            let revision = i64::try_from(claim.standing.written()).ok()?;
            let (key, is_leased) = (self.key_of(number, place, planes), claim.standing.is_leased());
            Some(InOurName { key, subnet: place.0, revision, is_leased })
        })
    }

    fn key_of(&self, number: usize, place: Place, planes: &[&Plane]) -> Option<String> {
        let named = [self.claimant.as_str()].into_iter().chain(self.bad().map(|(key, _)| key));
        let named = named.map(str::to_owned).find(|key| Source::of(key) == place.1);
        named.or_else(|| key_of(number, place, planes))
    }
}
