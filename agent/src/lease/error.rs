//! Why there is no subnet for a node.

use ipnetwork::IpNetwork;

use crate::overlay::record::SubnetKey;

/// Why there is no subnet for us. Trying the same again can help only after somebody changed the records or the config.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// Each subnet of the network is held.
    #[error("no free subnet: every /{subnet_len} that {network} gives out is held")]
    NoFreeSubnet {
        /// The network.
        network: IpNetwork,
        /// Its `SubnetLen`.
        subnet_len: u8,
    },
    /// Another node has our public IP, and is alive.
    #[error(
        "two nodes have the public IP {public_ip}: this one is {node}, the other one, {other_node}, is alive and holds {key}"
    )]
    Doubled {
        /// The address.
        public_ip: String,
        /// Our own node id.
        node: String,
        /// The other node's id.
        other_node: String,
        /// The other node's subnet.
        key: SubnetKey,
    },
    /// Another machine has our node id and our public IP, and is alive: one is a clone of the other.
    #[error(
        "two machines have the public IP {public_ip} and the node id {node}: this one is the instance {instance}, the other one, {other}, is alive and holds {key}; give one of them another address and another machine-id or --node-id (an instance is the beginning of /proc/sys/kernel/random/boot_id and the number of the network namespace)"
    )]
    Cloned {
        /// The address.
        public_ip: String,
        /// The id of both.
        node: String,
        /// Our own instance.
        instance: String,
        /// The other one.
        other: String,
        /// The other machine's subnet.
        key: SubnetKey,
    },
}
