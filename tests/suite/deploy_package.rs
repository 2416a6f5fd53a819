//! The Debian package on Debian 12 and 13, each a machine of its own with systemd as its first process, in a node of the lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use twill_lab::{Lab, NODE_CONFIG, Node, Peer, Ping, wait_until};

use crate::image::programs;
use crate::{deploy, root, run, tool};

/// For a machine to boot and for a service to be ready, beside others.
const PATIENCE: Duration = Duration::from_secs(90);

/// A booted Debian; gone with this value.
struct Machine {
    unshare: Child,
    /// Its first process, by the machine's own number.
    init: u32,
    cgroup: PathBuf,
    /// Where what it wrote is, below `upper`.
    work: tempfile::TempDir,
}

impl Machine {
    /// Boots a release in the network of this node.
    fn boot(release: &str, node: &Node) -> Machine {
        let roots = tool("helm").with_file_name("roots");
        let root = roots.join(release);
        assert!(root.exists(), "no {}: run deploy/setup/roots.sh first", root.display());
        let work = tempfile::Builder::new().prefix("twill-machine-").tempdir().unwrap();
        let cgroup = cgroups().join(work.path().file_name().unwrap());
        let mut command = node.netns().command(root_of_repository().join("tests/support/machine.sh")).unwrap();
        command.arg(&root).arg(work.path()).arg(&cgroup).stdout(Stdio::null()).stderr(Stdio::null());
        let unshare = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = wait_until("the machine's first process", PATIENCE, || {
            let init: u32 = fs::read_to_string(&children).ok()?.trim().parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{init}/comm")).ok()?;
            (name.trim() == "systemd").then_some(init)
        });
        let machine = Machine { unshare, init, cgroup, work };
        wait_until("the machine has booted", PATIENCE, || match machine.run("systemctl is-system-running || true") {
            // Degraded: a service of Debian's own has failed, as some do without a machine of their own.
            Ok(state) if ["running", "degraded"].contains(&state.trim()) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        machine
    }

    /// Runs a shell line in the machine; what it printed.
    fn run(&self, line: &str) -> Result<String, String> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--all", "--root", "--wd", "sh", "-c", line]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        if status.success() { Ok(text) } else { Err(format!("{line}: {status}: {text}")) }
    }

    #[track_caller]
    fn must(&self, line: &str) -> String {
        self.run(line).unwrap_or_else(|error| panic!("{error}\n{}", self.journal()))
    }

    fn journal(&self) -> String {
        self.run("journalctl -u twilld -o cat --no-pager | tail -n 30; systemctl status twilld --no-pager | head -n 20")
            .unwrap_or_else(|error| error)
    }

    /// Puts a file of ours into the machine.
    fn copy(&self, content: &[u8], to: &str) {
        fs::write(format!("/proc/{}/root{to}", self.init), content).unwrap();
    }

    /// A property of the service's.
    fn property(&self, name: &str) -> String {
        self.must(&format!("systemctl show --value -p {name} twilld")).trim().to_owned()
    }

    /// Copies the subnet to where the lab's pods look for it.
    fn hand_over_subnet(&self, node: &Node) {
        fs::copy(format!("/proc/{}/root/run/flannel/subnet.env", self.init), node.subnet_file()).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process goes with it, and all others with that.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let removed = twill_lab::wait_for("the end of the machine", PATIENCE, || remove_cgroup(&self.cgroup));
        if let Err(error) = removed {
            eprintln!("{}: {error:#}", self.cgroup.display());
        }
        let _ = self.work.path();
    }
}

fn root_of_repository() -> PathBuf {
    fs::canonicalize(root()).unwrap()
}

/// Where the machine has the cgroups of version 2.
fn cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words[2] == "cgroup2");
    PathBuf::from(mount.unwrap_or_else(|| panic!("no cgroup2 is mounted"))[1])
}

/// Removes a cgroup with those below it.
fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    fs::remove_dir(path)
}

/// The package in two revisions, which are built once.
fn packages() -> &'static [Vec<u8>; 2] {
    static PACKAGES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        programs();
        let folder = tempfile::tempdir().unwrap();
        ["1", "2"].map(|revision| {
            let file = folder.path().join(format!("twill-{revision}.deb"));
            let build = ["--compression", "fast", "--revision", revision, "--output"];
            run(Command::new(deploy("debian/build.sh")).args(build).arg(&file));
            fs::read(file).unwrap()
        })
    })
}

fn installed_ready_upgraded_and_removed(release: &str) {
    let packages = packages();
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let machine = Machine::boot(release, &node);
    for (at, package) in packages.iter().enumerate() {
        machine.copy(package, &format!("/root/{}.deb", at + 1));
    }

    machine.must("dpkg -i /root/1.deb");
    // A node that is told nothing yet would stop its flanneld at the next boot.
    assert_eq!(machine.must("systemctl is-enabled twilld || true").trim(), "disabled");
    assert_eq!(machine.property("ActiveState"), "inactive", "it starts once it is told where etcd is");
    // The file may have a password in it.
    assert_eq!(machine.must("stat -c '%a %U:%G' /etc/default/twilld").trim(), "640 root:root");
    assert!(machine.must("twilld --version").starts_with("twilld 0."));
    let settings = format!("FLANNELD_ETCD_ENDPOINTS={}\nFLANNELD_NODE_ID=node1\n", etcd_by_name(&lab, &machine));
    machine.must(&format!("printf '{settings}' >>/etc/default/twilld"));
    a_flanneld_runs(&machine);
    machine.must("systemctl enable --now twilld");
    assert_eq!(machine.property("ActiveState"), "active");
    assert_eq!(machine.must("systemctl is-active flanneld || true").trim(), "inactive");
    assert_eq!(machine.must("cat /root/twilld-at-stop").trim(), "inactive", "both agents ran for a moment");
    assert!(machine.property("StatusText").starts_with("ready"), "{}", machine.property("StatusText"));
    machine.hand_over_subnet(&node);
    the_unit_lets_it_do_its_work(&lab, &node, &machine);
    the_plugin_is_installed(&machine);

    let mut other = lab.node(2).twilld(&[]);
    other.wait_ready();
    let pods = [node.pod(1), lab.node(2).pod(1)];
    wait_until("the pods reach each other", PATIENCE, || pods[0].ping(pods[1].addr()));
    let pings = [pods[0].ping_running(pods[1].addr(), 10), pods[1].ping_running(pods[0].addr(), 10)];
    upgraded_and_back(&machine, &pings);

    machine.must("kill -9 $(systemctl show --value -p MainPID twilld)");
    wait_until("systemd starts it again", PATIENCE, || {
        machine.property("NRestarts") == "1" && machine.property("ActiveState") == "active"
    });

    machine.must("dpkg -r twill");
    pings[0].wait_received(20);
    for ping in pings {
        let report = ping.stop();
        println!("{release}: {report:?}");
        assert_eq!(report.lost, 0, "{report:?}");
    }
    machine.must("dpkg -P twill");
    let left = machine.must("find /usr /etc /var/lib /lib/ -name '*twill*' ! -path '*/dpkg/*'");
    assert_eq!(left, "", "the package leaves files");
}

/// etcd's URL with a name for its address, and services before those that find the name that are libraries of the host.
fn etcd_by_name(lab: &Lab, machine: &Machine) -> String {
    let url = lab.etcd().url();
    let (address, port) = url.strip_prefix("http://").unwrap().rsplit_once(':').unwrap();
    machine.must(&format!("echo '{address} etcd.example' >>/etc/hosts"));
    machine.copy(b"hosts: hesiod resolve myhostname files dns\n", "/etc/nsswitch.conf");
    format!("http://etcd.example:{port}")
}

/// A flanneld that notes, while it stops, how far twilld is.
fn a_flanneld_runs(machine: &Machine) {
    let unit = "[Service]\nExecStart=/bin/sleep infinity\n\
                ExecStop=/bin/sh -c 'systemctl show --value -p ActiveState twilld >/root/twilld-at-stop'\n";
    machine.copy(unit.as_bytes(), "/etc/systemd/system/flanneld.service");
    machine.must("systemctl daemon-reload && systemctl start flanneld");
}

/// What a unit that protects too much keeps from the daemon, without an end of it: the boot id, by which clones are told apart,
/// and the kernel's values against frames from the tunnel.
fn the_unit_lets_it_do_its_work(lab: &Lab, node: &Node, machine: &Machine) {
    let records = lab.records();
    assert!(records.len() == 1 && records[0].value.contains(r#""Instance":{"ID":"#), "{records:?}");
    for (value, expected) in [("accept_ra", "0"), ("accept_redirects", "0"), ("disable_ipv6", "1")] {
        let there = node.exec(&format!("cat /proc/sys/net/ipv6/conf/flannel.1/{value}")).unwrap();
        assert_eq!(there.trim(), expected, "{value}: {}", machine.journal());
    }
}

/// Two pings go on meanwhile; what they lose is counted at their end.
fn upgraded_and_back(machine: &Machine, pings: &[Ping; 2]) {
    let mut pid = machine.property("MainPID");
    for file in ["2.deb", "1.deb"] {
        machine.must(&format!("dpkg -i /root/{file}"));
        wait_until("the daemon is another one and ready", PATIENCE, || {
            let new = machine.property("MainPID");
            let well = new != pid && machine.property("ActiveState") == "active";
            if well { Ok(new) } else { Err(machine.journal()) }
        });
        pid = machine.property("MainPID");
        pings.iter().for_each(|ping| ping.wait_received(20));
    }
    let settings = machine.must("cat /etc/default/twilld");
    assert!(settings.contains("FLANNELD_NODE_ID=node1"), "an upgrade keeps what was set");
}

fn the_plugin_is_installed(machine: &Machine) {
    machine.must("twill install-cni --bin-dir /opt/cni/bin --conf-dir /etc/cni/net.d");
    let version = machine.must("CNI_COMMAND=VERSION /opt/cni/bin/flannel");
    assert!(version.contains("1.1.0"), "{version}");
    machine.must("rm -r /opt/cni /etc/cni");
}

#[test]
fn on_debian_12_it_installs_starts_upgrades_and_removes() {
    installed_ready_upgraded_and_removed("bookworm");
}

#[test]
fn on_debian_13_it_installs_starts_upgrades_and_removes() {
    installed_ready_upgraded_and_removed("trixie");
}

/// Exit code 3: the restart gets the node another subnet.
#[test]
fn a_node_whose_subnet_is_taken_comes_back_with_another() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let machine = Machine::boot("bookworm", &node);
    machine.copy(&packages()[0], "/root/1.deb");
    machine.must("dpkg -i /root/1.deb");
    let settings = format!("FLANNELD_ETCD_ENDPOINTS={}\nFLANNELD_NODE_ID=node1\n", lab.etcd().url());
    machine.must(&format!("printf '{settings}' >/etc/default/twilld && systemctl start twilld"));
    machine.hand_over_subnet(&node);
    let lost = node.as_peer();
    // While it can do nothing its record goes, and another node makes its own.
    machine.must("systemctl kill --signal=STOP twilld");
    lab.delete(&lost.key());
    lab.put_peer(&Peer { public_ip: "10.99.0.77".parse().unwrap(), ..lost.clone() });
    machine.must("systemctl kill --signal=CONT twilld");
    wait_until("another subnet", PATIENCE, || {
        let env = machine.run("cat /run/flannel/subnet.env").unwrap_or_default();
        let other = env.contains("FLANNEL_SUBNET=") && !env.contains(&format!("{}/", lost.subnet.nth(1).unwrap()));
        if other && machine.property("ActiveState") == "active" { Ok(()) } else { Err(machine.journal()) }
    });
    assert_eq!(machine.property("NRestarts"), "1");
    // 2: a wrong setting. A restart cannot help.
    machine.must("echo FLANNELD_HEALTHZ_PORT=x >>/etc/default/twilld");
    machine.run("systemctl restart twilld").unwrap_err();
    wait_until("it gives up", PATIENCE, || machine.property("ActiveState") == "failed");
    assert_eq!(machine.property("ExecMainStatus"), "2");
}
