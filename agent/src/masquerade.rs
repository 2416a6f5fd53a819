//! Masquerade and forwarding: one nftables table of our own per family, kept as it should be.
//!
//! Owns the tables `ip twill.<VNI>` and `ip6 twill.<VNI>`: by that name a restarted daemon knows its own. They stay when
//! the daemon stops, as the routes do. A change is one transaction that replaces the whole table, so no packet meets half
//! of it; the kernel's notifications and a timer tell when somebody else has been at it.
//!
//! Knows neither etcd nor the VXLAN device. `rules` says what is wanted, `wire` writes it as netlink messages, `socket`
//! talks to the kernel, `others` looks at what other tools (and an earlier flannel) have there, `legacy` the same in
//! iptables-legacy, and `chains` says what that does to a packet.
//! Kernel: net/netfilter/nf_tables_api.c, net/netfilter/nfnetlink.c.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

mod chains;
mod legacy;
mod others;
mod rules;
mod socket;
mod wire;

use chains::Ours;
use rules::Table;
use socket::{Nft, Notices};

/// After a notification, how long to wait for more before looking: others write in many small transactions.
const CALM: Duration = Duration::from_millis(50);
/// How often other tools' chains are looked at, if anything has changed since.
const OTHERS_EVERY: Duration = Duration::from_secs(60);

/// One family's network, and the part of it that is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Side {
    /// The whole network.
    pub network: IpNetwork,
    /// Our own subnet.
    pub subnet: IpNetwork,
}

/// What the flags and the config ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The VNI, which is part of the tables' name.
    pub vni: u32,
    /// The families.
    pub sides: Vec<Side>,
    /// `--ip-masq`.
    pub masquerade: bool,
    /// Not `--ip-masq-fully-random-disable`.
    pub fully_random: bool,
    /// `--iptables-forward-rules`.
    pub forward: bool,
}

/// Why the rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("{step}: {source}")]
    Socket {
        /// What was being done.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("{step}: the kernel refuses: {source}")]
    Refused {
        /// What was being done.
        step: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The rules were written and the kernel shows others.
    #[error("{table}: {shown} rules are there after {written} were written")]
    Differs {
        /// The table.
        table: String,
        /// Rules written.
        written: usize,
        /// Rules there.
        shown: usize,
    },
}

/// The rules in the kernel and what watches over them.
pub struct Masquerade {
    nft: Nft,
    notices: Notices,
    tables: Vec<Entry>,
    sides: Vec<Side>,
    ours: Ours,
    /// What was said last of each thing, so that only news is said.
    said: BTreeMap<&'static str, String>,
}

/// A table with what the kernel showed of it when it was last written.
struct Entry {
    table: Table,
    shown: Option<Vec<u8>>,
}

impl Masquerade {
    /// Opens the sockets in the network namespace of this thread, within a tokio runtime. Writes nothing yet.
    pub fn open(wanted: &Wanted) -> Result<Self, Error> {
        let tables = rules::tables(wanted).into_iter().map(|table| Entry { table, shown: None }).collect();
        Ok(Self {
            nft: Nft::open()?,
            notices: Notices::open()?,
            tables,
            sides: wanted.sides.clone(),
            ours: Ours { masquerade: wanted.masquerade, forward: wanted.forward },
            said: BTreeMap::new(),
        })
    }

    /// Brings the tables to what is wanted; the names of those that were not.
    pub fn mend(&mut self) -> Result<Vec<String>, Error> {
        let mut mended = Vec::new();
        for entry in &mut self.tables {
            if let Some(shown) = &entry.shown
                && self.nft.show(&entry.table)? == *shown
            {
                continue;
            }
            entry.shown = None;
            self.nft.transact("write the rules", &wire::replace(&entry.table))?;
            let shown = self.nft.show(&entry.table)?;
            let (count, written) = (socket::count_rules(&shown), entry.table.rules());
            if count != written {
                return Err(Error::Differs { table: entry.table.to_string(), written, shown: count });
            }
            entry.shown = Some(shown);
            mended.extend((written > 0).then(|| entry.table.to_string()));
        }
        Ok(mended)
    }

    /// Removes what an earlier flannel left once our own rules are in, and says which chains of others stand against us;
    /// whether that is done for now.
    fn look_around(&mut self) -> bool {
        let chains = match others::read(&mut self.nft) {
            Ok(chains) => chains,
            Err(error) => {
                let error = error.to_string();
                if self.news("read", &error) {
                    warn!(%error, "cannot read other tools' chains");
                }
                return false;
            }
        };
        let legacy = legacy::read();
        if self.news("missing", &legacy.missing.join(", ")) {
            info!(missing = %legacy.missing.join(", "), "iptables-legacy is in use on this host and its programs are not here: \
                whether an earlier flannel's chains are in it, `iptables-legacy-save | grep FLANNEL` tells; \
                `iptables-legacy -t nat -D POSTROUTING ... -j FLANNEL-POSTRTG`, `-F FLANNEL-POSTRTG` and `-X FLANNEL-POSTRTG` \
                remove one");
        }
        let mut removal = others::remove_flannel_s(&mut self.nft, &chains, self.ours);
        removal.extend(legacy::remove_flannel_s(&legacy, self.ours));
        removal.failed.extend(legacy.failed);
        if !removal.removed.is_empty() {
            info!(removed = ?removal.removed, "rules of an earlier flannel removed");
        }
        if self.news("kept", &removal.kept.join(", ")) {
            info!(kept = ?removal.kept, "a chain of an earlier flannel stays: what comes behind it could drop the network's packets");
        }
        if self.news("failed", &removal.failed.join(", ")) {
            warn!(failed = ?removal.failed, "cannot remove the rules of an earlier flannel");
        }
        let in_legacy =
            legacy.chains.against(&self.sides).into_iter().map(|chain| format!("{chain} of iptables-legacy"));
        let against = chains.against(&self.sides).into_iter().chain(in_legacy).collect::<Vec<_>>().join("; ");
        if self.news("against", &against) {
            let networks: Vec<String> = self.sides.iter().map(|side| side.network.to_string()).collect();
            warn!(chains = %against, forward_rules = self.ours.forward,
                "forwarded packets of the network are dropped by a chain that is not ours, and no rule of another table can change that: accept {} there", networks.join(" and "));
        }
        removal.failed.is_empty()
    }

    /// Whether this is worth saying: something else was said of this thing last.
    fn news(&mut self, thing: &'static str, text: &str) -> bool {
        let before = self.said.insert(thing, text.to_owned());
        !text.is_empty() && before.as_deref() != Some(text)
    }

    /// Keeps the rules as they should be for ever. `state` is `None` while they are, else why not.
    pub async fn keep(mut self, resync: Duration, state: watch::Sender<Option<String>>) {
        let mut timer = tokio::time::interval(resync);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked: Option<Instant> = None;
        let mut changed = true;
        loop {
            let first = self.tables.iter().all(|entry| entry.shown.is_none());
            let problem = match self.mend() {
                Ok(mended) if mended.is_empty() => None,
                Ok(mended) => {
                    if first {
                        info!(tables = ?mended, "nftables rules are in");
                    } else {
                        warn!(tables = ?mended, "nftables rules were changed by somebody, mended");
                    }
                    None
                }
                Err(error) => Some(error.to_string()),
            };
            state.send_if_modified(|now| {
                let news = *now != problem;
                if let (true, Some(problem)) = (news, &problem) {
                    warn!(%problem, "nftables rules are not in place, trying until they are");
                }
                now.clone_from(&problem);
                news
            });
            if problem.is_none() && changed && looked.is_none_or(|at| at.elapsed() >= OTHERS_EVERY) {
                changed = !self.look_around();
                looked = Some(Instant::now());
            }
            tokio::select! {
                _ = timer.tick() => {}
                told = self.notices.changed() => {
                    changed = true;
                    if let Err(error) = told {
                        debug!(%error, "nftables notifications were lost");
                    }
                    tokio::time::sleep(CALM).await;
                    self.notices.drain().await;
                }
            }
        }
    }
}
