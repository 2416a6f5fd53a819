//! The operator's command.

// They panic where standard output or error cannot be written: `out` and the log don't.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use twill_agent::cli::{self, EtcdFlags};
use twill_agent::init_config::Stands;
use twill_agent::leases::{self, Asked, Seen, complain};
use twill_agent::reserve::{self, Whom};
use twill_agent::{docker_opts, init_config, install, log, nodeid, out, process};

/// Records that every node ignores.
const SOME_IGNORED: u8 = 3;
/// etcd has another network config.
const ANOTHER_CONFIG: u8 = 4;

/// What stands below the flags.
const AFTER_HELP: &str = "\
Exit codes:
  0  done; with `leases`: each record is a node's or a reservation
  1  not done: no network config, no answer from etcd in time, another node holds the subnet, ...
  2  the command line or a variable is wrong
  3  `leases`: the table is complete, and every node ignores some of the records in it
  4  `init-config`: etcd has another network config, which was left as it is";

/// Looks at a Twill (or flannel) network.
#[derive(Debug, Parser)]
#[command(name = "twill", version = twill_agent::VERSION, args_override_self = true, max_term_width = 120, after_help = AFTER_HELP)]
struct Flags {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    etcd: EtcdFlags,
    /// How long etcd may take over all that is asked of it, as in 10s, 1m.
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = cli::duration, help_heading = "etcd")]
    timeout: Duration,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the subnets that nodes hold, as etcd has them.
    ///
    /// A line for each subnet: SUBNET (as `release` takes it), PUBLIC-IP, BACKEND, VTEP-MAC, NODE, LEFT (what is left of its
    /// lease, or `reservation`), STATE (`ok`, or why every node ignores the record). Only STATE has spaces in it. Keys that name no
    /// subnet follow in a table of their own. Ends with 3 if any record is ignored.
    #[command(after_help = AFTER_HELP)]
    Leases,
    /// Set a subnet aside for a node, which needs not be there yet; without a flag, for the one that holds it now.
    ///
    /// A reservation never ends by itself. flannel knows a node by its public IP, a node id is known to Twill only.
    Reserve {
        /// As in 10.5.7.0/24; with two families as in 10.5.7.0/24,fc00:0:0:7::/64.
        subnet: String,
        /// The node's public IP.
        #[arg(long, value_name = "IP", conflicts_with = "node", value_parser = cli::host)]
        public_ip: Option<IpAddr>,
        /// The node's id: its machine-id, or what it has as --node-id.
        #[arg(long, value_name = "ID", value_parser = nodeid::parse)]
        node: Option<String>,
    },
    /// Put the CNI plugin and its configuration where the container runtime looks for them.
    ///
    /// A configuration 10-flannel.conflist that is somebody else's is kept, once, as 10-flannel.conflist.before-twill.
    InstallCni {
        /// The configuration to put there, instead of the built-in one (flannel's own: `flannel` and `portmap`).
        #[arg(long, value_name = "FILE")]
        conflist: Option<PathBuf>,
        /// Where plugins are.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        bin_dir: PathBuf,
        /// Where network configurations are.
        #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
        conf_dir: PathBuf,
    },
    /// Write the network config to etcd if there is none. An existing one is never changed.
    ///
    /// Ends with 4 if another one is there, and prints both.
    #[command(after_help = AFTER_HELP)]
    InitConfig {
        /// The file that holds it, JSON; - for standard input.
        file: PathBuf,
        /// End with 0 also if another one is there: for a Job that only sees to it that there is one.
        #[arg(long)]
        if_missing: bool,
    },
    /// Give Docker the node's subnet, where containers get their network from Docker and not from CNI.
    ///
    /// Takes the flags of flannel's mk-docker-opts.sh and writes the same variables, for Docker's unit; or Docker's
    /// daemon.json.
    DockerOpts(docker_opts::Options),
    /// End a reservation. One in use becomes an ordinary lease.
    Release {
        /// As in 10.5.7.0/24; with --force also a key that names no subnet, as `twill leases` shows it.
        #[arg(value_name = "SUBNET|KEY")]
        subnet: String,
        /// Delete whatever record the subnet or the key has, a lease too: for a node that is gone for good.
        #[arg(long)]
        force: bool,
    },
}

impl Command {
    async fn run(self, etcd: &EtcdFlags, timeout: Duration) -> anyhow::Result<ExitCode> {
        let asked = Asked::new(&etcd.etcd_endpoints, timeout);
        let said = match self {
            Command::Leases => {
                return Ok(match leases::print(&etcd.store()?, &asked).await? {
                    Seen::AllGood => ExitCode::SUCCESS,
                    Seen::SomeIgnored => ExitCode::from(SOME_IGNORED),
                });
            }
            Command::Reserve { subnet, public_ip, node } => {
                let whom = match (public_ip, node) {
                    (Some(ip), _) => Whom::Address(ip),
                    (None, Some(node)) => Whom::Node(node),
                    (None, None) => Whom::Holder,
                };
                let store = etcd.store()?;
                let asked = asked.for_change();
                let work = async {
                    let listing = asked.read(&store).await?;
                    listing.config(&store)?;
                    Ok(reserve::reserve(&store, &listing, &subnet, &whom).await?)
                };
                asked.within(work).await?
            }
            Command::InitConfig { file, if_missing } => match init_config::run(etcd, &asked, &file).await? {
                Stands::Another(there) if !if_missing => {
                    complain(&there);
                    return Ok(ExitCode::from(ANOTHER_CONFIG));
                }
                Stands::Another(said) | Stands::AsAsked(said) => said,
            },
            Command::DockerOpts(options) => {
                docker_opts::run(&options)?;
                return Ok(ExitCode::SUCCESS);
            }
            Command::Release { subnet, force } => {
                let (store, asked) = (etcd.store()?, asked.for_change());
                let work = async { Ok(reserve::release(&store, &asked.read(&store).await?, &subnet, force).await?) };
                asked.within(work).await?
            }
            Command::InstallCni { conflist, bin_dir, conf_dir } => {
                install::install_cni(conflist.as_deref(), &bin_dir, &conf_dir)?.to_string()
            }
        };
        out::print_done(&said)?;
        Ok(ExitCode::SUCCESS)
    }
}

pub(crate) fn main() -> ExitCode {
    process::command_signals();
    process::look_up_names_by_files_and_dns();
    out::panics("twill");
    let flags: Flags = cli::read();
    let _last_lines = log::to_stderr(0, log::Format::Text);
    process::block_on(flags.command.run(&flags.etcd, flags.timeout)).unwrap_or_else(|failure| {
        complain(&format!("{failure:#}"));
        ExitCode::FAILURE
    })
}
