//! The reference plugins as delegates and neighbours in the chain, in network namespaces.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::netns::Netns;
use crate::support::{Call, ENV, Node, names, wait_for};

/// Where Debian has them.
const PLUGINS: &str = "/usr/lib/cni";

/// The node's own namespace; the pods' follow.
const NODE: usize = 0;

/// A node with the real plugins, and pods that are empty namespaces.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    netns: Netns,
}

impl Cluster {
    pub(crate) fn new(pods: usize) -> Cluster {
        for plugin in ["bridge", "host-local", "portmap", "loopback"] {
            let path = format!("{PLUGINS}/{plugin}");
            assert!(Path::new(&path).exists(), "no {path}: run deploy/setup/debian.sh first");
        }
        Cluster { node: Node::new(), netns: Netns::make(1 + pods) }
    }

    /// The network's configuration: host-local's own files in our directory.
    fn conf(&self, more: Value) -> Value {
        let mut conf = json!({
            "delegate": {"isDefaultGateway": true, "hairpinMode": true},
            "ipam": {"dataDir": self.node.path("ipam")},
        });
        if let (Value::Object(conf), Value::Object(more)) = (&mut conf, more) {
            conf.extend(more);
        }
        conf
    }

    pub(crate) fn call_with(&self, verb: &str, pod: usize, more: Value) -> Call {
        let call = self.node.call_with(verb, self.conf(more)).id(&format!("pod{pod}"));
        let enter = self.netns.enter(NODE);
        call.env("CNI_PATH", PLUGINS).env("CNI_NETNS", self.netns.path(pod)).under(&[&enter[0], &enter[1]])
    }

    pub(crate) fn call(&self, verb: &str, pod: usize) -> Call {
        self.call_with(verb, pod, json!({}))
    }

    /// ADD, and the result.
    pub(crate) fn add(&self, pod: usize, more: Value) -> Value {
        serde_json::from_str(&self.call_with("ADD", pod, more).ok()).unwrap()
    }

    /// The addresses that host-local holds for the network.
    pub(crate) fn held(&self) -> Vec<String> {
        let is_address = |name: &String| name.parse::<IpAddr>().is_ok();
        names(&self.node.path("ipam/net")).into_iter().filter(is_address).collect()
    }

    /// The links of a pod, one a line.
    pub(crate) fn links(&self, pod: usize) -> String {
        self.netns.run(pod, &["ip", "-o", "link"])
    }

    pub(crate) fn run_on_node(&self, words: &[&str]) -> String {
        self.netns.run(NODE, words)
    }

    /// Runs a program in a pod.
    pub(crate) fn try_run(&self, pod: usize, words: &[&str]) -> Result<String, String> {
        self.netns.try_run(pod, words)
    }

    fn ping(&self, from: usize, to: &str) {
        self.netns.run(from, &["ping", "-c", "1", "-W", "5", to]);
    }

    fn ports_of_the_bridge(&self) -> usize {
        self.netns.run(NODE, &["ip", "-o", "link", "show", "master", "cni0"]).lines().count()
    }
}

fn address(result: &Value, index: usize) -> String {
    let cidr = result["ips"][index]["address"].as_str().unwrap_or_else(|| panic!("no address in {result}"));
    cidr.split('/').next().unwrap().to_string()
}

#[test]
fn two_pods_talk_and_give_back_what_they_had() {
    let cluster = Cluster::new(2);
    let results = [cluster.add(1, json!({})), cluster.add(2, json!({}))];
    let addresses = results.each_ref().map(|result| address(result, 0));
    assert_eq!(addresses, ["10.5.52.2", "10.5.52.3"]);
    cluster.ping(1, &addresses[1]);
    cluster.ping(2, "10.5.52.1");
    let link = cluster.netns.run(1, &["ip", "link", "show", "eth0"]);
    assert!(link.contains("mtu 1450"), "{link}");
    let routes = cluster.netns.run(1, &["ip", "route"]);
    assert!(routes.contains("10.5.0.0/16 via 10.5.52.1") && routes.contains("default via 10.5.52.1"), "{routes}");
    for (pod, result) in [1, 2].into_iter().zip(&results) {
        assert_eq!(cluster.call_with("CHECK", pod, json!({"prevResult": result})).ok(), "");
        cluster.call_with("DEL", pod, json!({"prevResult": result})).ok();
        cluster.call("DEL", pod).ok();
    }
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
    wait_for("the end of both ports", || (cluster.ports_of_the_bridge() == 0).then_some(()));
}

/// Flannel's plugin hands the delegate the file `<dataDir>/<container id>` as it is, and removes that file.
#[test]
fn flannels_own_del_takes_our_pod_down_and_leaves_nothing() {
    let cluster = Cluster::new(1);
    cluster.add(1, json!({}));
    let stored = fs::read_to_string(cluster.node.path("data/pod1")).unwrap();
    let enter = cluster.netns.enter(NODE);
    let call = cluster.node.call("DEL").stdin(&stored).id("pod1");
    let call = call.env("CNI_PATH", PLUGINS).env("CNI_NETNS", cluster.netns.path(1));
    call.program(&format!("{PLUGINS}/bridge")).under(&[&enter[0], &enter[1]]).ok();
    fs::remove_file(cluster.node.path("data/pod1")).unwrap();
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
    assert_eq!(cluster.links(1).lines().count(), 1, "{}", cluster.links(1));
}

#[test]
fn every_version_that_the_plugins_speak() {
    let cluster = Cluster::new(1);
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let result = cluster.add(1, json!({"cniVersion": version}));
        assert_eq!(result["cniVersion"], version);
        if version >= "0.4.0" {
            cluster.call_with("CHECK", 1, json!({"cniVersion": version, "prevResult": result})).ok();
        }
        cluster.call_with("DEL", 1, json!({"cniVersion": version})).ok();
        assert!(cluster.held().is_empty());
    }
    // These plugins are older than that; nothing is left.
    let (code, msg, details) = cluster.call_with("ADD", 1, json!({"cniVersion": "1.1.0"})).fails();
    let wanted = "incompatible CNI versions: the plugin bridge does not know cniVersion 1.1.0";
    assert_eq!((code, msg.as_str()), (1, wanted));
    assert!(
        details.starts_with("/usr/lib/cni/bridge knows 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0: give"),
        "{details}"
    );
    cluster.call_with("DEL", 1, json!({"cniVersion": "1.1.0"})).ok();
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
}

#[test]
fn both_families() {
    let cluster = Cluster::new(2);
    let env = ENV.replace(
        "FLANNEL_MTU=1450",
        "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\nFLANNEL_MTU=1430",
    );
    cluster.node.lease(&env);
    let results = [cluster.add(1, json!({})), cluster.add(2, json!({}))];
    for index in [0, 1] {
        cluster.ping(1, &address(&results[1], index));
    }
    let routes = cluster.netns.run(1, &["ip", "-6", "route"]);
    assert!(routes.contains("fc00::/48 via fc00:0:0:22::1"), "{routes}");
    for pod in [1, 2] {
        cluster.call("DEL", pod).ok();
    }
    assert!(cluster.held().is_empty());
}

#[test]
fn a_pod_whose_namespace_is_gone_gives_its_address_back() {
    let mut cluster = Cluster::new(1);
    cluster.add(1, json!({}));
    assert_eq!(cluster.held(), ["10.5.52.2"]);
    let call = cluster.call("DEL", 1).env("CNI_NETNS", "");
    cluster.netns.remove(1);
    call.ok();
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
}

#[test]
fn check_sees_a_broken_pod() {
    let cluster = Cluster::new(1);
    let result = cluster.add(1, json!({}));
    cluster.netns.run(1, &["ip", "addr", "flush", "dev", "eth0"]);
    let (_, msg, _) = cluster.call_with("CHECK", 1, json!({"prevResult": result})).fails();
    assert!(msg.contains("10.5.52.2"), "{msg}");
}

#[test]
fn a_full_subnet_says_so_and_leaks_nothing() {
    let cluster = Cluster::new(2);
    // One address beside the gateway's.
    cluster.node.lease(&ENV.replace("10.5.52.1/24", "10.5.52.1/30"));
    cluster.add(1, json!({}));
    let (_, msg, _) = cluster.call("ADD", 2).fails();
    assert!(msg.contains("no IP addresses available in range set"), "{msg}");
    // bridge leaves its half-made port; the DEL that every runtime sends next takes it away.
    cluster.call("DEL", 2).ok();
    assert_eq!(cluster.held(), ["10.5.52.2"]);
    wait_for("the end of the second port", || (cluster.ports_of_the_bridge() == 1).then_some(()));
    // As soon as the first one is gone, there is room.
    cluster.call("DEL", 1).ok();
    assert_eq!(address(&cluster.add(2, json!({})), 0), "10.5.52.2");
    cluster.call("DEL", 2).ok();
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
}

#[test]
fn two_interfaces_and_two_networks_in_one_pod() {
    let cluster = Cluster::new(1);
    let blue = json!({
        "name": "blue", "delegate": {"bridge": "blue0"}, "ipam": {"dataDir": cluster.node.path("ipam")}
    });
    let attach = |verb: &str, more: &Value, ifname: &str| cluster.call_with(verb, 1, more.clone()).ifname(ifname);
    let none = json!({});
    let all = [(&none, "eth0"), (&none, "net1"), (&blue, "net2")];
    for (conf, ifname) in all {
        attach("ADD", conf, ifname).ok();
    }
    let links = |ns: usize| cluster.netns.run(ns, &["ip", "-o", "-4", "addr"]);
    for ifname in ["eth0", "net1", "net2"] {
        assert!(links(1).contains(&format!("{ifname} ")), "{}", links(1));
    }
    assert_eq!(cluster.held().len(), 2);
    attach("DEL", &none, "eth0").ok();
    assert_eq!((cluster.held().len(), names(&cluster.node.path("ipam/blue")).len()), (1, 3));
    attach("DEL", &none, "net1").ok();
    attach("DEL", &blue, "net2").ok();
    assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
    assert_eq!(links(1).lines().count(), 1, "{}", links(1));
}

#[test]
fn another_delegate() {
    let cluster = Cluster::new(1);
    cluster.netns.run(1, &["ip", "link", "set", "lo", "down"]);
    cluster.call_with("ADD", 1, json!({"delegate": {"type": "loopback"}})).ifname("lo").ok();
    assert!(cluster.netns.run(1, &["ip", "link", "show", "lo"]).contains("UP"));
    cluster.call_with("DEL", 1, json!({"delegate": {"type": "loopback"}})).ifname("lo").ok();
    assert!(cluster.node.stored().is_empty());
}

#[test]
fn a_published_port_leads_to_the_pod() {
    let cluster = Cluster::new(1);
    cluster.netns.run(NODE, &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"]);
    cluster.netns.run(NODE, &["ip", "addr", "add", "198.51.100.7/32", "dev", "lo"]);
    let result = cluster.add(1, json!({}));
    let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
    let portmap = |verb: &str| {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "portmap", "snat": true,
            "capabilities": {"portMappings": true}, "runtimeConfig": mapping, "prevResult": result,
        });
        let enter = cluster.netns.enter(NODE);
        let call = cluster.node.call(verb).stdin(&conf.to_string()).id("pod1");
        call.env("CNI_NETNS", cluster.netns.path(1))
            .program(&format!("{PLUGINS}/portmap"))
            .under(&[&enter[0], &enter[1]])
    };
    portmap("ADD").ok();
    let listener = in_namespace(&cluster.netns.path(1), || TcpListener::bind("0.0.0.0:80").unwrap());
    let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"from the pod").unwrap());
    let said = in_namespace(&cluster.netns.path(NODE), || {
        let mut said = String::new();
        TcpStream::connect("198.51.100.7:8080").unwrap().read_to_string(&mut said).unwrap();
        said
    });
    assert_eq!(said, "from the pod");
    server.join().unwrap();
    portmap("DEL").ok();
    cluster.call_with("DEL", 1, json!({"prevResult": result})).ok();
    let rules = cluster.netns.run(NODE, &["iptables-save", "-t", "nat"]);
    assert!(!rules.contains("8080"), "{rules}");
}

/// No address is lost or given twice, and none is left, with 100 pods that come and go side by side.
#[test]
fn a_hundred_pods_in_parallel() {
    const PODS: usize = 100;
    let cluster = Cluster::new(PODS);
    for round in 0..2 {
        let results = in_parallel(PODS, |pod| cluster.add(pod, json!({})));
        let addresses: BTreeSet<String> = results.iter().map(|result| address(result, 0)).collect();
        assert_eq!(addresses.len(), PODS, "round {round}");
        assert_eq!(cluster.held().into_iter().collect::<BTreeSet<_>>(), addresses);
        assert_eq!((cluster.node.stored().len(), cluster.ports_of_the_bridge()), (PODS, PODS));
        in_parallel(PODS, |pod| cluster.call("DEL", pod).ok());
        assert!(cluster.held().is_empty() && cluster.node.stored().is_empty());
        // The kernel takes devices down in its own time.
        wait_for("the end of all ports", || (cluster.ports_of_the_bridge() == 0).then_some(()));
    }
    assert!(fs::read_dir(cluster.node.path("data")).unwrap().next().is_none());
}

/// Does `work` for 1 to `count`, as many at once as a busy runtime would.
fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(1);
    let worker = || {
        let mine = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n <= count));
        mine.map(&work).collect::<Vec<T>>()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..20).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// Runs `work` in a thread that has entered the namespace; sockets that it makes stay there.
fn in_namespace<T: Send>(path: &str, work: impl FnOnce() -> T + Send) -> T {
    let netns = fs::File::open(path).unwrap();
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        inside.join().unwrap()
    })
}
