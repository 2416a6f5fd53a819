//! The real store: etcd v3. This module and its children are the only ones that know etcd's client.
//!
//! One connection to one endpoint at a time; whatever fails in a way that another endpoint, or a new connection, could
//! mend moves on to the next one (`connection`). `follow` reads and watches. What records mean is not known here.
//! The client library retries nothing, so this does: <https://docs.rs/etcd-client/0.21.1>.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, KeyValue, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use tokio::sync::mpsc;

use self::connection::Connection;
use self::failure::{Access, Failure, Kind};
use self::follow::Follower;
use super::{Error, LeaseId, RawRecord, Store, StoreEvent, Written};

mod connection;
mod failure;
mod follow;
mod history;
mod key;
mod probe;
mod reason;
mod tls;

/// Events that may wait for a follower: few, so that a long listing waits for its reader rather than filling memory.
const UNREAD: usize = 8;

/// How often TLS files are looked at while no call is made: soon enough to hear of a bad one while somebody remembers its
/// change.
const LOOK_AT_FILES: Duration = Duration::from_secs(10);

/// Where etcd is and how to get in, as the `--etcd-…` flags say.
#[derive(Clone, Default)]
pub struct EtcdOptions {
    /// `--etcd-endpoints`: `http://host:port` or `https://host:port`, all alike. Without a scheme, TLS decides.
    pub endpoints: Vec<String>,
    /// `--etcd-prefix`, as in `/coreos.com/network`; slashes around it don't matter.
    pub prefix: String,
    /// `--etcd-cafile`, `--etcd-certfile`, `--etcd-keyfile`, if any is given.
    pub tls: Option<Tls>,
    /// `--etcd-username`.
    pub username: Option<String>,
    /// `--etcd-password`.
    pub password: Option<String>,
}

/// Files for TLS, taken up when they change while we run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Who signs the server's certificate; without it, the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate. Goes with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// The key of our own certificate.
    pub key_file: Option<PathBuf>,
}

impl std::fmt::Debug for EtcdOptions {
    // Not derived: a password has no place in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { endpoints, prefix, tls, username, password: _ } = self;
        f.debug_struct("EtcdOptions")
            .field("endpoints", endpoints)
            .field("prefix", prefix)
            .field("tls", tls)
            .field("username", username)
            .finish_non_exhaustive()
    }
}

/// Where the keys of a network are.
#[derive(Debug)]
struct Keys {
    /// `<prefix>/config`.
    config: String,
    /// `<prefix>/subnets/`.
    subnets: String,
}

impl Keys {
    /// Flannel joins the prefix with Go's `path.Join`, which etcd's keys of old, all with one leading slash, made a rule.
    fn new(prefix: &str) -> Self {
        let parts: Vec<&str> = prefix.split('/').filter(|part| !part.is_empty()).collect();
        let prefix = parts.iter().map(|part| format!("/{part}")).collect::<String>();
        Self { config: format!("{prefix}/config"), subnets: format!("{prefix}/subnets/") }
    }

    fn of(&self, record: &str) -> String {
        format!("{}{record}", self.subnets)
    }

    /// From where to where the keys are that have this one's IPv4 side, with no IPv6 side or with any ('&' is followed by
    /// '\'').
    fn with_ipv4_side_of(&self, record: &str) -> Option<(String, String)> {
        super::ipv4_side(record).map(|side| (self.of(side), self.of(&format!("{side}'"))))
    }

    /// The record under a key; `None` where the key is none of a record.
    fn record(&self, kv: &KeyValue) -> Option<RawRecord> {
        let key = kv.key().strip_prefix(self.subnets.as_bytes())?;
        Some(RawRecord {
            key: key::text(key),
            value: kv.value().to_vec(),
            created: kv.create_revision(),
            revision: kv.mod_revision(),
            lease: kv.lease(),
        })
    }
}

/// etcd, seen through one network's prefix. Clones share the connection.
#[derive(Clone)]
pub struct EtcdStore {
    connection: Arc<Connection>,
    keys: Arc<Keys>,
    leases: Arc<Mutex<Leases>>,
}

/// What this process knows of its leases.
#[derive(Default)]
struct Leases {
    /// The TTLs they were granted with. The client swallows the one in a keep-alive's first answer.
    ttls: BTreeMap<i64, Duration>,
    /// A grant that failed, perhaps only in its answer: the next one asks for the same id, so that no lease is left without an owner.
    unanswered: Option<i64>,
}

impl EtcdStore {
    /// Checks the options and reads the files. No request is made: the first call connects.
    ///
    /// # Errors
    /// What is wrong with the options or the files, naming the flag. None is transient.
    pub fn connect(options: EtcdOptions) -> Result<Self, Error> {
        let keys = Arc::new(Keys::new(&options.prefix));
        let connection = Arc::new(Connection::new(options)?);
        Ok(Self { connection, keys, leases: Arc::default() })
    }

    /// The key of the network config.
    pub fn config_key(&self) -> &str {
        &self.keys.config
    }

    /// Writes the network config if there is none.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn create_config(&self, value: &[u8]) -> Result<Written, Error> {
        let key = self.keys.config.as_str();
        let absent = vec![Compare::version(key, CompareOp::Equal, 0)];
        self.write("create", key, absent, TxnOp::put(key, value, None)).await
    }

    /// What is left of anybody's lease; `None` where it has ended. A request each: for people who ask, not for the daemon.
    ///
    /// # Errors
    /// What etcd fails by.
    pub async fn time_left(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let access = Access { verb: "ask what is left of", key: "a lease", permission: "any" };
        let call = |client: Client| async move { client.lease_client().time_to_live(lease.0, None).await };
        let answer = self.connection.retried(access, call).await.map_err(|failure| failure.error)?;
        // -1: there is no such lease.
        Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs))
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write that depends on `conditions`. Not tried again by itself: its answer may be what got lost.
    async fn write(&self, verb: &str, key: &str, conditions: Vec<Compare>, op: TxnOp) -> Result<Written, Error> {
        let txn = Txn::new().when(conditions).and_then([op]);
        let access = Access { verb, key, permission: "readwrite" };
        let call = |client: Client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        };
        let answer = self.connection.once(access, call).await.map_err(|failure| failure.error)?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(if answer.succeeded() { Written::At(revision) } else { Written::Conflict })
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        Ok(self.range(key, None).await?.pop())
    }

    /// A key, or all from it up to `end`.
    async fn range(&self, key: &str, end: Option<String>) -> Result<Vec<KeyValue>, Error> {
        let access = Access { verb: "read", key, permission: "read" };
        let options = end.map(|end| GetOptions::new().with_range(end));
        let call = |client: Client| {
            let options = options.clone();
            async move { client.kv_client().get(key, options).await }
        };
        let answer = self.connection.retried(access, call).await;
        Ok(answer.map_err(|failure| failure.error)?.take_kvs())
    }

    /// Grants a lease under an id of our choice, which makes the call safe to repeat.
    async fn grant_as(&self, id: i64, ttl: Duration) -> Result<Duration, Failure> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let access = Access { verb: "grant", key: "a lease", permission: "any" };
        let options = LeaseGrantOptions::new().with_id(id);
        let call = |client: Client| {
            let options = Some(options.clone());
            async move { client.lease_client().grant(seconds, options).await }
        };
        let answer = self.connection.retried(access, call).await?;
        Ok(Duration::from_secs(answer.ttl().unsigned_abs()))
    }

    /// The same where an earlier try may have worked without our hearing of it. Its time has been running since.
    async fn grant_or_renew(&self, id: i64, ttl: Duration) -> Result<Duration, Error> {
        match self.grant_as(id, ttl).await {
            Err(failure) if failure.kind == Kind::LeaseExists => {
                if let Some(left) = self.keep_alive(LeaseId(id)).await? {
                    return Ok(left);
                }
                self.grant_as(id, ttl).await.map_err(|failure| failure.error)
            }
            granted => granted.map_err(|failure| failure.error),
        }
    }
}

impl Store for EtcdStore {
    async fn config(&self) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.get(&self.keys.config).await?.map(|kv| kv.into_key_value().1))
    }

    async fn record(&self, key: &str) -> Result<Option<RawRecord>, Error> {
        Ok(self.get(&self.keys.of(key)).await?.and_then(|kv| self.keys.record(&kv)))
    }

    async fn in_the_way(&self, key: &str) -> Result<Option<RawRecord>, Error> {
        let (from, end) = match self.keys.with_ipv4_side_of(key) {
            Some((from, end)) => (from, Some(end)),
            None => (self.keys.of(key), None),
        };
        let found: Vec<_> = self.range(&from, end).await?.iter().filter_map(|kv| self.keys.record(kv)).collect();
        Ok(found.iter().find(|record| record.key == key).or(found.first()).cloned())
    }

    async fn created_since(&self, revision: i64) -> Result<Vec<(String, i64)>, Error> {
        let key = self.keys.subnets.as_str();
        let access = Access { verb: "read", key, permission: "read" };
        let options = GetOptions::new().with_prefix().with_keys_only().with_min_create_revision(revision);
        let call = |client: Client| {
            let options = Some(options.clone());
            async move { client.kv_client().get(key, options).await }
        };
        let answer = self.connection.retried(access, call).await.map_err(|failure| failure.error)?;
        let created = |kv: &KeyValue| Some((self.keys.record(kv)?.key, kv.create_revision()));
        Ok(answer.kvs().iter().filter_map(created).collect())
    }

    fn follow(&self) -> mpsc::Receiver<StoreEvent> {
        let (events, receiver) = mpsc::channel(UNREAD);
        // Weak: when the follower ends, its listener must hear of it.
        if self.connection.has_files() {
            tokio::spawn(look_at_files(Arc::clone(&self.connection), events.downgrade()));
        }
        let follower = Follower::new(Arc::clone(&self.connection), Arc::clone(&self.keys), events);
        tokio::spawn(follower.run());
        receiver
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let id = self.leases().unanswered.take().unwrap_or_else(|| rand::random_range(1..i64::MAX));
        let granted = self.grant_or_renew(id, ttl).await;
        let mut leases = self.leases();
        match granted {
            Ok(granted) => {
                leases.ttls.insert(id, granted);
                Ok(LeaseId(id))
            }
            Err(error) => {
                leases.unanswered = Some(id);
                Err(error)
            }
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Option<Duration>, Error> {
        let known = self.leases().ttls.get(&lease.0).copied();
        let access = Access { verb: "keep alive", key: "our lease", permission: "any" };
        let renew = |client: Client| async move {
            let (mut keeper, mut answers) = client.lease_client().keep_alive(lease.0).await?;
            if let Some(ttl) = known {
                return Ok(ttl);
            }
            // Not granted by us: a second round on the same stream tells how long it lasts.
            keeper.keep_alive().await?;
            let ttl = answers.message().await?.map_or(0, |answer| answer.ttl());
            Ok(Duration::from_secs(ttl.max(0).unsigned_abs()))
        };
        match self.connection.retried(access, renew).await {
            Ok(ttl) if !ttl.is_zero() => {
                self.leases().ttls.insert(lease.0, ttl);
                Ok(Some(ttl))
            }
            Err(failure) if failure.kind != Kind::LeaseGone => Err(failure.error),
            _ => {
                self.leases().ttls.remove(&lease.0);
                Ok(None)
            }
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let access = Access { verb: "revoke", key: "a lease", permission: "any" };
        let call = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        let revoked = self.connection.retried(access, call).await;
        self.leases().ttls.remove(&lease.0);
        match revoked {
            Err(failure) if failure.kind != Kind::LeaseGone => Err(failure.error),
            _ => Ok(()),
        }
    }

    async fn create(&self, key: &str, value: &[u8], lease: Option<LeaseId>) -> Result<Written, Error> {
        let full = self.keys.of(key);
        let mut absent = vec![Compare::version(full.clone(), CompareOp::Equal, 0)];
        if let Some((side, end)) = self.keys.with_ipv4_side_of(key) {
            // A comparison of a range holds if it does for each key in it.
            absent.push(Compare::version(side, CompareOp::Equal, 0).with_range(end));
        }
        let put = TxnOp::put(full.clone(), value, Some(put_options(lease)));
        self.write("create", &full, absent, put).await
    }

    async fn update(&self, key: &str, value: &[u8], lease: Option<LeaseId>, revision: i64) -> Result<Written, Error> {
        let full = self.keys.of(key);
        let same = vec![Compare::mod_revision(full.clone(), CompareOp::Equal, revision)];
        let put = TxnOp::put(full.clone(), value, Some(put_options(lease)));
        self.write("update", &full, same, put).await
    }

    async fn delete(&self, key: &str, revision: i64) -> Result<Written, Error> {
        let full = self.keys.of(key);
        let bytes = key::bytes(&full);
        let same = vec![Compare::mod_revision(bytes.clone(), CompareOp::Equal, revision)];
        self.write("delete", &full, same, TxnOp::delete(bytes, None)).await
    }
}

/// Takes up changed TLS files while somebody follows.
async fn look_at_files(connection: Arc<Connection>, events: mpsc::WeakSender<StoreEvent>) {
    while events.upgrade().is_some_and(|events| !events.is_closed()) {
        connection.look_at_files().await;
        tokio::time::sleep(LOOK_AT_FILES).await;
    }
}

fn put_options(lease: Option<LeaseId>) -> PutOptions {
    lease.map_or_else(PutOptions::new, |lease| PutOptions::new().with_lease(lease.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_normalised_as_flannel_does() {
        for prefix in ["/coreos.com/network", "coreos.com/network", "//coreos.com/network/", "/coreos.com//network//"] {
            let keys = Keys::new(prefix);
            assert_eq!(keys.config, "/coreos.com/network/config");
            assert_eq!(keys.of("10.5.52.0-24"), "/coreos.com/network/subnets/10.5.52.0-24");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let options = EtcdOptions { password: Some("secret".to_owned()), ..EtcdOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
