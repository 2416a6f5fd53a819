//! The underlay as the real kernel shows it: addresses with their state, next hops of the default routes, and which
//! changes are told. Needs root.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::time::timeout;
use twill_agent::dataplane::kernel::Kernel;
use twill_agent::dataplane::{Dataplane, Device, KernelEvent, Vxlan};
use twill_agent::overlay::MacAddr;
use twill_agent::overlay::iface::{DefaultHop, Interface, Wish, choose};
use twill_agent::overlay::kernel::Notification;

/// Nothing waits so long unless the test fails.
const NEVER: Duration = Duration::from_secs(20);

/// The device of a network that is as the config's defaults have it.
const VXLAN: Vxlan =
    Vxlan { vni: 1, port: 8472, mac: MacAddr([2, 0, 0, 0, 0, 1]), learning: false, gbp: false, l2miss: true };

/// Runs a test in a network namespace of its own that has `eth0` with 10.1.0.5/24 and fd01::5/64, and `eth1` with
/// 10.2.0.5/24 and fd02::5/64.
fn in_namespace<F: AsyncFnOnce(Kernel) + Send + 'static>(test: F) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        for n in [0, 1] {
            ip(&format!("link add eth{n} type veth peer name far{n}"));
            ip(&format!("addr add 10.{}.0.5/24 dev eth{n}", n + 1));
            ip(&format!("addr add fd0{}::5/64 dev eth{n} nodad", n + 1));
            ip(&format!("link set eth{n} up"));
            ip(&format!("link set far{n} up"));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(NEVER, test(Kernel::open().unwrap())).await.unwrap() });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the namespace of this thread.
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn sysctl(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

fn find<'a>(interfaces: &'a [Interface], name: &str) -> &'a Interface {
    interfaces.iter().find(|interface| interface.name == name).unwrap()
}

/// The device and address that the default route leads to.
fn chosen(kernel: &mut Kernel, v6: bool) -> Option<(String, String)> {
    let chosen = choose(&kernel.interfaces().unwrap(), &Wish::default(), v6).ok()?;
    Some((chosen.interface.name, chosen.local.to_string()))
}

fn is(name: &str, local: &str) -> Option<(String, String)> {
    Some((name.to_owned(), local.to_owned()))
}

/// Makes `flannel.1` over `eth0`.
async fn make(kernel: &mut Kernel) {
    let underlay = find(&kernel.interfaces().unwrap(), "eth0").index;
    let device = Device {
        name: "flannel.1".into(),
        vxlan: Some(VXLAN),
        local: "10.1.0.5".parse().unwrap(),
        underlay,
        underlay_name: "eth0".into(),
        mtu: 1450,
        address: "10.5.1.0/32".parse().unwrap(),
    };
    kernel.make(&device).await.unwrap();
}

/// The next event that tells something.
async fn next_event(kernel: &mut Kernel) -> KernelEvent {
    loop {
        match kernel.next_event().unwrap() {
            Some(KernelEvent::Nothing) => {}
            Some(event) => return event,
            None => kernel.readable().await,
        }
    }
}

/// Reads events until the one that this neighbour entry causes; whether there was one of the underlay before.
async fn underlay_until(kernel: &mut Kernel, address: &str) -> bool {
    ip(&format!("neigh add {address} lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent"));
    let mut underlay = false;
    loop {
        match next_event(kernel).await {
            KernelEvent::Underlay => underlay = true,
            KernelEvent::Row(Notification::Neigh(row))
                if row.address == address.parse::<std::net::IpAddr>().unwrap() =>
            {
                return underlay;
            }
            _ => {}
        }
    }
}

/// Waits until the underlay is said to have changed, and the default route to lead there.
async fn follows(kernel: &mut Kernel, expected: Option<(String, String)>) {
    loop {
        while next_event(kernel).await != KernelEvent::Underlay {}
        if chosen(kernel, false) == expected {
            return;
        }
    }
}

#[test]
fn of_several_next_hops_the_first_that_lives_is_chosen() {
    in_namespace(async |mut kernel| {
        ip("route add default nexthop via 10.1.0.1 nexthop via 10.2.0.1");
        ip("-6 route add default nexthop via fd01::1 dev eth0 nexthop via fd02::1 dev eth1");
        let hop = |place, metric| Some(DefaultHop { metric, linkdown: false, place, of: 2 });
        let interfaces = kernel.interfaces().unwrap();
        let (eth0, eth1) = (find(&interfaces, "eth0"), find(&interfaces, "eth1"));
        assert_eq!((eth0.default_v4, eth1.default_v4), (hop(1, 0), hop(2, 0)));
        assert_eq!((eth0.default_v6, eth1.default_v6), (hop(1, 1024), hop(2, 1024)));
        ip("link set eth0 down");
        let interfaces = kernel.interfaces().unwrap();
        let (eth0, eth1) = (find(&interfaces, "eth0"), find(&interfaces, "eth1"));
        assert_eq!((eth0.default_v4, eth1.default_v4), (None, hop(2, 0)));
        assert_eq!((eth0.default_v6, eth1.default_v6), (None, hop(2, 1024)));
    });
}

#[test]
fn next_hop_objects_lead_to_their_interface() {
    in_namespace(async |mut kernel| {
        for line in [
            "nexthop add id 1 via 10.1.0.1 dev eth0",
            "nexthop add id 2 via 10.2.0.1 dev eth1",
            "nexthop add id 3 via fd01::1 dev eth0",
            "nexthop add id 4 via fd02::1 dev eth1",
            "nexthop add id 10 group 2/1",
            "nexthop add id 11 group 4/3",
        ] {
            ip(line);
        }
        for compat in ["1", "0"] {
            sysctl("ipv4/nexthop_compat_mode", compat);
            ip("route add default nhid 1");
            ip("-6 route add default nhid 3");
            assert_eq!(chosen(&mut kernel, false), is("eth0", "10.1.0.5"), "{compat}");
            assert_eq!(chosen(&mut kernel, true), is("eth0", "fd01::5"), "{compat}");
            ip("route replace default nhid 10");
            ip("-6 route del default");
            ip("-6 route add default nhid 11");
            assert_eq!(chosen(&mut kernel, false), is("eth1", "10.2.0.5"), "{compat}");
            assert_eq!(chosen(&mut kernel, true), is("eth1", "fd02::5"), "{compat}");
            ip("route del default");
            ip("-6 route del default");
        }
        ip("-4 route add default via inet6 fd02::1 dev eth1");
        assert_eq!(chosen(&mut kernel, false), is("eth1", "10.2.0.5"));
        ip("route replace unreachable default");
        assert_eq!(chosen(&mut kernel, false), None, "it leads nowhere");
    });
}

#[test]
fn a_next_hop_that_dies_or_comes_back_on_another_interface_is_told() {
    in_namespace(async |mut kernel| {
        ip("route add default nexthop via 10.2.0.1 nexthop via 10.1.0.1");
        make(&mut kernel).await;
        assert_eq!(chosen(&mut kernel, false), is("eth1", "10.2.0.5"));
        ip("link set eth1 down");
        follows(&mut kernel, is("eth0", "10.1.0.5")).await;
        ip("link set eth1 up");
        follows(&mut kernel, is("eth1", "10.2.0.5")).await;
        // Without its carrier only.
        ip("link set far1 down");
        follows(&mut kernel, is("eth0", "10.1.0.5")).await;
        ip("addr add 10.2.0.9/24 dev eth1");
        assert!(underlay_until(&mut kernel, "10.5.7.7").await, "an address of a next hop's interface");
    });
}

#[test]
fn a_changed_next_hop_object_is_told_if_a_default_route_names_it() {
    in_namespace(async |mut kernel| {
        // Routes are told of no change of their objects then.
        sysctl("ipv4/nexthop_compat_mode", "0");
        ip("nexthop add id 1 via 10.1.0.1 dev eth0");
        ip("nexthop add id 2 via 10.2.0.1 dev eth1");
        ip("nexthop add id 10 group 1");
        ip("route add default nhid 10");
        make(&mut kernel).await;
        assert_eq!(chosen(&mut kernel, false), is("eth0", "10.1.0.5"));
        underlay_until(&mut kernel, "10.5.7.6").await;
        ip("nexthop add id 7 via 10.1.0.7 dev eth0");
        assert!(!underlay_until(&mut kernel, "10.5.7.7").await, "no default route has it");
        ip("nexthop replace id 10 group 2");
        follows(&mut kernel, is("eth1", "10.2.0.5")).await;
        ip("nexthop replace id 2 via 10.1.0.9 dev eth0");
        follows(&mut kernel, is("eth0", "10.1.0.5")).await;
    });
}

#[test]
fn an_address_whose_state_changes_is_told_and_one_whose_lifetime_is_renewed_is_not() {
    in_namespace(async |mut kernel| {
        ip("route add default via 10.1.0.1");
        ip("addr change 10.1.0.5/24 dev eth0 valid_lft 5000 preferred_lft 4000");
        ip("addr add 10.1.0.6/24 dev eth0");
        make(&mut kernel).await;
        assert_eq!(chosen(&mut kernel, false), is("eth0", "10.1.0.5"));
        underlay_until(&mut kernel, "10.5.7.6").await;
        chosen(&mut kernel, false);
        ip("addr change 10.1.0.5/24 dev eth0 valid_lft 6000 preferred_lft 5000");
        assert!(!underlay_until(&mut kernel, "10.5.7.7").await);
        ip("addr change 10.1.0.5/24 dev eth0 valid_lft 6000 preferred_lft 0");
        follows(&mut kernel, is("eth0", "10.1.0.6")).await;
    });
}

#[test]
fn a_host_behind_several_next_hops_is_direct_where_none_has_a_gateway() {
    in_namespace(async |mut kernel| {
        ip("route add 10.77.0.0/16 nexthop via 10.1.0.1 nexthop via 10.2.0.1");
        ip("route add 10.78.0.0/16 nexthop dev eth0 nexthop dev eth1");
        ip("-6 route add fd77::/64 nexthop via fd01::1 dev eth0 nexthop via fd02::1 dev eth1");
        ip("nexthop add id 1 via 10.1.0.1 dev eth0");
        ip("nexthop add id 2 dev eth1");
        for compat in ["1", "0"] {
            sysctl("ipv4/nexthop_compat_mode", compat);
            ip("route replace 10.79.0.0/16 nhid 1");
            ip("route replace 10.80.0.0/16 nhid 2");
            for (host, direct) in [
                ("10.1.0.9", true),
                ("10.77.0.9", false),
                ("10.78.0.9", true),
                ("10.79.0.9", false),
                ("10.80.0.9", true),
                ("fd01::9", true),
                ("fd77::9", false),
            ] {
                assert_eq!(kernel.is_direct(host.parse().unwrap()).unwrap(), direct, "{host} {compat}");
            }
        }
    });
}

#[test]
fn a_look_at_the_interfaces_of_a_host_with_many_routes_is_in_parts() {
    in_namespace(async |mut kernel| {
        let lines: String = (0..5_000)
            .map(|n| format!("route add 20.{}.{}.0/24 via 10.1.0.1\n", n / 250, n % 250))
            .chain(["route add default via 10.2.0.1\n".to_owned()])
            .collect();
        let file = std::env::temp_dir().join(format!("twill-routes-{}", std::process::id()));
        std::fs::write(&file, lines).unwrap();
        ip(&format!("-batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        make(&mut kernel).await;
        underlay_until(&mut kernel, "10.5.7.6").await;
        let mut parts = 0;
        let interfaces = loop {
            match kernel.look().unwrap() {
                Some(interfaces) => break interfaces,
                None => parts += 1,
            }
            if parts == 5 {
                // What was read already changes meanwhile.
                ip("addr add 10.2.0.7/24 dev eth1");
            }
        };
        assert!(parts > 10, "{parts} parts");
        assert_eq!(find(&interfaces, "eth1").default_v4, Some(0.into()));
        assert!(underlay_until(&mut kernel, "10.5.7.7").await, "another look is due");
        assert_eq!(
            find(&kernel.interfaces().unwrap(), "eth1").addresses.len(),
            find(&interfaces, "eth1").addresses.len() + 1
        );
    });
}
