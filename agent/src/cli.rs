//! twilld's command line: flannel's flags and variables, Go's spelling of them, and Twill's own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};

use crate::overlay::plane::PeerMode;
use crate::store;
use crate::store::etcd::{EtcdOptions, EtcdStore, Tls};

/// A flannel-compatible VXLAN overlay agent.
///
/// Every flag is also read from the environment as FLANNELD_<FLAG>, with capitals and underscores.
#[derive(Debug, Clone, Parser)]
#[command(name = "twilld", version, args_override_self = true, max_term_width = 120)]
pub struct Flags {
    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdFlags,

    /// The interface that reaches the other nodes, by name or address; may be given several times, the first one that
    /// is there is used. Default: the one of the default route with the lowest metric.
    #[arg(long, env = "FLANNELD_IFACE", value_name = "NAME|IP", action = ArgAction::Append)]
    pub iface: Vec<String>,
    /// The address that peers are told, where it is not the interface's own (NAT).
    #[arg(long, env = "FLANNELD_PUBLIC_IP", value_name = "IP")]
    pub public_ip: Option<IpAddr>,
    /// Where the CNI plugin reads our subnet.
    #[arg(long, env = "FLANNELD_SUBNET_FILE", default_value = "/run/flannel/subnet.env", value_name = "FILE")]
    pub subnet_file: PathBuf,
    /// How long before its end the lease is renewed, in minutes.
    #[arg(long, env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", default_value = "60", value_name = "MINUTES")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1439))]
    pub subnet_lease_renew_margin: u64,

    /// Log more: 1 to 5 show each decision, from 6 on each packet that is asked about. RUST_LOG goes before.
    #[arg(short = 'v', num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "1")]
    #[arg(value_name = "LEVEL")]
    pub verbosity: u8,

    /// When peers are put into the kernel: at the first packet, or all at once as flannel does.
    #[arg(long, env = "FLANNELD_PEER_MODE", default_value = "on-demand", value_name = "MODE")]
    #[arg(help_heading = "Twill's own")]
    pub peer_mode: Mode,
    /// On demand: how long a peer may go without a packet before it is taken out, as in 90s, 10m, 1h.
    #[arg(long, env = "FLANNELD_PEER_IDLE_TIMEOUT", default_value = "10m", value_name = "TIME")]
    #[arg(value_parser = duration, help_heading = "Twill's own")]
    pub peer_idle_timeout: Duration,
    /// On demand: put every known peer into the kernel before a clean stop.
    #[arg(long, env = "FLANNELD_PROGRAM_ALL_ON_EXIT", num_args = 0..=1, require_equals = true, value_name = "BOOL")]
    #[arg(default_value = "true", default_missing_value = "true", action = ArgAction::Set, help_heading = "Twill's own")]
    pub program_all_on_exit: bool,
}

/// How to reach etcd: the same for every program.
#[derive(Debug, Clone, clap::Args)]
pub struct EtcdFlags {
    /// etcd's endpoints, separated by commas.
    #[arg(long, env = "FLANNELD_ETCD_ENDPOINTS", value_delimiter = ',', value_name = "URL,...")]
    #[arg(default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379")]
    pub etcd_endpoints: Vec<String>,
    /// Where in etcd the network config and the records live.
    #[arg(long, env = "FLANNELD_ETCD_PREFIX", default_value = "/coreos.com/network", value_name = "KEY")]
    pub etcd_prefix: String,
    /// The CA that signed etcd's certificate, PEM.
    #[arg(long, env = "FLANNELD_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Our client certificate for etcd, PEM.
    #[arg(long, env = "FLANNELD_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of our client certificate, PEM.
    #[arg(long, env = "FLANNELD_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// The user to log in to etcd as.
    #[arg(long, env = "FLANNELD_ETCD_USERNAME", value_name = "NAME")]
    pub etcd_username: Option<String>,
    /// That user's password.
    #[arg(long, env = "FLANNELD_ETCD_PASSWORD", value_name = "SECRET", hide_env_values = true)]
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
    /// Reads the process's command line; says on the terminal what is wrong with it, and ends the process.
    pub fn read() -> Self {
        Self::parse_from(args())
    }
}

/// A command line (the program's name first) with Go's spelling of flags made clap's.
pub fn args() -> Vec<String> {
    from_go(std::env::args())
}

/// Rewrites Go's `-name` and `-name=value` to `--name`; leaves `-v`, numbers and all behind `--` as they are.
fn from_go(args: impl Iterator<Item = String>) -> Vec<String> {
    let mut plain = false;
    let rewrite = |arg: String| {
        plain |= arg == "--";
        let Some(name) = arg.strip_prefix('-').filter(|_| !plain) else { return arg };
        let long = name.split('=').next().is_some_and(|name| name.len() > 1);
        let flag = long && !name.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic());
        if flag { format!("-{arg}") } else { arg }
    };
    args.map(rewrite).collect()
}

/// Reads a time as Go writes it: `90s`, `10m`, `1h`, `1h30m`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("expected a time such as 90s, 10m or 1h30m, got {text:?}");
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0).ok_or_else(bad)?;
        let number: u32 = rest[..digits].parse().map_err(|_| bad())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let unit = match &rest[digits..unit_end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(bad()),
        };
        total += unit.checked_mul(number).ok_or_else(bad)?;
        rest = &rest[unit_end..];
    }
    if total.is_zero() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Result<Flags, clap::Error> {
        let args = std::iter::once("twilld").chain(args.iter().copied()).map(str::to_owned);
        Flags::try_parse_from(from_go(args))
    }

    #[test]
    fn go_spelling_is_read() {
        let flags = flags(&["-iface", "eth0", "-iface=eth1", "-v=2", "-etcd-endpoints=http://a:1,http://b:2"]).unwrap();
        assert_eq!(flags.iface, ["eth0", "eth1"]);
        assert_eq!((flags.verbosity, flags.etcd.etcd_endpoints.len()), (2, 2));
        assert_eq!(self::flags(&["-v"]).unwrap().verbosity, 1);
        assert!(!self::flags(&["-program-all-on-exit=false"]).unwrap().program_all_on_exit);
    }

    #[test]
    fn the_last_of_a_repeated_flag_wins() {
        let flags = flags(&["--peer-mode=all", "--peer-mode=on-demand", "--peer-idle-timeout", "1h30m"]).unwrap();
        assert_eq!((flags.peer_mode, flags.peer_idle_timeout.as_secs()), (Mode::OnDemand, 5400));
    }

    #[test]
    fn bad_values_are_named_with_their_flag() {
        for (args, expected) in [
            (vec!["--peer-idle-timeout=soon"], "--peer-idle-timeout"),
            (vec!["--peer-idle-timeout=0s"], "expected a time"),
            (vec!["--subnet-lease-renew-margin=0"], "1..=1439"),
            (vec!["--public-ip=here"], "--public-ip"),
            (vec!["--etcd-endpoint=http://a:1"], "--etcd-endpoints"),
        ] {
            let error = flags(&args).unwrap_err().to_string();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }
}
