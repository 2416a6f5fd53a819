//! `twill leases`: the records in etcd as a table. Also the one complete read that other commands begin with, and how long
//! a command waits for etcd.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::task::JoinSet;

use crate::out;
use crate::overlay::peers::{Claim, Endpoint, Peers, Place, Source, Standing};
use crate::overlay::record::{BadRecord, Family, PeerRecord, Record, SubnetKey, fits};
use crate::overlay::{NetworkConfig, Shown};
use crate::store::backoff::Backoff;
use crate::store::etcd::EtcdStore;
use crate::store::{Error, LeaseId, RawRecord, Store, StoreEvent};

mod table;

pub(crate) use table::{cell, name};

/// After so long without an answer a command says what it waits for.
const SILENCE: Duration = Duration::from_secs(1);
/// How many leases are asked for at once.
const ASKED_AT_ONCE: usize = 64;

/// What a complete read showed.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The network config, if there is one.
    pub config: Option<Vec<u8>>,
    /// All records, by key.
    pub records: Vec<RawRecord>,
}

/// What is left of each etcd lease that records hang on; `None`: it has ended.
pub type Left = BTreeMap<i64, Option<Duration>>;

/// How a look at the records ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Each record is a peer's or a reservation.
    AllGood,
    /// Every node ignores some record.
    SomeIgnored,
}

/// etcd, as a command asks it: for a limited time.
pub struct Asked {
    endpoints: String,
    timeout: Duration,
    /// What to say when the time is over.
    doubt: &'static str,
    /// Why etcd did not answer, the last time that it did not.
    reason: RefCell<Option<String>>,
}

impl Asked {
    /// etcd at these endpoints; all that is asked has so much time together.
    pub fn new(endpoints: &[String], timeout: Duration) -> Self {
        Self { endpoints: endpoints.join(", "), timeout, doubt: "", reason: RefCell::default() }
    }

    /// For a change, which may have been made although its answer did not come.
    pub fn for_change(self) -> Self {
        Self { doubt: "; whether the record was changed, `twill leases` tells", ..self }
    }

    /// Does all that a command asks of etcd. Says after a second that there is no answer yet, and why.
    ///
    /// # Errors
    /// What the work fails by; or that the time is over, with the endpoints and the reason.
    pub async fn within<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Self { endpoints, timeout, doubt, .. } = self;
        let mut work = std::pin::pin!(tokio::time::timeout(*timeout, work));
        let result = match tokio::time::timeout(SILENCE.min(*timeout), &mut work).await {
            Ok(result) => result,
            Err(_) => {
                let why = self.why();
                complain(&format!("etcd at {endpoints} does not answer yet{why}; trying for {timeout:?} in all"));
                work.await
            }
        };
        result.unwrap_or_else(|_| {
            Err(anyhow!("no answer from etcd at {endpoints} within {timeout:?}{}{doubt}", self.why()))
        })
    }

    /// Asks until etcd answers: for what may be done twice.
    ///
    /// # Errors
    /// What etcd refuses it by.
    pub async fn retry<T>(&self, attempt: impl AsyncFn() -> Result<T, Error>) -> Result<T> {
        let mut backoff = Backoff::default();
        loop {
            match attempt().await {
                Err(error) if error.is_transient() => {
                    self.reason.replace(Some(error.reason));
                    tokio::time::sleep(backoff.failed()).await;
                }
                result => return Ok(result?),
            }
        }
    }

    fn why(&self) -> String {
        self.reason.borrow().as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
    }

    /// Reads everything once.
    ///
    /// # Errors
    /// What etcd refuses it by: no wait mends a refusal.
    pub async fn read(&self, store: &impl Store) -> Result<Listing> {
        let mut events = store.follow();
        let mut listing = Listing::default();
        while let Some(event) = events.recv().await {
            match event {
                StoreEvent::Listing => listing = Listing::default(),
                StoreEvent::Config(config) => listing.config = config,
                StoreEvent::Page(page) => listing.records.extend(page),
                StoreEvent::Listed { .. } => return Ok(listing),
                StoreEvent::Down { reason } => {
                    self.reason.replace(Some(reason.clone()));
                    if is_refused(store).await {
                        bail!("etcd refuses: {reason}");
                    }
                }
                StoreEvent::Up | StoreEvent::Changes(_) => {}
            }
        }
        bail!("the reader of etcd has stopped")
    }
}

/// A line for the operator beside the result.
pub fn complain(text: &str) {
    out::note(format_args!("twill: {}", Shown::up_to(2_000, text)));
}

/// Prints a line for each subnet, and which records every node ignores, and why.
///
/// # Errors
/// What etcd or the output fails by; that there is no network config, or no usable one.
pub async fn print(store: &EtcdStore, asked: &Asked) -> Result<Seen> {
    let (listing, left) = asked
        .within(async {
            let listing = asked.read(store).await?;
            let left = left(store, &listing).await?;
            Ok((listing, left))
        })
        .await?;
    let config = listing.config(store);
    if config.is_err() && listing.config.is_none() && listing.records.is_empty() {
        return config.map(|_| Seen::AllGood);
    }
    let ignored = listing.ignored();
    let text = table::render(&listing, &left, &ignored);
    out::print(&text)?;
    config?;
    if ignored.is_empty() {
        return Ok(Seen::AllGood);
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    ignored.values().for_each(|bad| *counts.entry(bad.kind()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    complain(&format!("records that every node ignores: {}", counts.join(", ")));
    Ok(Seen::SomeIgnored)
}

/// What is left of each lease that a record hangs on.
async fn left(store: &EtcdStore, listing: &Listing) -> Result<Left> {
    let leases: BTreeSet<i64> = listing.records.iter().map(|raw| raw.lease).filter(|lease| *lease != 0).collect();
    let (mut left, mut asked) = (Left::new(), JoinSet::new());
    let mut take = |answer: Result<_, tokio::task::JoinError>| -> Result<()> {
        let (lease, answer): (i64, Result<_, Error>) = answer?;
        left.insert(lease, answer?);
        Ok(())
    };
    for lease in leases {
        if asked.len() >= ASKED_AT_ONCE
            && let Some(answer) = asked.join_next().await
        {
            take(answer)?;
        }
        let store = store.clone();
        asked.spawn(async move { (lease, store.time_left(LeaseId(lease)).await) });
    }
    while let Some(answer) = asked.join_next().await {
        take(answer)?;
    }
    Ok(left)
}

impl Listing {
    /// The network config.
    ///
    /// # Errors
    /// That there is none, or no usable one; names the key.
    pub fn config(&self, store: &EtcdStore) -> Result<NetworkConfig> {
        let key = store.config_key();
        let Some(text) = &self.config else {
            let example = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
            bail!(
                "there is no network config: the key {key} does not exist; a node waits for it, for instance {example}"
            );
        };
        NetworkConfig::parse(text).with_context(|| format!("the network config {key} is not usable"))
    }

    /// The records that no node takes for a peer, by key, and why. Without a usable network config only those that can't
    /// be read. A reservation that waits for its node is in order.
    pub fn ignored(&self) -> BTreeMap<&str, BadRecord> {
        let config = self.config.as_ref().and_then(|text| NetworkConfig::parse(text).ok());
        let mut peers = BTreeMap::new();
        let judged: Vec<_> = self.records.iter().map(|raw| (raw, judge(raw, config.as_ref(), &mut peers))).collect();
        let bad = judged.into_iter().filter_map(|(raw, judged)| match judged {
            Ok(sides) => {
                let mut asides = sides.iter().filter_map(|(family, place)| peers.get(family)?.shadow_of(*place));
                Some((raw.key.as_str(), asides.next()?))
            }
            Err(BadRecord::Reserved(_)) => None,
            Err(bad) => Some((raw.key.as_str(), bad)),
        });
        bad.collect()
    }
}

/// As every node but the record's own judges it: gives it to the peers of each family, and returns its place there.
fn judge(
    raw: &RawRecord,
    config: Option<&NetworkConfig>,
    peers: &mut BTreeMap<Family, Peers>,
) -> Result<Vec<(Family, Place)>, BadRecord> {
    let (key, record) = (raw.key.parse::<SubnetKey>()?, Record::parse(&raw.value)?);
    if record.names_nobody() {
        // Also where there is no network config to judge it by.
        return Err(BadRecord::Incomplete("PublicIP"));
    }
    let standing = Standing::new(raw.created, raw.revision, raw.lease != 0, record.node.as_deref());
    let mut sides = Vec::new();
    for (config, net) in config.into_iter().flat_map(|config| config.families().map(move |net| (config, net))) {
        let family = Family::of(&net.network);
        let PeerRecord { subnet, mac, remote } = fits(&record, &key, net, &config.backend)?;
        let source = Source::of(&raw.key);
        peers.entry(family).or_default().put(subnet, source, Claim { endpoint: Endpoint { mac, remote }, standing });
        sides.push((family, (subnet, source)));
    }
    Ok(sides)
}

/// Whether etcd is there and refuses what a complete read needs.
async fn is_refused(store: &impl Store) -> bool {
    let refused = |error: Option<Error>| error.is_some_and(|error| !error.is_transient());
    refused(store.config().await.err()) || refused(store.record("").await.err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_node_ignores_is_told_by_reason() {
        let value = |ip: u8, vni: u8, mac: u8| {
            format!(
                r#"{{"PublicIP":"10.99.0.{ip}","BackendType":"vxlan","BackendData":{{"VNI":{vni},"VtepMAC":"02:00:00:00:00:0{mac}"}}}}"#
            )
        };
        let records = [
            ("10.5.1.0-24", value(1, 1, 1)),
            ("10.5.2.0-24", value(2, 1, 1)),
            ("10.5.3.0-24", value(3, 7, 3)),
            ("10.6.4.0-24", value(4, 1, 4)),
            ("10.5.5.0-24", r#"{"PublicIP":"10.99.0.5"}"#.to_owned()),
            ("10.5.6.0-24", value(6, 1, 6).replace("vxlan", "host-gw")),
            ("10.5.7.0-24", value(0, 1, 7).replace("10.99.0.0", "0.0.0.0")),
            ("10.5.8.0-24", "junk".to_owned()),
            ("10.5.9.0-24", "{}".to_owned()),
            ("junk", value(9, 1, 9)),
        ];
        let raw = |(at, (key, value)): (usize, &(&str, String))| RawRecord {
            key: (*key).to_owned(),
            value: value.clone().into_bytes(),
            created: at as i64,
            revision: at as i64,
            lease: 0,
        };
        let records: Vec<RawRecord> = records.iter().enumerate().map(raw).collect();
        let config = Some(br#"{"Network":"10.5.0.0/16"}"#.to_vec());
        let listing = Listing { config, records };
        let ignored = listing.ignored();
        let reasons: Vec<_> = ignored.iter().map(|(key, bad)| (*key, bad.reason())).collect();
        let expected = [
            ("10.5.2.0-24", "mac_of_another"),
            ("10.5.3.0-24", "wrong_vni"),
            ("10.5.6.0-24", "other_backend"),
            ("10.5.7.0-24", "remote_not_unicast"),
            ("10.5.8.0-24", "value"),
            ("10.5.9.0-24", "incomplete"),
            ("10.6.4.0-24", "outside_network"),
            ("junk", "key_form"),
        ];
        assert_eq!(reasons, expected);
        let why = "the VTEP's MAC 02:00:00:00:00:01 is also that of 10.5.1.0/24, whose record takes precedence";
        assert_eq!(ignored.get("10.5.2.0-24").unwrap().to_string(), why);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_for_all_of_it_is_limited_and_the_reason_is_kept() {
        let asked = Asked::new(&["http://a:1".to_owned(), "http://b:2".to_owned()], Duration::from_secs(10));
        let store = crate::store::fake::FakeStore::new();
        store.down();
        let error = asked.within(asked.read(&store)).await.unwrap_err().to_string();
        assert!(error.starts_with("no answer from etcd at http://a:1, http://b:2 within 10s"), "{error}");
        assert_eq!(asked.within(async { Ok(7) }).await.unwrap(), 7);
    }
}
