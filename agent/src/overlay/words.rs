//! Rows, questions and answers in the words of iproute2, for the log: what an operator would type.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::kernel::{Fdb, Miss, Neigh, Op, Route, Row, Via};
use super::plane::contradiction::{Contested, Contradiction};
use super::plane::miss::Answer;
use super::shown::Shown;

/// An operation as a command of iproute2, on the device of this name.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// What is done.
    pub op: &'a Op,
    /// The name of our device.
    pub device: &'a str,
}

impl Display for Command<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let device = self.device;
        match self.op {
            Op::PutFdb(Fdb { mac, remote }) => {
                write!(f, "bridge fdb replace {mac} dev {device} dst {remote} self permanent")
            }
            Op::PutNeigh(Neigh { address, mac }) => {
                write!(f, "ip neigh replace {address} lladdr {mac} dev {device} nud permanent")
            }
            Op::PutRoute(route) => write!(f, "ip route replace {}", Words { route, device }),
            Op::Delete(Row::Fdb(Fdb { mac, remote })) => {
                write!(f, "bridge fdb del {mac} dev {device} dst {remote} self")
            }
            Op::Delete(Row::Neigh(address)) => write!(f, "ip neigh del {address} dev {device}"),
            Op::Delete(Row::Route(route)) => write!(f, "ip route del {}", Words { route, device }),
        }
    }
}

/// A time as a number of its two largest units: `23h59m`, `59m30s`, `30s`; one of less than a second in whole milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Span(pub Duration);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, 0) if !self.0.is_zero() => write!(f, "{}ms", self.0.as_millis()),
            (0, 0, seconds) => write!(f, "{seconds}s"),
            (0, minutes, seconds) => write!(f, "{minutes}m{seconds}s"),
            (hours, minutes, _) => write!(f, "{hours}h{minutes}m"),
        }
    }
}

struct Words<'a> {
    route: &'a Route,
    device: &'a str,
}

impl Display for Words<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (Route { destination, via, metric, protocol }, device) = (self.route, self.device);
        match via {
            Via::Link { source } => write!(f, "{destination} dev {device} scope link src {source}"),
            Via::Gateway(gateway) => write!(f, "{destination} via {gateway} dev {device} onlink"),
            Via::Direct(host) => write!(f, "{destination} via {host}"),
            Via::Unreachable => write!(f, "unreachable {destination}"),
            Via::Blackhole => write!(f, "blackhole {destination}"),
            Via::Prohibit => write!(f, "prohibit {destination}"),
            Via::Throw => write!(f, "throw {destination}"),
            Via::Elsewhere => write!(f, "{destination}"),
        }?;
        write!(f, " proto {} metric {metric}", Protocol(*protocol))
    }
}

/// A routing protocol as iproute2 names it (`etc/rt_protos`).
struct Protocol(u8);

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            2 => "kernel",
            3 => "boot",
            4 => "static",
            9 => "ra",
            11 => "zebra",
            12 => "bird",
            16 => "dhcp",
            18 => "keepalived",
            186 => "bgp",
            188 => "ospf",
            number => return write!(f, "{number}"),
        };
        f.write_str(name)
    }
}

/// A row of another program on the device of this name, as iproute2 shows it.
pub struct Found<'a> {
    /// The row.
    pub row: &'a Contradiction,
    /// The name of our device.
    pub device: &'a str,
}

impl Display for Found<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let device = self.device;
        match self.row {
            Contradiction::Route(route) => Words { route, device }.fmt(f),
            Contradiction::Neigh(address, mac) => write!(f, "{address} dev {device} lladdr {mac}"),
            Contradiction::Fdb(Fdb { mac, remote }) if remote.is_unspecified() => write!(f, "{mac} dev {device}"),
            Contradiction::Fdb(Fdb { mac, remote }) => write!(f, "{mac} dev {device} dst {remote}"),
        }
    }
}

/// A route of another program that goes before ours, as a sentence, with the name of its device where it has one.
pub struct GoesBefore<'a> {
    /// The route and what it takes.
    pub contested: &'a Contested,
    /// The name of its device.
    pub device: Option<&'a str>,
    /// Whether what it takes is one peer's subnet.
    pub is_peer: bool,
}

impl Display for GoesBefore<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Contested { part, route, .. } = self.contested;
        let Route { destination, via, metric, protocol } = route;
        let whose = if self.is_peer { "peer" } else { "peers in" };
        let who = if self.contested.is_of_an_address() { "an address of this host" } else { "another program" };
        write!(f, "{whose} {part}: a route of {who}, `")?;
        match (via, self.device.map(Shown::new)) {
            (Via::Direct(gateway), Some(device)) => write!(f, "{destination} via {gateway} dev {device}")?,
            (Via::Elsewhere, Some(device)) => write!(f, "{destination} dev {device}")?,
            _ => return write!(f, "{}`, goes before ours", Words { route, device: "" }),
        }
        write!(f, " proto {} metric {metric}`, goes before ours", Protocol(*protocol))
    }
}

impl Display for Miss {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "which MAC has {address}?"),
            Self::Mac(mac) => write!(f, "which host has {mac}?"),
        }
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(subnet) => write!(f, "the peer {subnet}"),
            Self::Refused(block) => write!(f, "nobody leased {block}: unreachable from now on"),
            Self::RefusedBefore(block) => write!(f, "nobody leased {block}, which is unreachable already"),
            Self::Unknown => f.write_str("not this network's"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rounded_to_what_an_operator_reads() {
        let micros = [0, 317_921, 317, 4_111_930, 90_500_000, 86_399_000_000];
        let words = micros.map(|micros| Span(Duration::from_micros(micros)).to_string());
        assert_eq!(words, ["0s", "317ms", "0ms", "4s", "1m30s", "23h59m"]);
    }

    #[test]
    fn each_operation_is_a_command() {
        let (mac, remote) = ("02:00:00:00:00:c8".parse().unwrap(), "10.99.0.7".parse().unwrap());
        let (subnet, gateway) = ("10.5.7.0/24".parse().unwrap(), "10.5.7.0".parse().unwrap());
        let network = "10.5.0.0/16".parse().unwrap();
        let cases = [
            (
                Op::PutFdb(Fdb { mac, remote }),
                "bridge fdb replace 02:00:00:00:00:c8 dev flannel.1 dst 10.99.0.7 self permanent",
            ),
            (
                Op::PutNeigh(Neigh { address: gateway, mac }),
                "ip neigh replace 10.5.7.0 lladdr 02:00:00:00:00:c8 dev flannel.1 nud permanent",
            ),
            (
                Op::PutRoute(Route::peer(subnet, 7)),
                "ip route replace 10.5.7.0/24 via 10.5.7.0 dev flannel.1 onlink proto 116 metric 1007",
            ),
            (
                Op::PutRoute(Route::base(network, gateway)),
                "ip route replace 10.5.0.0/16 dev flannel.1 scope link src 10.5.7.0 proto 116 metric 0",
            ),
            (
                Op::PutRoute(Route::direct(subnet, 7, remote)),
                "ip route replace 10.5.7.0/24 via 10.99.0.7 proto 116 metric 1007",
            ),
            (
                Op::Delete(Row::Route(Route::refusal(subnet))),
                "ip route del unreachable 10.5.7.0/24 proto 116 metric 2147483648",
            ),
            (
                Op::Delete(Row::Route(Route::blackhole(subnet))),
                "ip route del blackhole 10.5.7.0/24 proto 116 metric 2147483648",
            ),
            (
                Op::Delete(Row::Fdb(Fdb { mac, remote })),
                "bridge fdb del 02:00:00:00:00:c8 dev flannel.1 dst 10.99.0.7 self",
            ),
            (Op::Delete(Row::Neigh(gateway)), "ip neigh del 10.5.7.0 dev flannel.1"),
        ];
        for (op, expected) in cases {
            assert_eq!(Command { op: &op, device: "flannel.1" }.to_string(), expected);
        }
    }
}
