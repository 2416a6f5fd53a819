//! Frames that come through the tunnel: they may reach a pod, and change nothing of the host.
//!
//! The sender is another node, known from its record, which sends bare UDP datagrams to the VXLAN port.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use twill_lab::{Lab, Node, PREFIX, Twilld, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const ALL: &[&str] = &["--peer-mode=all"];
const V4: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const BOTH: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#;
/// A container's: the parameters below it can't be written.
const READ_ONLY: [&str; 4] = ["unshare", "-m", "sh", "-c"];
const REMOUNT: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";

type Mac = [u8; 6];
const SENDER: Mac = [2, 0, 0, 0, 0, 0x66];
const EVERYBODY: Mac = [0xff; 6];
/// The router that the frames speak of, and where they want to lead.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A node whose daemon runs, and a second one that sends.
struct Victim {
    lab: Lab,
    daemon: Twilld,
    device: &'static str,
}

/// How the daemon may write parameters.
#[derive(Clone, Copy)]
enum Proc {
    Writable,
    ReadOnly,
}

impl Victim {
    fn new(config: &str, device: &'static str, proc: Proc) -> Self {
        let lab = Lab::with_nodes(2);
        lab.put_config(config);
        // A peer whose route a redirect could lead astray.
        let peer = r#"{"PublicIP":"10.99.0.12","PublicIPv6":"fd99::12","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:06:77"}}"#;
        let key = if config == BOTH { "10.5.77.0-24&fc00:0:0:77::-64" } else { "10.5.77.0-24" };
        lab.put(&format!("{PREFIX}/subnets/{key}"), peer);
        let node = lab.node(1);
        // Not a router for IPv6: such a host is what takes router advertisements.
        node.netns().sysctl("ipv6/conf/all/forwarding", "0").unwrap();
        let mut daemon = match proc {
            Proc::Writable => node.twilld(ALL),
            Proc::ReadOnly => node.twilld_under(&[&READ_ONLY[..], &[REMOUNT]].concat(), ALL),
        };
        daemon.wait_ready();
        daemon.wait_log(&["nftables rules are in", "arp twill.1"], PATIENCE);
        // The kernel is still at its own addresses after a start.
        let tentative = || node.exec("ip -o addr show tentative").map(|shown| shown.is_empty());
        wait_until("no address is tentative", PATIENCE, || tentative().unwrap());
        Self { lab, daemon, device }
    }

    fn node(&self) -> Node {
        self.lab.node(1)
    }

    fn mac(&self) -> Mac {
        let text = self.node().link(self.device).unwrap().mac;
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// The addresses of its device and of its underlay.
    fn addresses(&self) -> (IpAddr, IpAddr) {
        let env = self.node().subnet_env().unwrap();
        match self.device {
            "flannel.1" => (env.subnet.unwrap().network().into(), self.node().addr().into()),
            _ => (env.ipv6_subnet.unwrap().network().into(), self.node().addr6().into()),
        }
    }

    /// Sends a frame in a VXLAN datagram.
    fn send(&self, frame: &[u8]) {
        let to = self.addresses().1;
        let datagram = [&[8, 0, 0, 0, 0, 0, 1, 0], frame].concat();
        let sent = self.lab.node(2).netns().enter(|| {
            let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(&datagram, (to, 8472)))
        });
        sent.unwrap().unwrap();
    }

    /// Sends the frames, and behind them an echo request to the device's address, until the kernel has seen that one.
    fn sends_all(&self, frames: &[Vec<u8>]) {
        let (mac, before) = (self.mac(), self.echoes());
        frames.iter().for_each(|frame| self.send(frame));
        let echo = match self.addresses().0 {
            IpAddr::V4(ours) => ipv4(mac, 1, Ipv4Addr::new(10, 5, 77, 9), ours, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]),
            IpAddr::V6(ours) => icmpv6(mac, "fc00:0:0:77::9".parse().unwrap(), ours, &[128, 0, 0, 0, 0, 1, 0, 1]),
        };
        self.send(&echo);
        wait_until("the echo request has come through the tunnel", PATIENCE, || self.echoes() > before);
    }

    /// How many echo requests the kernel has seen.
    fn echoes(&self) -> u64 {
        let read =
            |file: &str| self.node().netns().enter(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
        let (snmp, snmp6) = (read("snmp").unwrap().unwrap(), read("snmp6").unwrap().unwrap());
        let mut icmp = snmp.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let at = icmp.next().unwrap().split(' ').position(|name| name == "InEchos").unwrap();
        let v4: u64 = icmp.next().unwrap().split(' ').nth(at).unwrap().parse().unwrap();
        let v6 = snmp6.lines().find_map(|line| line.strip_prefix("Icmp6InEchos")).unwrap();
        v4 + v6.trim().parse::<u64>().unwrap()
    }

    /// All that such a frame could change.
    fn state(&self) -> String {
        let node = self.node();
        let shown = |line: &str| node.exec(line).unwrap();
        let device = self.device;
        [
            shown("ip -6 route show"),
            shown("ip route show"),
            shown("ip route show cache"),
            shown("ip -6 route show cache"),
            shown("ip -o addr show")
                .lines()
                .map(|line| line.split("valid_lft").next().unwrap().to_owned() + "\n")
                .collect(),
            shown(&format!("ip neigh show dev {device}")),
            shown(&format!("ip -o link show {device}")),
            ["hop_limit", "mtu"].map(|name| read(&node, &format!("ipv6/conf/{device}/{name}"))).concat(),
            read(&node, &format!("ipv6/neigh/{device}/base_reachable_time_ms")),
        ]
        .join("--\n")
    }

    /// Sends the frames twice; nothing is changed by them.
    #[track_caller]
    fn is_unmoved_by(&self, frames: &[Vec<u8>]) {
        let before = self.state();
        self.sends_all(frames);
        self.sends_all(frames);
        assert_eq!(self.state(), before, "{}", self.daemon.log());
    }
}

fn read(node: &Node, key: &str) -> String {
    node.netns().enter(|| std::fs::read_to_string(format!("/proc/sys/net/{key}"))).unwrap().unwrap()
}

fn ethernet(to: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &SENDER, &kind.to_be_bytes(), payload].concat()
}

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn icmpv6(to: Mac, from: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u16).to_be_bytes();
    let mut message = message.to_vec();
    let pseudo = [&from.octets()[..], &destination.octets(), &[0, 0], &length, &[0, 0, 0, 58], &message].concat();
    message[2..4].copy_from_slice(&checksum(&pseudo));
    let header = [&[0x60, 0, 0, 0], &length[..], &[58, 255], &from.octets(), &destination.octets()].concat();
    ethernet(to, 0x86dd, &[header, message].concat())
}

fn ipv4(to: Mac, protocol: u8, from: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let mut header =
        [&[0x45, 0], &length[..], &[0, 1, 0, 0, 64, protocol, 0, 0], &from.octets(), &destination.octets()].concat();
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    ethernet(to, 0x0800, &[&header[..], payload].concat())
}

/// A router that lasts half an hour, with a prefix for addresses, a link MTU, a hop limit and a DNS server.
fn router_advertisement(to: Mac, destination: Ipv6Addr) -> Vec<u8> {
    let prefix: Ipv6Addr = "2001:db8:66::".parse().unwrap();
    let head = [134, 0, 0, 0, 33, 0, 0x07, 0x08, 0, 0, 0x27, 0x10, 0, 0, 0, 0];
    let lladdr = [&[1, 1][..], &SENDER].concat();
    let mtu = [5, 1, 0, 0, 0, 0, 5, 0x14];
    let info = [&[3, 4, 64, 0xc0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &prefix.octets()].concat();
    icmpv6(to, ROUTER, destination, &[&head[..], &lladdr, &mtu, &info].concat())
}

/// Neighbour solicitations for our address and advertisements, of an address that is another node's or nobody's.
fn neighbour_discovery(to: Mac, ours: Ipv6Addr, claimed: Ipv6Addr) -> Vec<Vec<u8>> {
    let ask = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &ours.octets(), &[1, 1], &SENDER].concat();
    let tell = |flags: u8| [&[136, 0, 0, 0, flags, 0, 0, 0][..], &claimed.octets(), &[2, 1], &SENDER].concat();
    vec![
        icmpv6(to, claimed, ours, &ask),
        icmpv6(to, ROUTER, ours, &ask),
        icmpv6(to, claimed, ours, &tell(0x60)),
        icmpv6(EVERYBODY, claimed, ALL_NODES, &tell(0x20)),
    ]
}

fn redirect_v6(to: Mac, ours: Ipv6Addr, gateway: Ipv6Addr, of: Ipv6Addr, towards: Ipv6Addr) -> Vec<u8> {
    let echo = icmpv6([0; 6], ours, of, &[128, 0, 0, 0, 0, 1, 0, 1]);
    let packet = &echo[14..];
    let option = [&[4, ((8 + packet.len()) / 8) as u8, 0, 0, 0, 0, 0, 0][..], packet].concat();
    let message = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &towards.octets(), &of.octets(), &option].concat();
    icmpv6(to, gateway, ours, &message)
}

fn redirect_v4(to: Mac, ours: Ipv4Addr, gateway: Ipv4Addr, of: Ipv4Addr, towards: Ipv4Addr) -> Vec<u8> {
    let echo = ipv4([0; 6], 1, ours, of, &[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]);
    let mut message = [&[5, 1, 0, 0][..], &towards.octets(), &echo[14..]].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    ipv4(to, 1, gateway, ours, &message)
}

/// Requests for our address and for another, replies, and gratuitous ones of both kinds: of this sender's address.
fn arp(to: Mac, ours: Ipv4Addr, claimed: Ipv4Addr) -> Vec<Vec<u8>> {
    let packet = |to: Mac, operation: u8, target: Ipv4Addr| {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        ethernet(to, 0x0806, &[&head[..], &SENDER, &claimed.octets(), &to, &target.octets()].concat())
    };
    vec![
        packet(EVERYBODY, 1, ours),
        packet(to, 1, ours),
        packet(to, 2, ours),
        packet(EVERYBODY, 1, claimed),
        packet(EVERYBODY, 2, claimed),
    ]
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{address} is no IPv4 address"),
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => panic!("{address} is no IPv6 address"),
    }
}

/// Everything of IPv6 that a host listens to, towards all and towards one of its addresses.
fn all_of_v6(to: Mac, ours: Ipv6Addr, peer: Ipv6Addr) -> Vec<Vec<u8>> {
    let pod = Ipv6Addr::from(u128::from(peer) + 5);
    let mut frames = vec![
        router_advertisement(EVERYBODY, ALL_NODES),
        router_advertisement(to, ours),
        redirect_v6(to, ours, peer, pod, ROUTER),
        redirect_v6(to, ours, ROUTER, pod, ROUTER),
        icmpv6(
            EVERYBODY,
            ROUTER,
            ALL_NODES,
            &[130, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
    ];
    frames.extend(neighbour_discovery(to, ours, pod));
    frames
}

#[test]
fn a_router_advertisement_reaches_nobody_through_the_ipv4_device() {
    for proc in [Proc::Writable, Proc::ReadOnly] {
        let victim = Victim::new(V4, "flannel.1", proc);
        let ours = victim.node().addr6();
        victim.is_unmoved_by(&all_of_v6(victim.mac(), ours, "fd99::66".parse().unwrap()));
    }
}

#[test]
fn nothing_of_ipv6_changes_a_host_through_the_ipv6_device() {
    for proc in [Proc::Writable, Proc::ReadOnly] {
        let victim = Victim::new(BOTH, "flannel-v6.1", proc);
        let (ours, _) = victim.addresses();
        victim.is_unmoved_by(&all_of_v6(victim.mac(), v6(ours), "fc00:0:0:77::".parse().unwrap()));
    }
}

#[test]
fn arp_redirects_and_igmp_change_nothing() {
    for proc in [Proc::Writable, Proc::ReadOnly] {
        let victim = Victim::new(V4, "flannel.1", proc);
        let (mac, ours) = (victim.mac(), v4(victim.addresses().0));
        let (gateway, pod): (Ipv4Addr, Ipv4Addr) = ("10.5.77.0".parse().unwrap(), "10.5.77.5".parse().unwrap());
        let mut frames = arp(mac, ours, pod);
        frames.extend(arp(mac, ours, gateway));
        frames.extend(arp(mac, victim.node().addr(), "10.99.0.1".parse().unwrap()));
        frames.push(redirect_v4(mac, ours, gateway, pod, "10.5.66.0".parse().unwrap()));
        frames.push(ipv4(EVERYBODY, 2, gateway, "224.0.0.1".parse().unwrap(), &[0x11, 1, 0xee, 0xfe, 0, 0, 0, 0]));
        victim.is_unmoved_by(&frames);
    }
}

/// While the daemon is away a question of the kernel waits, and nobody else answers it.
#[test]
fn the_kernel_s_question_is_answered_by_the_daemon_only() {
    let lab_and = |config, device| {
        let mut victim = Victim::new(config, device, Proc::ReadOnly);
        // On demand the kernel asks for each address of the network.
        victim.daemon.terminate();
        victim.daemon = victim.node().twilld(&[]);
        victim.daemon.wait_ready();
        victim.daemon.signal(Signal::SIGSTOP);
        victim
    };
    let victim = lab_and(V4, "flannel.1");
    let pod = "10.5.78.5".parse().unwrap();
    stays_unanswered(&victim, pod, &arp(victim.mac(), v4(victim.addresses().0), v4(pod)));
    let victim = lab_and(BOTH, "flannel-v6.1");
    let pod = "fc00:0:0:78::5".parse().unwrap();
    stays_unanswered(&victim, pod, &neighbour_discovery(victim.mac(), v6(victim.addresses().0), v6(pod)));
}

#[track_caller]
fn stays_unanswered(victim: &Victim, pod: IpAddr, frames: &[Vec<u8>]) {
    let node = victim.node();
    let seen = || node.exec(&format!("ip neigh show {pod} dev {}", victim.device)).unwrap();
    wait_until("the kernel asks", PATIENCE, || {
        node.exec(&format!("ping -n -c1 -W0.05 {pod}")).ok();
        seen().contains("INCOMPLETE")
    });
    victim.sends_all(frames);
    assert!(!seen().contains("02:00:00:00:00:66"), "{}", seen());
}

/// What a node sends through the tunnel is what pods and the host send: the device says nothing of its own to any peer.
#[test]
fn the_device_itself_sends_nothing_to_a_peer() {
    let victim = Victim::new(BOTH, "flannel-v6.1", Proc::Writable);
    let node = victim.node();
    let peer = victim.lab.node(2).netns().enter(|| UdpSocket::bind("[::]:8472")).unwrap().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    // Set down and up again, a device joins its multicast groups anew, and looks for routers and for twins of its address.
    for device in ["flannel.1", "flannel-v6.1"] {
        node.exec(&format!("ip link set {device} down")).unwrap();
        wait_until("the device is up", PATIENCE, || {
            node.link(device).is_ok_and(|link| link.flags.iter().any(|flag| flag == "UP"))
        });
    }
    wait_until("both routes are back", PATIENCE, || {
        let there = |line: &str| node.exec(line).is_ok_and(|to| to.contains("via"));
        there("ip route get 10.5.77.5") && there("ip -6 route get fc00:0:0:77::5")
    });
    let mut frame = [0; 2048];
    for pod in ["10.5.77.5", "fc00:0:0:77::5"] {
        node.exec(&format!("ping -n -c1 -W0.05 {pod}")).ok();
        let (length, _) = peer.recv_from(&mut frame).unwrap();
        let inner = &frame[8 + 14..length];
        // ICMP's and ICMPv6's echo request.
        let kind = if inner[0] >> 4 == 4 { (inner[9], inner[20]) } else { (inner[6], inner[40]) };
        assert!([(1, 8), (58, 128)].contains(&kind), "{pod}: {inner:02x?}");
    }
}
