//! The real kernel behind the trait `Dataplane`: what `overlay` takes for granted holds there. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use twill_agent::dataplane::kernel::Kernel;
use twill_agent::dataplane::{Dataplane, Device, KernelEvent, Made, Vxlan};
use twill_agent::overlay::MacAddr;
use twill_agent::overlay::backend::Backend;
use twill_agent::overlay::family::Family;
use twill_agent::overlay::kernel::{Fdb, Neigh, Notification, Observed, Op, Route, Row, SeenRoute, Via};

/// The device of a network that is as the config's defaults have it.
const VXLAN: Vxlan =
    Vxlan { vni: 1, port: 8472, mac: MacAddr([2, 0, 0, 0, 0, 1]), learning: false, gbp: false, l2miss: true };

/// Runs a test in a network namespace of its own that has an interface `eth0` with 10.99.0.1/16.
fn in_namespace<F: AsyncFnOnce(Kernel, Device) + Send + 'static>(test: F) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip("link add eth0 type veth peer name eth1");
        ip("link set eth1 up");
        ip("link set eth0 up");
        ip("addr add 10.99.0.1/16 dev eth0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut kernel = Kernel::open().unwrap();
            let interfaces = kernel.interfaces().unwrap();
            let eth0 = interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
            let device = Device {
                name: "flannel.1".into(),
                vxlan: Some(VXLAN),
                local: "10.99.0.1".parse().unwrap(),
                underlay: eth0.index,
                underlay_name: "eth0".into(),
                mtu: 1450,
                address: "10.5.1.0/32".parse().unwrap(),
            };
            test(kernel, device).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of this thread.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn peer() -> (Fdb, Neigh, Route) {
    let mac = MacAddr([2, 0, 0, 0, 0, 2]);
    let fdb = Fdb { mac, remote: "10.99.0.2".parse().unwrap() };
    let neigh = Neigh { address: "10.5.2.0".parse().unwrap(), mac };
    (fdb, neigh, Route::peer("10.5.2.0/24".parse().unwrap(), 2))
}

/// What is left of a dump.
fn observe(kernel: &mut Kernel) -> Observed {
    let mut observed = Observed::default();
    loop {
        let (part, is_last) = kernel.observe().unwrap();
        observed.fdb.extend(part.fdb);
        observed.neighbours.extend(part.neighbours);
        observed.routes.extend(part.routes);
        if is_last {
            return observed;
        }
    }
}

fn put(kernel: &mut Kernel) {
    let (fdb, neigh, route) = peer();
    let base = Route::base("10.5.0.0/16".parse().unwrap(), "10.5.1.0".parse().unwrap());
    let refusal = Route::refusal("10.5.7.0/24".parse().unwrap());
    let ops = [Op::PutFdb(fdb), Op::PutNeigh(neigh), Op::PutRoute(route), Op::PutRoute(base), Op::PutRoute(refusal)];
    assert_eq!(kernel.apply(&ops).unwrap(), []);
}

#[test]
fn a_dump_shows_what_was_put_also_with_a_look_at_the_interfaces_in_between() {
    in_namespace(async |mut kernel, device| {
        kernel.make(&device).await.unwrap();
        put(&mut kernel);
        let (first, is_last) = kernel.observe().unwrap();
        assert!(!is_last, "a dump takes several steps");
        kernel.interfaces().unwrap();
        let mut observed = observe(&mut kernel);
        observed.fdb.extend(first.fdb);
        let (fdb, neigh, route) = peer();
        assert_eq!(observed.fdb.iter().map(|seen| seen.row).collect::<Vec<_>>(), [fdb]);
        assert_eq!(observed.neighbours.iter().filter(|seen| seen.mac == Some(neigh.mac)).count(), 1);
        let refusal = Route::refusal("10.5.7.0/24".parse().unwrap());
        let base = Route::base("10.5.0.0/16".parse().unwrap(), "10.5.1.0".parse().unwrap());
        for wanted in [route, base, refusal] {
            assert!(observed.routes.contains(&wanted.into()), "{wanted:?} in {:?}", observed.routes);
        }
    });
}

#[test]
fn deleting_what_is_gone_is_a_success() {
    in_namespace(async |mut kernel, device| {
        kernel.make(&device).await.unwrap();
        let (fdb, neigh, route) = peer();
        let rows = [Row::Route(route), Row::Neigh(neigh.address), Row::Fdb(fdb)].map(Op::Delete);
        assert_eq!(kernel.apply(&rows).unwrap(), []);
        put(&mut kernel);
        assert_eq!(kernel.apply(&rows).unwrap(), []);
        assert_eq!(kernel.apply(&rows).unwrap(), []);
    });
}

#[test]
fn of_two_routes_to_a_subnet_the_one_that_is_named_goes() {
    in_namespace(async |mut kernel, device| {
        kernel.make(&device).await.unwrap();
        put(&mut kernel);
        ip("route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink");
        let (_, _, ours) = peer();
        let observed = observe(&mut kernel);
        let flannels = observed
            .routes
            .iter()
            .map(|seen| seen.route)
            .find(|route| route.destination == ours.destination && *route != ours);
        let flannels = flannels.unwrap();
        assert_eq!((flannels.metric, flannels.protocol), (0, 3));
        assert_eq!(kernel.apply(&[Op::Delete(Row::Route(flannels))]).unwrap(), []);
        assert_eq!(kernel.apply(&[Op::Delete(Row::Route(flannels))]).unwrap(), [], "and not ours at the second time");
        let left: Vec<Route> = observe(&mut kernel).routes.iter().map(|seen| seen.route).collect();
        assert!(left.contains(&ours) && !left.contains(&flannels), "{left:?}");
    });
}

#[test]
fn a_route_that_somebody_puts_in_the_place_of_ours_is_told() {
    in_namespace(async |mut kernel, device| {
        kernel.make(&device).await.unwrap();
        put(&mut kernel);
        ip("route replace 10.5.0.0/16 dev eth0");
        let base: ipnetwork::IpNetwork = "10.5.0.0/16".parse().unwrap();
        loop {
            match kernel.next_event().unwrap() {
                Some(KernelEvent::Row(Notification::Route(SeenRoute { route, ifindex })))
                    if route.destination == base =>
                {
                    assert!(ifindex.is_some(), "the other device");
                    assert_eq!((route.via, route.metric), (Via::Elsewhere, 0));
                    return;
                }
                Some(_) => {}
                None => kernel.readable().await,
            }
        }
    });
}

#[test]
fn a_device_that_the_kernel_cannot_make_as_wanted_is_made_once() {
    in_namespace(async |mut kernel, device| {
        // The kernel caps the MTU by the underlay's 1500.
        let wanted = Device { mtu: 8950, ..device };
        assert!(matches!(kernel.make(&wanted).await.unwrap(), Made::Created(_)));
        put(&mut kernel);
        assert_eq!(kernel.make(&wanted).await.unwrap(), Made::AsWanted);
        assert_eq!(observe(&mut kernel).fdb.len(), 1, "what hangs on it is still there");
    });
}

#[test]
fn the_device_that_has_our_vni_is_named() {
    in_namespace(async |mut kernel, device| {
        let Vxlan { vni, port, .. } = VXLAN;
        ip(&format!("link add other type vxlan id {vni} local {} dstport {port} dev eth0", device.local));
        let other = Device { name: "flannel.9".into(), ..device };
        let error = kernel.make(&other).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot create flannel.9: other has VNI {vni} and port {port}")), "{error}");
    });
}

#[test]
fn a_device_that_is_no_vxlan_is_left_alone() {
    in_namespace(async |mut kernel, device| {
        ip("link add flannel.1 type bridge");
        let error = kernel.make(&device).await.unwrap_err().to_string();
        assert_eq!(error, "flannel.1 is a bridge device, not vxlan: remove or rename it");
        assert!(ip("-d link show flannel.1").contains("bridge"));
    });
}

#[test]
fn a_changed_mac_mtu_address_and_state_are_mended_on_the_living_device() {
    in_namespace(async |mut kernel, device| {
        kernel.make(&device).await.unwrap();
        put(&mut kernel);
        ip("link set flannel.1 mtu 1400");
        ip("link set flannel.1 address 02:00:00:00:00:99");
        ip("addr flush dev flannel.1");
        assert!(matches!(kernel.make(&device).await.unwrap(), Made::Changed(_)));
        assert_eq!(kernel.make(&device).await.unwrap(), Made::AsWanted);
        let link = ip("link show flannel.1");
        assert!(link.contains("mtu 1450") && link.contains("02:00:00:00:00:01"), "{link}");
        assert!(ip("addr show flannel.1").contains("10.5.1.0/32"));
        assert_eq!(observe(&mut kernel).fdb.len(), 1);
    });
}

#[test]
fn a_refusal_about_the_device_has_the_kernel_s_words() {
    in_namespace(async |mut kernel, device| {
        let error = kernel.make(&Device { mtu: 10, ..device }).await.unwrap_err().to_string();
        assert_eq!(error, "create flannel.1: Invalid argument (os error 22): MTU must be between 68 and 65535");
    });
}

/// A parameter below /proc/sys/net, in the namespace of this thread.
fn parameter(key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap().trim().to_owned()
}

#[test]
fn a_device_takes_nothing_in_from_its_link_also_when_it_is_made_anew_or_somebody_changes_it() {
    const WANTED: [(&str, &str); 11] = [
        ("ipv4/conf/flannel.1/accept_redirects", "0"),
        ("ipv4/conf/flannel.1/accept_source_route", "0"),
        ("ipv4/conf/flannel.1/arp_ignore", "8"),
        ("ipv4/conf/flannel.1/arp_accept", "0"),
        ("ipv4/conf/flannel.1/drop_gratuitous_arp", "1"),
        ("ipv4/conf/flannel.1/route_localnet", "0"),
        ("ipv6/conf/flannel.1/addr_gen_mode", "1"),
        ("ipv6/conf/flannel.1/accept_ra", "0"),
        ("ipv6/conf/flannel.1/accept_redirects", "0"),
        ("ipv6/conf/flannel.1/drop_unsolicited_na", "1"),
        ("ipv6/conf/flannel.1/disable_ipv6", "1"),
    ];
    let is_shut = || WANTED.iter().for_each(|(key, value)| assert_eq!(parameter(key), *value, "{key}"));
    in_namespace(async move |mut kernel, device| {
        kernel.make(&device).await.unwrap();
        is_shut();
        ip("link del flannel.1");
        kernel.make(&device).await.unwrap();
        is_shut();
        for (key, value) in WANTED {
            let other = if value == "0" { "1" } else { "0" };
            std::fs::write(format!("/proc/sys/net/{key}"), other).unwrap();
        }
        assert_eq!(kernel.make(&device).await.unwrap(), Made::AsWanted);
        is_shut();
    });
}

#[test]
fn the_ipv6_device_keeps_ipv6_and_has_no_address_but_ours() {
    in_namespace(async |mut kernel, device| {
        ip("addr add fd99::1/64 dev eth0 nodad");
        let (name, local) = ("flannel-v6.1".into(), "fd99::1".parse().unwrap());
        let device = Device { name, local, address: "fc00:0:0:1::/128".parse().unwrap(), mtu: 1430, ..device };
        kernel.make(&device).await.unwrap();
        for (name, value) in
            [("accept_ra", "0"), ("accept_redirects", "0"), ("disable_ipv6", "0"), ("addr_gen_mode", "1")]
        {
            assert_eq!(parameter(&format!("ipv6/conf/flannel-v6.1/{name}")), value, "{name}");
        }
        let addresses = || ip("-o addr show dev flannel-v6.1");
        assert!(addresses().contains("fc00:0:0:1::/128") && !addresses().contains("fe80"), "{}", addresses());
        // One that flannel made has a link-local address.
        ip("addr add fe80::1/64 dev flannel-v6.1 nodad");
        assert_eq!(kernel.make(&device).await.unwrap(), Made::AsWanted);
        assert!(!addresses().contains("fe80"), "{}", addresses());
    });
}

#[test]
fn a_device_in_external_mode_on_our_port_is_an_obstacle_and_a_start_that_fails_takes_its_device_back() {
    in_namespace(async |mut kernel, device| {
        let wanted = Backend::default().device(Family::V4).unwrap();
        assert!(kernel.obstacle(&wanted, device.local).unwrap().is_none());
        let holder = std::net::UdpSocket::bind("0.0.0.0:8472").unwrap();
        let error = kernel.make(&device).await.unwrap_err().to_string();
        let words = "cannot set up flannel.1: UDP port 8472 is held by a UDP socket on 0.0.0.0:8472 (pid ";
        assert!(error.starts_with(words), "{error}");
        kernel.undo(&device).await.unwrap();
        assert!(!ip("-o link show").contains("flannel.1"), "it was left behind");
        // One that was there before stays.
        ip("link add flannel.1 type vxlan id 1 local 10.99.0.1 dstport 8472 dev eth0 nolearning");
        kernel.make(&device).await.unwrap_err();
        kernel.undo(&device).await.unwrap();
        assert!(ip("-o link show").contains("flannel.1"));
        ip("link del flannel.1");
        drop(holder);
        ip("link add vx0 type vxlan external dstport 8472");
        ip("link set vx0 up");
        let obstacle = kernel.obstacle(&wanted, device.local).unwrap().unwrap().to_string();
        assert!(obstacle.contains("is held by vx0, a VXLAN device in external mode"), "{obstacle}");
        let error = kernel.make(&device).await.unwrap_err().to_string();
        assert_eq!(error, obstacle);
    });
}

/// Reads what the kernel tells up to this. Nothing of it is of a device's rows.
async fn told(kernel: &mut Kernel, awaited: &Notification) {
    loop {
        match kernel.next_event().unwrap() {
            Some(KernelEvent::Row(row)) if row == *awaited => return,
            Some(KernelEvent::Row(row @ (Notification::Fdb(_) | Notification::Neigh(_)))) => panic!("{row:?}"),
            Some(_) => {}
            None => kernel.readable().await,
        }
    }
}

#[test]
fn a_link_local_host_is_never_reached_directly() {
    in_namespace(async |mut kernel, _| {
        ip("addr add fd99::1/64 dev eth0 nodad");
        assert!(kernel.is_direct("fd99::2".parse().unwrap()).unwrap());
        // A route through it would have to name the link: the kernel refuses one that doesn't.
        assert!(!kernel.is_direct("fe80::2".parse().unwrap()).unwrap());
    });
}

#[test]
fn without_a_device_routes_are_put_seen_and_heard_of() {
    in_namespace(async |mut kernel, device| {
        let device = Device { name: "host-gw".into(), vxlan: None, ..device };
        assert_eq!(kernel.make(&device).await.unwrap(), Made::AsWanted);
        assert!(!ip("-o link show").contains("vxlan"), "a device was made");
        let host = "10.99.0.2".parse().unwrap();
        assert!(kernel.is_direct(host).unwrap());
        let route = Route::direct("10.5.2.0/24".parse().unwrap(), 2, host);
        assert_eq!(kernel.apply(&[Op::PutRoute(route)]).unwrap(), []);
        // What another VXLAN device of this host has is no row of ours.
        ip("link add flannel.1 type vxlan id 1 local 10.99.0.1 dstport 8472 dev eth0 nolearning");
        ip("link set flannel.1 up");
        ip("neigh add 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent");
        let observed = observe(&mut kernel);
        assert!(observed.fdb.is_empty() && observed.neighbours.is_empty(), "{observed:?}");
        let seen = *observed.routes.iter().find(|seen| seen.route == route).unwrap();
        assert!(seen.ifindex.is_some(), "it leads through a link of this host");
        ip("route del 10.5.2.0/24");
        told(&mut kernel, &Notification::Gone(Row::Route(route))).await;
        // The same once more with sockets that hear of it already.
        assert_eq!(kernel.make(&Device { mtu: 1400, ..device }).await.unwrap(), Made::AsWanted);
        ip("route add 10.5.2.0/24 via 10.99.0.2 proto 116 metric 1002");
        told(&mut kernel, &Notification::Route(seen)).await;
        assert_eq!(kernel.apply(&[Op::Delete(Row::Route(route))]).unwrap(), []);
        assert!(!ip("route").contains("10.5.2.0/24"));
    });
}
