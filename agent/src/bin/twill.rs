//! The operator's command.

// They panic where standard output or error cannot be written: `out` and the log don't.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use twill_agent::cli::{self, EtcdFlags};
use twill_agent::reserve::{self, Whom};
use twill_agent::{docker_opts, init_config, install, leases, log, nodeid, out, process};

/// Looks at a Twill (or flannel) network.
#[derive(Debug, Parser)]
#[command(name = "twill", version = twill_agent::VERSION, args_override_self = true, max_term_width = 120)]
struct Flags {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    etcd: EtcdFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the subnets that nodes hold, as etcd has them.
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
    InstallCni {
        /// Where plugins are.
        #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
        bin_dir: PathBuf,
        /// Where network configurations are.
        #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
        conf_dir: PathBuf,
    },
    /// Write the network config to etcd if there is none. An existing one is never changed.
    InitConfig {
        /// The file that holds it, JSON; - for standard input.
        file: PathBuf,
    },
    /// Give Docker the node's subnet, where containers get their network from Docker and not from CNI.
    ///
    /// Takes the flags of flannel's mk-docker-opts.sh and writes the same variables, for Docker's unit; or Docker's
    /// daemon.json.
    DockerOpts(docker_opts::Options),
    /// End a reservation. One in use becomes an ordinary lease.
    Release {
        /// As in 10.5.7.0/24.
        subnet: String,
        /// Delete whatever record the subnet has, a lease too: for a node that is gone for good.
        #[arg(long)]
        force: bool,
    },
}

impl Command {
    async fn run(self, etcd: &EtcdFlags) -> anyhow::Result<()> {
        match self {
            Command::Leases => leases::print(etcd).await,
            Command::Reserve { subnet, public_ip, node } => {
                let whom = match (public_ip, node) {
                    (Some(ip), _) => Whom::Address(ip),
                    (None, Some(node)) => Whom::Node(node),
                    (None, None) => Whom::Holder,
                };
                let (store, listing) = leases::open(etcd).await?;
                Ok(out::print_done(&reserve::reserve(&store, &listing, &subnet, &whom).await?)?)
            }
            Command::InstallCni { bin_dir, conf_dir } => {
                Ok(out::print_done(&install::install_cni(&bin_dir, &conf_dir)?)?)
            }
            Command::InitConfig { file } => Ok(out::print_done(&init_config::run(etcd, &file).await?)?),
            Command::DockerOpts(options) => docker_opts::run(&options),
            Command::Release { subnet, force } => {
                let (store, listing) = leases::open(etcd).await?;
                Ok(out::print_done(&reserve::release(&store, &listing, &subnet, force).await?)?)
            }
        }
    }
}

fn main() -> ExitCode {
    process::command_signals();
    out::panics("twill");
    let flags: Flags = cli::read();
    let _last_lines = log::to_stderr(0, log::Format::Text);
    let result = process::block_on(flags.command.run(&flags.etcd));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out::note(format_args!("twill: {failure:#}"));
            ExitCode::FAILURE
        }
    }
}
