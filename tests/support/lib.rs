//! A real flannel network in network namespaces, made and removed by the test that uses it.
//!
//! A [`Lab`] is a `fabric` namespace (a bridge, and a real etcd on it) and nodes, each a namespace with one leg
//! on the fabric. [`Node::twilld`] starts the daemon in a node, [`Node::pod`] adds a pod behind the node's `cni0`.
//!
//! ```no_run
//! use twill_lab::Lab;
//!
//! let lab = Lab::with_nodes(2);
//! lab.put_config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
//! let _daemons = lab.start_all(&["--peer-mode=all"]);
//! let (one, two) = (lab.node(1).pod(1), lab.node(2).pod(1));
//! one.ping(two.addr()).unwrap();
//! ```
//!
//! Tests may run side by side as threads of one process: no thread of a test ever changes its namespace, programs
//! do so between fork and exec and helper threads live for one closure. The machine's own namespace is not touched.
//!
//! What a lab cannot do (no root, no etcd, a command that fails) is a panic with a message, because it fails the
//! test anyway; what a test may want to see fail is a `Result`. A panic while a lab lives prints all its logs.
//!
//! The lab knows etcd, the kernel and the daemon's flags; it must not link the daemon's code.

#![warn(missing_docs)]

mod cni;
mod etcd;
mod gateway;
mod kernel;
mod lab;
mod names;
mod netns;
mod node;
mod peer;
mod ping;
mod pod;
mod process;
mod state;
mod twilld;
mod wait;

pub use etcd::{Etcd, KeyValue};
pub use gateway::Forged;
pub use kernel::{FdbRow, Link, Neighbour, Route};
pub use lab::{Lab, NODE_CONFIG, Options, PREFIX};
pub use names::{remove_own, sweep_dead};
pub use netns::Namespace;
pub use node::{Node, SubnetEnv};
pub use peer::{Peer, first_address};
pub use ping::{Ping, PingReport};
pub use pod::Pod;
pub use process::{Exit, program};
pub use state::State;
pub use twilld::{READY, Twilld};
pub use wait::{Outcome, wait_for, wait_until};
