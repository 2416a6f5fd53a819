//! Masquerade, forwarding and what keeps the tunnel's frames from changing this host: one nftables table of our own per
//! family, kept as it should be.
//!
//! Owns the tables `ip twill.<VNI>`, `ip6 twill.<VNI>` and `arp twill.<VNI>` (of a backend without a VNI: `twill.<backend>`): by
//! that name a restarted daemon knows its own. They stay when
//! the daemon stops, as the routes do. A change is one transaction that replaces the whole table, so no packet meets half
//! of it; the kernel's notifications and a timer tell when somebody else has been at it.
//!
//! Knows neither etcd nor the VXLAN device. `rules` says what is wanted, `wire` writes it as netlink messages, `socket`
//! talks to the kernel, `others` looks at what other tools (and an earlier flannel) have there, `legacy` the same in
//! iptables-legacy, and `chains` says what that does to a packet.
//! Kernel: net/netfilter/nf_tables_api.c, net/netfilter/nfnetlink.c.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

mod chains;
mod fight;
mod legacy;
mod others;
mod rules;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

use chains::Ours;
use fight::Fight;
use rules::Table;
use socket::{Nft, Notices};

/// The first pause after sockets that failed; each further one is twice as long, up to [`RETRY`].
const REOPEN: Duration = Duration::from_millis(100);
/// After a notification, how long to wait for more before looking: others write in many small transactions.
const CALM: Duration = Duration::from_millis(50);
/// How often what failed is tried again, however rarely the rules are looked at otherwise.
const RETRY: Duration = Duration::from_secs(5);
/// How often other tools' chains are looked at at the most, each time that anything has changed since. There may be ten thousand.
const OTHERS_EVERY: Duration = Duration::from_secs(10);

/// One family's network, and the part of it that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// The whole network.
    pub network: IpNetwork,
    /// Our own subnet.
    pub subnet: IpNetwork,
    /// The VXLAN device, if there is one: what comes through it may reach pods and change nothing of this host.
    pub device: Option<String>,
}

/// What the flags and the config ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedRules {
    /// Behind `twill.` it is the tables' name: the VNI of a VXLAN network, else the backend's name.
    pub mark: String,
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
    /// Others changed the rules while they were read.
    #[error("{step}: they change meanwhile")]
    Changing {
        /// What was being done.
        step: &'static str,
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

impl Error {
    /// The kernel has no nf_tables, or not for this family: there can be no rules of ours.
    fn unsupported(&self) -> bool {
        let (Self::Socket { source, .. } | Self::Refused { source, .. }) = self else { return false };
        let absent = [libc::EINVAL, libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ENOENT];
        source.raw_os_error().is_some_and(|code| absent.contains(&code))
    }
}

/// How the rules are, for whoever asks whether the node is ready.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RulesState {
    /// Why they are not as they should be, or not for long; `None` while they are.
    pub problem: Option<String>,
    /// How often tables were restored after another program had changed them.
    pub restores: u64,
}

/// Keeps the rules as they should be, until nobody listens any more; those of an earlier run that are not wanted go.
///
/// The work is done on a thread of its own, in this thread's network namespace: big rule sets of others take their time,
/// and a packet that waits for the event loop must not.
///
/// # Errors
/// When there is no thread to be had.
pub fn keep(wanted: WantedRules, resync: Duration) -> io::Result<watch::Receiver<RulesState>> {
    let (state, told) = watch::channel(RulesState { problem: Some("not written yet".to_owned()), restores: 0 });
    // The thread comes first: a runtime that finds none could not be dropped here, within another one.
    let (give, take) = mpsc::sync_channel::<Runtime>(1);
    let work = move || {
        let Ok(runtime) = take.recv() else { return };
        runtime.block_on(async {
            tokio::select! {
                () = keep_for_ever(&wanted, resync, &state) => {}
                () = state.closed() => {}
            }
        });
    };
    std::thread::Builder::new().name("nftables".to_owned()).spawn(work)?;
    // The thread waits for it, or ends where there is none.
    let _ = give.send(tokio::runtime::Builder::new_current_thread().enable_all().build()?);
    Ok(told)
}

/// Opens the sockets anew after each failure of one.
async fn keep_for_ever(wanted: &WantedRules, resync: Duration, state: &watch::Sender<RulesState>) {
    let guard_only = rules::tables(wanted).iter().all(Table::is_guard_only);
    let (mut pause, mut said) = (REOPEN, false);
    let mut fight = Fight::new(Instant::now());
    let mut known = Known::of(wanted);
    loop {
        let opened = Instant::now();
        match Masquerade::open(wanted, &mut known) {
            Ok(masquerade) => masquerade.keep(resync, state, &mut fight).await,
            Err(error) if guard_only && error.unsupported() => {
                if !std::mem::replace(&mut said, true) {
                    warn!(%error, "{UNGUARDED}");
                }
                fight.tell(state, None);
            }
            Err(error) => fight.tell(state, Some(error.to_string())),
        }
        if opened.elapsed() >= RETRY {
            pause = REOPEN;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY);
    }
}

/// What is said where there can be no guard.
const UNGUARDED: &str = "the kernel lacks the part of nf_tables that keeps what comes through the tunnel from changing this host: \
    router advertisements, redirects and ARP are kept out by the parameters of the device alone, as far as they are set";

/// The rules in the kernel and what watches over them.
struct Masquerade<'a> {
    nft: Nft,
    notices: Notices,
    known: &'a mut Known,
    sides: Vec<Side>,
    ours: Ours,
}

/// What outlives the sockets: new ones begin with a comparison, and say nothing that has been said.
struct Known {
    tables: Vec<Entry>,
    /// What was said last of each thing, so that only news is said.
    said: BTreeMap<&'static str, String>,
}

impl Known {
    fn of(wanted: &WantedRules) -> Self {
        let tables = rules::tables(wanted).into_iter();
        let tables = tables.map(|table| Entry { table, shown: None, known: false }).collect();
        Self { tables, said: BTreeMap::new() }
    }

    /// Whether this is worth saying: something else was said of this thing last.
    fn news(&mut self, thing: &'static str, text: &str) -> bool {
        let before = self.said.insert(thing, text.to_owned());
        !text.is_empty() && before.as_deref() != Some(text)
    }
}

/// A table with what the kernel showed of it when it was last written.
struct Entry {
    table: Table,
    shown: Option<Vec<u8>>,
    /// It was in place before.
    known: bool,
}

/// Names of tables that were brought to what is wanted.
#[derive(Default)]
struct Mended {
    /// For the first time.
    new: Vec<String>,
    /// After somebody changed them.
    again: Vec<String>,
}

impl<'a> Masquerade<'a> {
    /// Opens the sockets in the network namespace of this thread, within a tokio runtime. Writes nothing yet.
    fn open(wanted: &WantedRules, known: &'a mut Known) -> Result<Self, Error> {
        let nft = Nft::open()?;
        Ok(Self {
            notices: Notices::open(rules::table_name(&wanted.mark), nft.port)?,
            nft,
            known,
            sides: wanted.sides.clone(),
            ours: Ours { masquerade: wanted.masquerade, forward: wanted.forward },
        })
    }

    /// Brings each table to what is wanted, whatever became of the others; what was to be done, and the first error.
    fn mend(&mut self) -> (Mended, Option<Error>) {
        let (mut mended, mut first) = (Mended::default(), None);
        let mut unguarded = Vec::new();
        for entry in &mut self.known.tables {
            // Others write too: what failed once may do now, and nobody needs to hear of it.
            match entry.mend(&mut self.nft).or_else(|_| entry.mend(&mut self.nft)) {
                Ok(false) => {}
                Ok(true) if entry.known => mended.again.push(entry.table.to_string()),
                Ok(true) => mended.new.push(entry.table.to_string()),
                Err(error) if entry.table.is_guard_only() && error.unsupported() => {
                    unguarded.push(format!("{}: {error}", entry.table));
                }
                Err(error) => {
                    first.get_or_insert(error);
                    continue;
                }
            }
            entry.known = true;
        }
        let unguarded = unguarded.join("; ");
        if self.known.news("unguarded", &unguarded) {
            warn!(tables = %unguarded, "{UNGUARDED}");
        }
        (mended, first)
    }

    /// Removes what an earlier flannel left once our own rules are in, and says which chains of others stand against us;
    /// whether that is done for now.
    fn look_around(&mut self, fight: &mut Fight) -> bool {
        let chains = match others::read(&mut self.nft) {
            Ok(chains) => chains,
            Err(error) => {
                let error = error.to_string();
                if self.known.news("read", &error) {
                    warn!(%error, "cannot read other tools' chains");
                }
                return false;
            }
        };
        let legacy = legacy::read();
        if self.known.news("missing", &legacy.missing.join(", ")) {
            info!(missing = %legacy.missing.join(", "), "iptables-legacy is in use on this host and its programs are not here: \
                whether an earlier flannel's chains are in it, `iptables-legacy-save | grep FLANNEL` tells; \
                `iptables-legacy -t nat -D POSTROUTING ... -j FLANNEL-POSTRTG`, `-F FLANNEL-POSTRTG` and `-X FLANNEL-POSTRTG` \
                remove one");
        }
        let mut removal = others::remove_flannel_s(&mut self.nft, &chains, self.ours);
        removal.extend(legacy::remove_flannel_s(&legacy, self.ours));
        removal.failed.extend(legacy.failed);
        if !removal.removed.is_empty() {
            fight.removed(&removal.removed, Instant::now());
        }
        if self.known.news("kept", &removal.kept.join(", ")) {
            info!(
                kept = removal.kept.join(", "),
                "a chain of an earlier flannel stays: what comes behind it could drop the network's packets"
            );
        }
        if self.known.news("failed", &removal.failed.join(", ")) {
            warn!(failed = removal.failed.join(", "), "cannot remove the rules of an earlier flannel");
        }
        let in_legacy =
            legacy.chains.against(&self.sides).into_iter().map(|chain| format!("{chain} of iptables-legacy"));
        let against = chains.against(&self.sides).into_iter().chain(in_legacy).collect::<Vec<_>>().join("; ");
        if self.known.news("against", &against) {
            let networks: Vec<String> = self.sides.iter().map(|side| side.network.to_string()).collect();
            warn!(chains = %against, forward_rules = self.ours.forward,
                "forwarded packets of the network are dropped by a chain that is not ours, and no rule of another table can change that: accept {} there", networks.join(" and "));
        }
        removal.failed.is_empty()
    }

    /// Keeps the rules as they should be until a socket fails.
    async fn keep(mut self, resync: Duration, state: &watch::Sender<RulesState>, fight: &mut Fight) {
        let mut timer = tokio::time::interval(resync);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked: Option<Instant> = None;
        let mut changed = true;
        loop {
            let (mended, error) = self.mend();
            if !mended.new.is_empty() {
                info!(tables = mended.new.join(", "), "nftables rules are in");
            }
            if !mended.again.is_empty() {
                fight.mended(&mended.again, self.notices.take_writer(), Instant::now());
            }
            let problem = error.as_ref().map(Error::to_string);
            fight.tell(state, problem.clone());
            if let Some(Error::Socket { .. }) = error {
                return;
            }
            if problem.is_none() && changed && looked.is_none_or(|at| at.elapsed() >= OTHERS_EVERY) {
                changed = !self.look_around(fight);
                looked = Some(Instant::now());
            }
            tokio::select! {
                _ = timer.tick() => {}
                () = tokio::time::sleep(RETRY), if problem.is_some() => {}
                // What could not be looked at, or changed right after it was.
                () = tokio::time::sleep(OTHERS_EVERY), if problem.is_none() && changed => {}
                () = fight.count() => {}
                told = self.notices.changed() => {
                    changed = true;
                    if let Err(error) = told {
                        debug!(%error, "nftables notifications were lost");
                        // Any other error is of the socket, which is opened anew with the other one.
                        if error.raw_os_error() != Some(libc::ENOBUFS) {
                            return;
                        }
                    }
                    let calm = Instant::now() + CALM;
                    tokio::time::sleep_until(calm.max(fight.next_repair())).await;
                    self.notices.drain().await;
                }
            }
        }
    }
}

impl Entry {
    /// Writes the table if it is not as it was written; whether it was not.
    fn mend(&mut self, nft: &mut Nft) -> Result<bool, Error> {
        let now = nft.show(&self.table)?;
        if self.shown.as_ref() == Some(&now) {
            return Ok(false);
        }
        self.shown = None;
        nft.transact("write the rules", &wire::replace(&self.table))?;
        let shown = nft.show(&self.table)?;
        let (count, written) = (socket::count_rules(&shown), self.table.rules());
        if count != written {
            return Err(Error::Differs { table: self.table.to_string(), written, shown: count });
        }
        self.shown = Some(shown);
        Ok(true)
    }
}
