//! twilld's command line: flannel's flags and variables, Go's spelling of them, and Twill's own.
//!
//! Names, defaults and meanings of flannel's flags are those of
//! <https://github.com/flannel-io/flannel/blob/v0.28.9/main.go>. `go` reads its spelling and its variables, and refuses
//! what makes no sense here; `values` reads single values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use regex_lite::Regex;

use crate::log;
use crate::nodeid;
use crate::overlay::iface::Wish;
use crate::overlay::plane::PeerMode;
use crate::store;
use crate::store::etcd::{EtcdOptions, EtcdStore, Tls};

mod go;
mod values;

pub use go::read;
pub use values::{duration, host};

const INTERFACE: &str = "The interface";
const NODE: &str = "The node";
const RULES: &str = "Masquerade and forwarding (nftables)";
const HEALTH: &str = "Health";
const LOG: &str = "Log";
const OWN: &str = "Twill's own";

/// What stands below the flags.
const AFTER_HELP: &str = "\
Signals:
  SIGTERM, SIGINT, SIGQUIT  a clean stop; a second one changes nothing
  SIGHUP                    compares the kernel with the records at once; no flag and no file is read again
  SIGUSR1, SIGUSR2          write the state to the log
All others that would end a process do nothing, but SIGKILL and those of a fault (SIGABRT, SIGSEGV, ...).

Exit codes:
  0  a clean stop; device, routes and record stay
  1  it cannot go on: no such interface, no CAP_NET_ADMIN, another node with our public IP, another twilld on this device, ...
  2  the command line or a variable is wrong
  3  our subnet is lost for good: another node holds it; subnet.env is removed";

/// A flannel-compatible VXLAN overlay agent.
///
/// Takes flanneld's flags, also in Go's spelling (-iface eth0, --ip-masq=true), and reads each one's variable as well:
/// FLANNELD_ and the name in capitals with underscores, as in FLANNELD_ETCD_ENDPOINTS. A flag goes before its variable;
/// an empty value counts as none.
#[derive(Debug, Clone, Parser)]
#[command(name = "twilld", version = crate::VERSION, args_override_self = true, max_term_width = 120, after_help = AFTER_HELP)]
pub struct Flags {
    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdFlags,

    /// The interface that reaches the other nodes, by name or address; may be given several times, the first one that
    /// is there is used. Default: the one of the default route with the lowest metric.
    #[arg(long, value_name = "NAME|IP", action = ArgAction::Append, help_heading = INTERFACE)]
    pub iface: Vec<String>,
    /// The same by a pattern, first tried on addresses, then on names; after every --iface. May be given several times.
    #[arg(long, value_name = "REGEX", action = ArgAction::Append, value_parser = values::regex, help_heading = INTERFACE)]
    pub iface_regex: Vec<Regex>,
    /// The interface through which the kernel reaches this address; after every --iface and --iface-regex.
    #[arg(long, value_name = "IP", value_parser = values::ip, help_heading = INTERFACE)]
    pub iface_can_reach: Option<IpAddr>,
    /// The IPv4 address that peers are told, where it is not the interface's own (NAT).
    #[arg(long, value_name = "IPv4", value_parser = values::ipv4, help_heading = INTERFACE)]
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address that peers are told.
    #[arg(long, value_name = "IPv6", value_parser = values::ipv6, help_heading = INTERFACE)]
    pub public_ipv6: Option<Ipv6Addr>,

    /// Where the CNI plugin reads our subnet.
    #[arg(long, default_value = "/run/flannel/subnet.env", value_name = "FILE", help_heading = NODE)]
    pub subnet_file: PathBuf,
    /// How long before its end the lease is renewed, in minutes.
    #[arg(long, default_value = "60", value_name = "MINUTES", help_heading = NODE)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1439))]
    pub subnet_lease_renew_margin: u64,
    /// Drop packets for our own subnet that no pod has, instead of sending them on by the default route.
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", default_value = "false")]
    #[arg(default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean, help_heading = NODE)]
    pub ip_blackhole_route: bool,

    /// Give packets that leave the network the node's address as their source.
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", default_value = "false")]
    #[arg(default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean, help_heading = RULES)]
    pub ip_masq: bool,
    /// Let the kernel keep source ports where it can, instead of drawing each at random.
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", default_value = "false")]
    #[arg(default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean, help_heading = RULES)]
    pub ip_masq_fully_random_disable: bool,
    /// Accept forwarded packets from and to the network.
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", default_value = "true")]
    #[arg(default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean, help_heading = RULES)]
    pub iptables_forward_rules: bool,
    /// How often the rules are looked at without any cause, in seconds. Changes by others are mended at once.
    #[arg(long, default_value = "5", value_name = "SECONDS", help_heading = RULES)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub iptables_resync: u64,

    /// The address of /healthz, /readyz and /metrics. Flannel's default is 0.0.0.0, which every pod and every host may ask; with this one a
    /// probe of the kubelet names `host: 127.0.0.1`.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP", value_parser = values::ip, help_heading = HEALTH)]
    pub healthz_ip: IpAddr,
    /// Their port; 0 switches them off.
    #[arg(long, default_value = "0", value_name = "PORT", help_heading = HEALTH)]
    pub healthz_port: u16,

    /// Log more: 1 to 5 show each decision, from 6 on each packet that is asked about. RUST_LOG goes before.
    #[arg(short = 'v', num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "1")]
    #[arg(value_name = "LEVEL", help_heading = LOG)]
    pub verbosity: u8,
    /// What a line of the log looks like: text for people, or a JSON object for programs. Text that goes to the journal has
    /// its priorities.
    #[arg(long, default_value = "text", value_name = "FORMAT", help_heading = LOG)]
    pub log_format: log::Format,

    /// When peers are put into the kernel: at the first packet, or all at once as flannel does.
    #[arg(long, default_value = "on-demand", value_name = "MODE", help_heading = OWN)]
    pub peer_mode: Mode,
    /// On demand: how long a peer may go without a packet before it is taken out, as in 90s, 10m, 1h.
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = values::duration, help_heading = OWN)]
    pub peer_idle_timeout: Duration,
    /// On demand: put every known peer into the kernel before a clean stop.
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "BOOL", default_value = "true")]
    #[arg(default_missing_value = "true", action = ArgAction::Set, value_parser = values::boolean, help_heading = OWN)]
    pub program_all_on_exit: bool,
    /// How long to wait for another twilld that keeps the same device on this node to stop, before giving up with exit
    /// code 1.
    #[arg(long, default_value = "45s", value_name = "TIME", value_parser = values::duration, help_heading = OWN)]
    pub takeover_timeout: Duration,
    /// What tells this node from another one with the same public IP, as in a host name. Default: the machine-id, if there
    /// is one.
    #[arg(long, value_name = "ID", value_parser = nodeid::parse, help_heading = OWN)]
    pub node_id: Option<String>,
}

/// How to reach etcd: the same for every program.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "etcd")]
pub struct EtcdFlags {
    /// etcd's endpoints, separated by commas.
    #[arg(long, global = true, value_delimiter = ',', action = ArgAction::Set, value_name = "URL,...")]
    #[arg(default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379")]
    pub etcd_endpoints: Vec<String>,
    /// Where in etcd the network config and the records live.
    #[arg(long, global = true, default_value = "/coreos.com/network", value_name = "KEY")]
    pub etcd_prefix: String,
    /// The CA that signed etcd's certificate, PEM.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Our client certificate for etcd, PEM.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of our client certificate, PEM.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// The user to log in to etcd as.
    #[arg(long, global = true, value_name = "NAME")]
    pub etcd_username: Option<String>,
    /// That user's password; its variable keeps it out of the list of processes.
    #[arg(long, global = true, value_name = "SECRET")]
    pub etcd_password: Option<String>,
}

/// `--peer-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// At the first packet towards a peer.
    OnDemand,
    /// As soon as the peer's record appears.
    All,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::OnDemand => "on-demand",
            Mode::All => "all",
        })
    }
}

impl From<Mode> for PeerMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::OnDemand => PeerMode::OnDemand,
            Mode::All => PeerMode::All,
        }
    }
}

impl EtcdFlags {
    /// The store that these flags name. Nothing is connected yet.
    pub fn store(&self) -> Result<EtcdStore, store::Error> {
        let tls = Tls {
            ca_file: self.etcd_cafile.clone(),
            cert_file: self.etcd_certfile.clone(),
            key_file: self.etcd_keyfile.clone(),
        };
        let has_tls = tls.ca_file.is_some() || tls.cert_file.is_some() || tls.key_file.is_some();
        EtcdStore::connect(EtcdOptions {
            endpoints: self.etcd_endpoints.clone(),
            prefix: self.etcd_prefix.clone(),
            tls: has_tls.then_some(tls),
            username: self.etcd_username.clone(),
            password: self.etcd_password.clone(),
        })
    }
}

impl Flags {
    /// Reads the process's command line and variables; says on the terminal what is wrong with them, and ends the
    /// process with 2.
    pub fn read() -> Self {
        go::read()
    }

    /// Which interface is asked for.
    pub fn wish(&self) -> Wish {
        Wish {
            iface: self.iface.clone(),
            regex: self.iface_regex.clone(),
            can_reach: self.iface_can_reach,
            public_ip: self.public_ip,
            public_ipv6: self.public_ipv6,
        }
    }

    /// Where health is served, if it is.
    pub fn healthz(&self) -> Option<SocketAddr> {
        (self.healthz_port != 0).then(|| SocketAddr::new(self.healthz_ip, self.healthz_port))
    }
}

#[cfg(test)]
mod tests;
