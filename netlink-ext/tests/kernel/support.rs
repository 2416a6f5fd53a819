//! Namespaces, an underlay and an overlay device to test with.

use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use netlink_ext::fdb::Row;
use netlink_ext::link::{Link, VxlanSpec, up_message};
use netlink_ext::neigh::{Entry, State};
use netlink_ext::neightbl::Params;
use netlink_ext::route::{Kind, Route, TABLE_MAIN};
use netlink_ext::{BatchSocket, Dumper, Error, Failure, Family, Mac, Miss, MissSocket, Request};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkHandle;
use rtnetlink::packet_route::link::LinkMessage;

/// Long enough to mean "never"; nothing waits for it unless the test fails.
const NEVER: Duration = Duration::from_secs(20);

/// The port of the test overlays.
pub(crate) const PORT: u16 = 8472;

/// Runs `test` in a fresh network namespace, on a thread of its own because a namespace belongs to a thread.
pub(crate) fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
        ip("link set lo up");
        test()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a future on a runtime made here, in this thread's namespace.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(NEVER, future).await.expect("it never happened") })
}

/// Runs ip(8), a command a line.
pub(crate) fn ip(commands: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "ip {commands}");
}

/// What a program prints, to hold against what we read.
pub(crate) fn output(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn mac(last: u16) -> Mac {
    let [high, low] = last.to_be_bytes();
    [2, 0, 0, 1, high, low]
}

/// `10.244.<n / 250>.<n % 250 + 1>`
pub(crate) fn pod(n: u16) -> IpAddr {
    Ipv4Addr::new(10, 244, (n / 250) as u8, (n % 250 + 1) as u8).into()
}

/// The sockets, an underlay `u0` with 10.0.0.1 and fd00::1, whose other end is `u1`, and an overlay `x0`.
pub(crate) struct Host {
    pub(crate) batch: BatchSocket,
    pub(crate) dumper: Dumper,
    pub(crate) overlay: Link,
}

impl Host {
    pub(crate) fn new() -> Self {
        ip("link add u0 type veth peer name u1\n\
            addr add 10.0.0.1/24 dev u0\n\
            addr add fd00::1/64 dev u0 nodad\n\
            link set u0 up\n\
            link set u1 up");
        let (batch, mut dumper) = (BatchSocket::open().unwrap(), Dumper::open().unwrap());
        let overlay = create(&mut dumper, "x0", 1);
        Self { batch, dumper, overlay }
    }

    pub(crate) fn ifindex(&self) -> u32 {
        self.overlay.index
    }

    /// Has `x0` ask user space, with a route of each family to it.
    pub(crate) fn ask_user_space(&mut self) {
        let ifindex = self.ifindex();
        let mut requests = asking(ifindex).to_vec();
        requests.extend(
            ["10.244.255.255/32", "fd01::ffff/128"].map(|text| {
                Request::PutAddress(netlink_ext::addr::Address { ifindex, address: text.parse().unwrap() })
            }),
        );
        requests.push(Request::PutRoute(self.route("10.244.0.0/16")));
        requests.push(Request::PutRoute(self.route("fd01::/32")));
        done(self.batch.send(&requests));
    }

    pub(crate) fn row(&self, last: u16, remote: &str) -> Row {
        Row { ifindex: self.ifindex(), mac: mac(last), remote: address(remote) }
    }

    pub(crate) fn entry(&self, address: IpAddr, last: u16) -> Entry {
        let ifindex = self.ifindex();
        Entry { ifindex, address, mac: mac(last), state: State::Permanent, ext_learned: false, protocol: 116 }
    }

    /// A route straight on `x0`.
    pub(crate) fn route(&self, destination: &str) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            kind: Kind::Unicast,
            ifindex: Some(self.ifindex()),
            gateway: None,
            onlink: false,
            source: None,
            protocol: 116,
            metric: 10,
            table: TABLE_MAIN,
        }
    }

    /// A miss socket of `x0`. Needs a runtime.
    pub(crate) fn misses(&self, receive_buffer: usize) -> MissSocket {
        MissSocket::open(self.ifindex(), receive_buffer).unwrap()
    }
}

/// The parameters by which a device asks user space and nobody else.
pub(crate) fn asking(ifindex: u32) -> [Request; 2] {
    Family::BOTH.map(|family| {
        Request::SetNeighParams(Params { ifindex, family, app_probes: 3, ucast_probes: 0, mcast_probes: 0 })
    })
}

pub(crate) fn spec(name: &str, vni: u32, underlay: u32) -> VxlanSpec {
    VxlanSpec {
        name: name.into(),
        vni,
        port: PORT,
        local: address("10.0.0.1"),
        underlay,
        mac: [2, 0, 0, 0, 0, vni as u8],
        mtu: 1400,
        learning: false,
        gbp: false,
        l2miss: true,
    }
}

/// A VXLAN device over `u0`, set up.
pub(crate) fn create(dumper: &mut Dumper, name: &str, vni: u32) -> Link {
    let underlay = dumper.link_named("u0").unwrap().expect("u0").index;
    links(async |links| links.add(spec(name, vni, underlay).message()).execute().await).unwrap();
    let ifindex = dumper.link_named(name).unwrap().expect("the new device").index;
    change(vec![up_message(ifindex)]);
    dumper.link_named(name).unwrap().expect("the new device")
}

/// Changes links.
pub(crate) fn change(messages: Vec<LinkMessage>) {
    for message in messages {
        links(async |links| links.change(message).execute().await).unwrap();
    }
}

/// Deletes a link.
pub(crate) fn delete(ifindex: u32) {
    links(async |links| links.del(ifindex).execute().await).unwrap();
}

/// Something done to links by rtnetlink, on a thread of its own since the caller may be within a runtime.
pub(crate) fn links<T: Send>(job: impl AsyncFnOnce(LinkHandle) -> T + Send) -> T {
    let job = || {
        block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().unwrap();
            tokio::spawn(connection);
            job(handle.link()).await
        })
    };
    std::thread::scope(|scope| scope.spawn(job).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Every request was carried out.
#[track_caller]
pub(crate) fn done(result: Result<Vec<Failure>, Error>) {
    assert_eq!(result.unwrap(), []);
}

/// A packet to an address of the overlay.
pub(crate) fn send(to: IpAddr) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // An error is the kernel's word that the neighbour table is full or a route unreachable; tests look at effects.
    let _ = UdpSocket::bind(any).unwrap().send_to(b"hello", (to, 9));
}

/// The next miss, waited for.
pub(crate) async fn next_miss(socket: &mut MissSocket) -> Miss {
    loop {
        if let Some(miss) = socket.try_next().unwrap() {
            return miss;
        }
        socket.readable().await.unwrap();
    }
}

/// The other end of the underlay, 10.0.0.2 in a namespace of its own, which receives what is encapsulated.
pub(crate) struct Far {
    socket: UdpSocket,
    _namespace: File,
}

impl Far {
    /// Takes `u1` away from the caller's namespace.
    pub(crate) fn new() -> Self {
        let (socket, namespace) = in_namespace(|| {
            let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
            (socket, File::open("/proc/thread-self/ns/net").unwrap())
        });
        ip(&format!("link set u1 netns /proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()));
        let inside = namespace.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(inside, CloneFlags::CLONE_NEWNET).unwrap();
            ip("addr add 10.0.0.2/24 dev u1\nlink set u1 up");
        });
        thread.join().unwrap();
        socket.set_read_timeout(Some(NEVER)).unwrap();
        Self { socket, _namespace: namespace }
    }

    /// The inner IPv4 destination of the next encapsulated packet, `None` if none comes.
    pub(crate) fn receive(&self) -> Option<IpAddr> {
        self.receive_with_source().map(|(inner, _)| inner)
    }

    /// The same with the outer source address.
    pub(crate) fn receive_with_source(&self) -> Option<(IpAddr, IpAddr)> {
        const VXLAN_AND_ETHERNET: usize = 8 + 14;
        let mut buffer = [0; 2048];
        loop {
            let (length, source) = self.socket.recv_from(&mut buffer).ok()?;
            let inner = &buffer[VXLAN_AND_ETHERNET..length];
            if inner[0] >> 4 == 4 {
                let destination = <[u8; 4]>::try_from(&inner[16..20]).unwrap();
                return Some((destination.into(), source.ip()));
            }
        }
    }
}
