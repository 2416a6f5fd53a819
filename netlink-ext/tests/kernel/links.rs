//! VXLAN links: created, compared, changed while they live.

use netlink_ext::link::{Difference, VxlanSpec};
use netlink_ext::{Dumper, Refusal, Request};

use crate::support::{
    Far, Host, PORT, address, change, create, delete, done, in_namespace, ip, links, output, pod, send, spec,
};

fn underlay(dumper: &mut Dumper) -> u32 {
    dumper.link_named("u0").unwrap().unwrap().index
}

#[test]
fn a_created_link_is_as_specified() {
    in_namespace(|| {
        let mut host = Host::new();
        let underlay = underlay(&mut host.dumper);
        assert_eq!(spec("x0", 1, underlay).differences(&host.overlay), []);
        assert!(host.overlay.up && host.overlay.lower_up);
        assert_eq!(host.dumper.links().unwrap().iter().filter(|link| **link == host.overlay).count(), 1);

        let v6 = VxlanSpec {
            local: address("fd00::1"),
            gbp: true,
            learning: true,
            l2miss: false,
            port: PORT + 1,
            ..spec("x6", 6, underlay)
        };
        links(async |links| links.add(v6.message()).execute().await).unwrap();
        let seen = host.dumper.link_named("x6").unwrap().unwrap();
        assert_eq!(v6.differences(&seen), [Difference::Down]);

        let again = links(async |links| links.add(v6.message()).execute().await);
        let Err(rtnetlink::Error::NetlinkError(answer)) = again else { panic!("created twice: {again:?}") };
        assert!(Refusal { errno: -answer.raw_code(), message: None }.is_exists(), "{answer}");
        delete(seen.index);
        assert_eq!(host.dumper.link_named("x6").unwrap(), None);
    });
}

#[test]
fn checksum_offload_stays_on_and_ipv4_udp_checksums_too() {
    in_namespace(|| {
        let _host = Host::new();
        assert!(output("ip -d link show dev x0").contains(" udpcsum "));
    });
}

#[test]
fn what_can_be_changed_on_the_living_device_is() {
    in_namespace(|| {
        let mut host = Host::new();
        ip("link add u2 type veth peer name u3\nlink set x0 down");
        let other = host.dumper.link_named("u2").unwrap().unwrap().index;
        let row = host.row(1, "10.0.0.2");
        done(host.batch.send(&[Request::PutFdb(row)]));
        let wanted = VxlanSpec {
            local: address("10.0.0.9"),
            underlay: other,
            learning: true,
            mac: [2, 9, 9, 9, 9, 9],
            mtu: 1300,
            ..spec("x0", 1, other)
        };
        let seen = host.dumper.link_named("x0").unwrap().unwrap();
        let differences = wanted.differences(&seen);
        assert_eq!(differences.len(), 6, "{differences:?}");
        assert!(differences.iter().all(Difference::live_change));
        let messages = wanted.change_messages(seen.index, &differences);
        change(messages);
        let seen = host.dumper.link_named("x0").unwrap().unwrap();
        assert_eq!(wanted.differences(&seen), []);
        assert_eq!(host.dumper.fdb(seen.index).unwrap()[0].row, row, "nothing is lost");
        assert!(wanted.change_messages(seen.index, &[]).is_empty());
    });
}

#[test]
fn a_port_of_another_device_is_taken_out() {
    in_namespace(|| {
        let mut host = Host::new();
        let wanted = spec("x0", 1, underlay(&mut host.dumper));
        ip("link add m0 type bridge\nlink set x0 master m0");
        let seen = host.dumper.link_named("x0").unwrap().unwrap();
        let master = host.dumper.link_named("m0").unwrap().unwrap().index;
        let differences = wanted.differences(&seen);
        assert_eq!(differences, [Difference::Master { seen: master }]);
        assert!(differences.iter().all(Difference::live_change));
        change(wanted.change_messages(seen.index, &differences));
        let seen = host.dumper.link_named("x0").unwrap().unwrap();
        assert_eq!((wanted.differences(&seen), seen.master), (vec![], None));
    });
}

/// What `ip link set` can do to the device that takes packets from the tunnel.
#[test]
fn what_takes_packets_from_the_tunnel_is_told_and_set_right() {
    in_namespace(|| {
        let mut host = Host::new();
        let wanted = spec("x0", 1, underlay(&mut host.dumper));
        let cases = [
            ("arp off", Difference::NoArp),
            ("protodown on", Difference::ProtoDown),
            ("type vxlan ttl 1", Difference::Ttl { seen: 1 }),
            ("type vxlan df set", Difference::Df { seen: 1 }),
        ];
        let mut all = Vec::new();
        for together in [false, true] {
            for (line, expected) in &cases {
                ip(&format!("link set x0 {line}"));
                let seen = host.dumper.link_named("x0").unwrap().unwrap();
                all.push(expected.clone());
                let differences = wanted.differences(&seen);
                assert!(all.iter().all(|expected| differences.contains(expected)), "{line}: {differences:?}");
                assert!(differences.iter().all(Difference::live_change));
                if !together {
                    change(wanted.change_messages(seen.index, &differences));
                    all.clear();
                    assert_eq!(wanted.differences(&host.dumper.link_named("x0").unwrap().unwrap()), []);
                }
            }
        }
        ip("link set x0 down");
        let differences = wanted.differences(&host.dumper.link_named("x0").unwrap().unwrap());
        assert_eq!(differences.len(), cases.len() + 1, "{differences:?}");
        change(wanted.change_messages(host.ifindex(), &differences));
        let seen = host.dumper.link_named("x0").unwrap().unwrap();
        assert_eq!(wanted.differences(&seen), []);
        assert!(seen.up && seen.lower_up);
    });
}

#[test]
fn a_changed_local_address_is_used_towards_known_peers_at_once() {
    in_namespace(|| {
        let mut host = Host::new();
        let far = Far::new();
        host.ask_user_space();
        ip("addr add 10.0.0.9/24 dev u0");
        done(host.batch.send(&[Request::PutFdb(host.row(1, "10.0.0.2")), Request::PutNeigh(host.entry(pod(1), 1))]));
        let source = || {
            send(pod(1));
            far.receive_with_source().expect("an encapsulated packet").1
        };
        assert_eq!(source(), address("10.0.0.1"));

        let wanted = VxlanSpec { local: address("10.0.0.9"), ..spec("x0", 1, underlay(&mut host.dumper)) };
        let messages = wanted.change_messages(host.ifindex(), &wanted.differences(&host.overlay));
        change(messages);
        assert_eq!(source(), address("10.0.0.9"));
    });
}

/// If a kernel learns to change one of these, [`Difference::live_change`] should too.
#[test]
fn what_is_said_not_to_be_changeable_is_refused() {
    in_namespace(|| {
        let mut host = Host::new();
        let underlay = underlay(&mut host.dumper);
        let base = spec("x0", 1, underlay);
        let cases = [
            (VxlanSpec { vni: 2, ..base.clone() }, "vxlan id 2"),
            (VxlanSpec { port: 4789, ..base.clone() }, "vxlan dstport 4789"),
            (VxlanSpec { gbp: true, ..base.clone() }, "vxlan gbp"),
            (VxlanSpec { l2miss: false, ..base.clone() }, "vxlan nol2miss"),
            (VxlanSpec { local: address("fd00::1"), ..base.clone() }, "vxlan local fd00::1"),
        ];
        for (wanted, change) in cases {
            let differences = wanted.differences(&host.overlay);
            assert!(matches!(&differences[..], [one] if !one.live_change()), "{differences:?}");
            assert!(wanted.change_messages(host.ifindex(), &differences).is_empty());
            let mut command = std::process::Command::new("ip");
            command.args(["link", "set", "x0", "type"]).args(change.split(' '));
            assert!(!command.output().unwrap().status.success(), "{change}");
        }
    });
}

#[test]
fn a_foreign_device_of_the_name_is_told_apart() {
    in_namespace(|| {
        let mut host = Host::new();
        let underlay = underlay(&mut host.dumper);
        let veth = host.dumper.link_named("u0").unwrap().unwrap();
        let differences = spec("u0", 1, underlay).differences(&veth);
        assert_eq!(differences, [Difference::NotVxlan { seen: Some("veth".into()) }]);
        assert_eq!(host.dumper.link_named("lo").unwrap().unwrap().kind, None);

        ip(&format!("link add x2 type vxlan id 2 dev u0 local 10.0.0.1 remote 10.0.0.7 dstport {PORT}"));
        let seen = host.dumper.link_named("x2").unwrap().unwrap();
        let differences = spec("x2", 2, underlay).differences(&seen);
        assert!(differences.contains(&Difference::Remote { seen: address("10.0.0.7") }), "{differences:?}");
    });
}

#[test]
fn a_device_made_anew_has_another_index() {
    in_namespace(|| {
        let mut host = Host::new();
        let before = host.ifindex();
        delete(before);
        assert_ne!(create(&mut host.dumper, "x0", 1).index, before);
    });
}
