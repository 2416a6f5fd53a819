//! What a device takes in from its link: read from its message, and set by netlink.

use std::fs;

use netlink_ext::conf::{Key, Setting};
use netlink_ext::{BatchSocket, Dumper, Request};

use crate::support::{done, in_namespace, ip};

/// The value that /proc/sys has.
fn in_proc(key: Key) -> u32 {
    fs::read_to_string(format!("/proc/sys/net/{}", key.path("c0"))).unwrap().trim().parse().unwrap()
}

#[test]
fn each_parameter_is_shown_as_proc_sys_has_it_and_those_of_netlink_are_set() {
    in_namespace(|| {
        ip("link add c0 type veth peer name c1");
        let (mut batch, mut dumper) = (BatchSocket::open().unwrap(), Dumper::open().unwrap());
        for key in Key::ALL {
            let before = dumper.link_named("c0").unwrap().unwrap();
            assert_eq!(before.conf.get(key), Some(in_proc(key)), "{key:?}");
            let value = if key == Key::ArpIgnore { 8 } else { 1 - in_proc(key) };
            if key.is_by_netlink() {
                let setting = Setting { ifindex: before.index, key, value };
                done(batch.send(&[Request::SetConf(setting)]));
            } else {
                fs::write(format!("/proc/sys/net/{}", key.path("c0")), value.to_string()).unwrap();
            }
            let after = dumper.link_named("c0").unwrap().unwrap();
            assert_eq!((after.conf.get(key), in_proc(key)), (Some(value), value), "{key:?}");
            // Nothing but this one.
            for other in Key::ALL.into_iter().filter(|other| *other != key) {
                assert_eq!(after.conf.get(other), before.conf.get(other), "{key:?} changed {other:?}");
            }
        }
    });
}

#[test]
fn without_a_link_local_address_nothing_is_made_of_the_mac() {
    in_namespace(|| {
        ip("link add c0 type veth peer name c1\nlink set c1 up");
        let (mut batch, mut dumper) = (BatchSocket::open().unwrap(), Dumper::open().unwrap());
        let ifindex = dumper.link_named("c0").unwrap().unwrap().index;
        done(batch.send(&[Request::SetConf(Setting { ifindex, key: Key::AddrGenMode, value: 1 })]));
        ip("link set c0 up");
        assert_eq!(dumper.addresses(Some(ifindex)).unwrap(), []);
    });
}
