//! The real kernel behind the trait `Dataplane`: what `overlay` takes for granted holds there. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use twill_agent::dataplane::kernel::Kernel;
use twill_agent::dataplane::{Dataplane, Device, Event, Made};
use twill_agent::overlay::MacAddr;
use twill_agent::overlay::kernel::{Fdb, Neigh, Observed, Op, Route, Row, Via};
use twill_agent::overlay::reconcile::Seen;

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
                vni: 1,
                port: 8472,
                local: "10.99.0.1".parse().unwrap(),
                underlay: eth0.index,
                underlay_name: "eth0".into(),
                mac: MacAddr([2, 0, 0, 0, 0, 1]),
                mtu: 1450,
                learning: false,
                gbp: false,
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
            assert!(observed.routes.contains(&wanted), "{wanted:?} in {:?}", observed.routes);
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
        let flannels = observed.routes.iter().find(|route| route.destination == ours.destination && **route != ours);
        let flannels = *flannels.unwrap();
        assert_eq!((flannels.metric, flannels.protocol), (0, 3));
        assert_eq!(kernel.apply(&[Op::Delete(Row::Route(flannels))]).unwrap(), []);
        assert_eq!(kernel.apply(&[Op::Delete(Row::Route(flannels))]).unwrap(), [], "and not ours at the second time");
        let left: Vec<Route> = observe(&mut kernel).routes;
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
                Some(Event::Row(Seen::Route(route))) if route.destination == base => {
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
        let (vni, port) = (device.vni, device.port);
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
