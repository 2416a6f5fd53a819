//! Links, and VXLAN links above all: what one should be, what it is, and what can be changed while it lives.
//!
//! `ip link add <name> address <mac> mtu <mtu> type vxlan id <vni> dev <underlay> local <address> dstport <port> ...`.
//! Kernel: drivers/net/vxlan/vxlan_core.c (`vxlan_nl2conf`, `vxlan_changelink`), Linux 6.18.

use std::net::IpAddr;

use netlink_packet_core::Emitable;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkHeader, LinkInfo, LinkMessage, VxlanDf,
};

use crate::Mac;
use crate::conf::Conf;
use crate::ifi::IFLA_AF_SPEC;
use crate::wire::{Attributes, Message, address, string, u32_value};

mod difference;

pub use difference::Difference;

const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
pub(crate) const IFLA_EXT_MASK: u16 = 29;
const IFLA_PROTO_DOWN: u16 = 39;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// Leave out the counters, which are half of a link's message.
pub(crate) const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFF_UP: u32 = 1;
const IFF_NOARP: u32 = 1 << 7;
const IFF_LOWER_UP: u32 = 1 << 16;

/// A VXLAN device as it should be.
///
/// Of what another program can change on a living device, this leaves out what takes no packet from the tunnel: multicast,
/// allmulticast, promisc, TOS, flow label, ageing (all rows are permanent), queue lengths. What is not a field here is to be as
/// the kernel makes it: ARP on, not held down, TTL and DF of the host's choosing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec {
    /// The device's name, up to 15 bytes.
    pub name: String,
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port, here and at the peers.
    pub port: u16,
    /// The outer source address.
    pub local: IpAddr,
    /// The ifindex of the device that carries the encapsulated packets.
    pub underlay: u32,
    /// The device's own MAC.
    pub mac: Mac,
    /// The MTU of the packets inside.
    pub mtu: u32,
    /// Learn FDB rows from received packets.
    pub learning: bool,
    /// Group-based policy extension; both ends need it.
    pub gbp: bool,
    /// Ask user space for a MAC without an FDB row.
    pub l2miss: bool,
}

/// A link as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The ifindex.
    pub index: u32,
    /// The name.
    pub name: String,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// The carrier is there (`IFF_LOWER_UP`).
    pub lower_up: bool,
    /// No address is resolved (`IFF_NOARP`): the kernel asks nobody for a MAC.
    pub no_arp: bool,
    /// A program holds the device down (`IFLA_PROTO_DOWN`): it has no carrier.
    pub proto_down: bool,
    /// The MAC, if it is an Ethernet device or alike.
    pub mac: Option<Mac>,
    /// The MTU.
    pub mtu: u32,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// The driver's name (`vxlan`, `veth`, ...); none for hardware.
    pub kind: Option<String>,
    /// What only VXLAN devices have.
    pub vxlan: Option<Vxlan>,
    /// What it takes in from its link.
    pub conf: Conf,
}

/// The VXLAN part of a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The outer source address; none if the routes choose it.
    pub local: Option<IpAddr>,
    /// The device below; none if the routes choose it.
    pub underlay: Option<u32>,
    /// The default remote or multicast group, which gets what has no FDB row.
    pub remote: Option<IpAddr>,
    /// The outer packets' TTL; 0: the host's.
    pub ttl: u8,
    /// The outer packets' "don't fragment" (`VXLAN_DF_...`); 0: unset.
    pub df: u8,
    /// Learns FDB rows from received packets.
    pub learning: bool,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Asks user space for a MAC without an FDB row.
    pub l2miss: bool,
    /// Asks user space for unknown addresses, if it is also an ARP proxy.
    pub l3miss: bool,
    /// External mode (`IFLA_VXLAN_COLLECT_METADATA`): it carries every VNI, and nobody else can have its port.
    pub external: bool,
}

impl VxlanSpec {
    /// The message that creates the device (RTM_NEWLINK with CREATE and EXCL). It comes into being down, so that its
    /// parameters can be set before its first packet; see [`up_message`].
    pub fn message(&self) -> LinkMessage {
        let mut vxlan = vec![
            InfoVxlan::Id(self.vni),
            InfoVxlan::Link(self.underlay),
            local(self.local),
            InfoVxlan::Learning(self.learning),
            InfoVxlan::L2Miss(self.l2miss),
            InfoVxlan::Port(self.port),
        ];
        if self.gbp {
            vxlan.push(InfoVxlan::Gbp);
        }
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(self.name.clone()),
            LinkAttribute::Address(self.mac.to_vec()),
            LinkAttribute::Mtu(self.mtu),
            info(vxlan),
        ];
        message
    }

    /// Where `seen` differs, what the kernel can't change on a living device first. The name is not compared.
    pub fn differences(&self, seen: &Link) -> Vec<Difference> {
        let Some(vxlan) = seen.vxlan.as_ref().filter(|_| seen.kind.as_deref() == Some("vxlan")) else {
            return vec![Difference::NotVxlan { seen: seen.kind.clone() }];
        };
        let flag = |wanted: bool, seen: bool, difference: fn(bool, bool) -> Difference| {
            (wanted != seen).then(|| difference(wanted, seen))
        };
        let differences = [
            (self.vni != vxlan.vni).then_some(Difference::Vni { wanted: self.vni, seen: vxlan.vni }),
            (self.port != vxlan.port).then_some(Difference::Port { wanted: self.port, seen: vxlan.port }),
            vxlan.remote.map(|seen| Difference::Remote { seen }),
            flag(self.gbp, vxlan.gbp, |wanted, seen| Difference::Gbp { wanted, seen }),
            flag(self.l2miss, vxlan.l2miss, |wanted, seen| Difference::L2Miss { wanted, seen }),
            (Some(self.local) != vxlan.local).then_some(Difference::Local { wanted: self.local, seen: vxlan.local }),
            (Some(self.underlay) != vxlan.underlay)
                .then_some(Difference::Underlay { wanted: self.underlay, seen: vxlan.underlay }),
            flag(self.learning, vxlan.learning, |wanted, seen| Difference::Learning { wanted, seen }),
            (vxlan.ttl != 0).then_some(Difference::Ttl { seen: vxlan.ttl }),
            (vxlan.df != 0).then_some(Difference::Df { seen: vxlan.df }),
            (Some(self.mac) != seen.mac).then_some(Difference::Mac { wanted: self.mac, seen: seen.mac }),
            (self.mtu != seen.mtu).then_some(Difference::Mtu { wanted: self.mtu, seen: seen.mtu }),
            seen.master.map(|seen| Difference::Master { seen }),
            seen.no_arp.then_some(Difference::NoArp),
            seen.proto_down.then_some(Difference::ProtoDown),
            (!seen.up).then_some(Difference::Down),
        ];
        differences.into_iter().flatten().collect()
    }

    /// The messages that change a living device, in order; empty if none of the differences can be changed so.
    ///
    /// Several messages: the VXLAN driver answers "Cannot change mtu" to a message with both its own attributes and an MTU, and
    /// a bond sets the MAC of a port until the port has left the bond. Only what differs is sent: the driver refuses a flag that
    /// it cannot change, even if the value is the same.
    ///
    /// A changed `local` is at once the source of packets to peers spoken to before, too; the kernel drops its cached
    /// routes with the change.
    pub fn change_messages(&self, ifindex: u32, differences: &[Difference]) -> Vec<LinkMessage> {
        let (mut vxlan, mut plain, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        let (mut set, mut cleared) = (LinkFlags::empty(), LinkFlags::empty());
        for difference in differences.iter().filter(|difference| difference.live_change()) {
            match difference {
                Difference::Local { .. } => vxlan.push(local(self.local)),
                Difference::Underlay { .. } => vxlan.push(InfoVxlan::Link(self.underlay)),
                Difference::Learning { .. } => vxlan.push(InfoVxlan::Learning(self.learning)),
                Difference::Ttl { .. } => vxlan.push(InfoVxlan::Ttl(0)),
                Difference::Df { .. } => vxlan.push(InfoVxlan::Df(VxlanDf::Unset)),
                Difference::Mac { .. } => plain.push(LinkAttribute::Address(self.mac.to_vec())),
                Difference::Mtu { .. } => plain.push(LinkAttribute::Mtu(self.mtu)),
                Difference::Master { .. } => messages.push(with(ifindex, vec![LinkAttribute::Controller(0)])),
                Difference::NoArp => cleared |= LinkFlags::Noarp,
                Difference::ProtoDown => plain.push(LinkAttribute::ProtoDown(0)),
                Difference::Down => set |= LinkFlags::Up,
                _ => (),
            }
        }
        if !vxlan.is_empty() {
            messages.push(with(ifindex, vec![info(vxlan)]));
        }
        if !(plain.is_empty() && (set | cleared).is_empty()) {
            let mut message = with(ifindex, plain);
            (message.header.flags, message.header.change_mask) = (set, set | cleared);
            messages.push(message);
        }
        messages
    }
}

/// A change of these attributes.
fn with(ifindex: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message.attributes = attributes;
    message
}

/// The message that sets a device up.
pub fn up_message(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header =
        LinkHeader { index: ifindex, flags: LinkFlags::Up, change_mask: LinkFlags::Up, ..LinkHeader::default() };
    message
}

fn local(address: IpAddr) -> InfoVxlan {
    match address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    }
}

fn info(vxlan: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vxlan))])
}

impl From<&LinkMessage> for Link {
    /// By way of the bytes, so that there is one reader. It needs nothing but the attributes named above and can't be
    /// upset by one of a foreign device that a newer kernel has made longer.
    fn from(message: &LinkMessage) -> Self {
        let mut bytes = vec![0; message.buffer_len().max(16)];
        message.emit(&mut bytes);
        let (header, attributes) = bytes.split_at(16);
        Self::read(header, Attributes::new(attributes))
    }
}

impl Link {
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split::<16>()?;
        // AF_BRIDGE messages of the same type tell of a bridge port, not of a link.
        (header[0] == libc::AF_UNSPEC as u8).then(|| Self::read(header, attributes))
    }

    fn read(header: &[u8], attributes: Attributes<'_>) -> Self {
        let number = |at| crate::wire::u32_at(header, at).unwrap_or(0);
        let (index, flags) = (number(4), number(8));
        let mut link = Self {
            index,
            name: String::new(),
            up: flags & IFF_UP != 0,
            lower_up: flags & IFF_LOWER_UP != 0,
            no_arp: flags & IFF_NOARP != 0,
            proto_down: false,
            mac: None,
            mtu: 0,
            master: None,
            kind: None,
            vxlan: None,
            conf: Conf::default(),
        };
        for (kind, value) in attributes {
            match kind {
                IFLA_IFNAME => link.name = string(value),
                IFLA_ADDRESS => link.mac = value.try_into().ok(),
                IFLA_MTU => link.mtu = u32_value(value).unwrap_or(0),
                IFLA_MASTER => link.master = u32_value(value).filter(|ifindex| *ifindex != 0),
                IFLA_PROTO_DOWN => link.proto_down = value.first().is_some_and(|byte| *byte != 0),
                IFLA_LINKINFO => link.read_info(Attributes::new(value)),
                IFLA_AF_SPEC => link.conf = Conf::read(Attributes::new(value)),
                _ => (),
            }
        }
        link
    }

    fn read_info(&mut self, attributes: Attributes<'_>) {
        for (kind, value) in attributes {
            match kind {
                IFLA_INFO_KIND => self.kind = Some(string(value)),
                IFLA_INFO_DATA if self.kind.as_deref() == Some("vxlan") => {
                    self.vxlan = Some(Vxlan::read(Attributes::new(value)));
                }
                _ => (),
            }
        }
    }
}

impl Vxlan {
    fn read(attributes: Attributes<'_>) -> Self {
        let mut vxlan = Self::default();
        for (kind, value) in attributes {
            let flag = value.first().is_some_and(|byte| *byte != 0);
            // IFLA_VXLAN_*, include/uapi/linux/if_link.h
            match kind {
                1 => vxlan.vni = u32_value(value).unwrap_or(0),
                2 | 16 => vxlan.remote = address(value),
                3 => vxlan.underlay = u32_value(value).filter(|ifindex| *ifindex != 0),
                4 | 17 => vxlan.local = address(value),
                5 => vxlan.ttl = value.first().copied().unwrap_or(0),
                7 => vxlan.learning = flag,
                13 => vxlan.l2miss = flag,
                14 => vxlan.l3miss = flag,
                15 => vxlan.port = value.try_into().map_or(0, u16::from_be_bytes),
                23 => vxlan.gbp = true, // a flag that is there or not
                25 => vxlan.external = flag,
                29 => vxlan.df = value.first().copied().unwrap_or(0),
                _ => (),
            }
        }
        vxlan
    }
}
