//! Containers of a real runtime: podman with its CNI backend, the plugins flannel, bridge, host-local and portmap, and
//! a twilld on each node. The plugin's own tests, with every verb and every error, are `agent/tests/cni`.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed; so has its helper")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use twill_lab::{Lab, NODE_CONFIG, Node, wait_until};

/// Where Debian has the reference plugins, and busybox-static.
const PLUGINS: &str = "/usr/lib/cni";
const BUSYBOX: &str = "/bin/busybox";

/// For a web server in a container to answer, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ends containers whose test was killed: seconds.
const LONGEST_LIFE: &str = "--timeout=600";

/// A node's podman, with all its files in the node's directory.
struct Podman {
    node: Node,
    dir: PathBuf,
}

impl Podman {
    /// Installs the plugins and the configuration of deploy/cni, with paths of this node.
    fn new(node: &Node) -> Podman {
        let dir = node.run_dir().join("podman");
        for part in ["bin", "net.d", "rootfs/bin", "rootfs/www", "rootfs/tmp"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        for plugin in ["bridge", "host-local", "portmap", "loopback"] {
            let path = Path::new(PLUGINS).join(plugin);
            assert!(path.exists(), "no {}: run deploy/setup/debian.sh first", path.display());
            symlink(path, dir.join("bin").join(plugin)).unwrap();
        }
        symlink(built("flannel"), dir.join("bin/flannel")).unwrap();
        fs::copy(BUSYBOX, dir.join("rootfs/bin/busybox")).unwrap();
        fs::write(dir.join("rootfs/www/index.html"), format!("node {}", node.index())).unwrap();
        let podman = Podman { node: node.clone(), dir };
        fs::write(podman.dir.join("net.d/10-flannel.conflist"), podman.conflist().to_string()).unwrap();
        fs::write(podman.dir.join("containers.conf"), podman.containers_conf()).unwrap();
        podman
    }

    fn conflist(&self) -> Value {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/cni/10-flannel.conflist");
        let mut list: Value = serde_json::from_slice(&fs::read(own).unwrap()).unwrap();
        let flannel = &mut list["plugins"][0];
        flannel["subnetFile"] = json!(self.node.subnet_file());
        flannel["dataDir"] = json!(self.dir.join("flannel"));
        flannel["ipam"] = json!({"dataDir": self.dir.join("ipam")});
        list
    }

    /// What podman needs on a machine without systemd, with cgroups v1 and few rights.
    fn containers_conf(&self) -> String {
        let dir = self.dir.display();
        format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{dir}/bin\"]\n\
             network_config_dir = \"{dir}/net.d\"\ndefault_network = \"cbr0\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"none\"\n\
             tmp_dir = \"{dir}/tmp\"\nstatic_dir = \"{dir}/static\"\nvolume_path = \"{dir}/volumes\"\n\
             [containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=1024:1024\"]\n"
        )
    }

    fn try_run(&self, words: &[&str]) -> Result<String, String> {
        let mut command = self.node.netns().command("podman").map_err(|e| e.to_string())?;
        command.env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        command.args(["--storage-driver", "overlay", "--root"]).arg(self.dir.join("root"));
        command.arg("--runroot").arg(self.dir.join("runroot")).args(words);
        let output = command.output().map_err(|e| format!("podman: {e}; run deploy/setup/debian.sh first"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        Err(format!("podman {words:?}: {}: {}", output.status, text(&output.stderr)))
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        self.try_run(words).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Starts a container with a web server and these further arguments; its address.
    #[track_caller]
    fn serve(&self, name: &str, args: &[&str]) -> IpAddr {
        let rootfs = self.dir.join("rootfs").display().to_string();
        let start = ["run", "--detach", "--name", name, LONGEST_LIFE];
        let server = ["--rootfs", &rootfs, BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/www"];
        self.run(&[&start, args, &server].concat());
        self.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", name]).parse().unwrap()
    }

    /// Runs a command in a container of its own.
    fn once(&self, words: &[&str]) -> Result<String, String> {
        let rootfs = self.dir.join("rootfs").display().to_string();
        let start = ["run", "--rm", LONGEST_LIFE, "--rootfs", &rootfs];
        self.try_run(&[&start, words].concat())
    }

    /// The addresses that host-local holds.
    fn held(&self) -> Vec<String> {
        let is_address = |name: &String| name.parse::<IpAddr>().is_ok();
        names(&self.dir.join("ipam/cbr0")).into_iter().filter(is_address).collect()
    }

    fn stored(&self) -> Vec<String> {
        names(&self.dir.join("flannel"))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Err(e) = self.try_run(&["rm", "--all", "--force", "--time", "0"]) {
            eprintln!("{e}");
        }
        // Podman leaves its overlay mounts to the next start of the machine.
        let _ = std::process::Command::new("umount").arg("-q").arg(self.dir.join("root/overlay")).status();
    }
}

/// A program of this workspace, beside the directory of the running test.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name}: run `cargo build --workspace --bins` first"))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// The words that fetch a page. Not by wget: a static program that asks for the port of "http" by name crashes.
fn fetch(address: IpAddr, port: u16) -> [String; 4] {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | {BUSYBOX} nc -w 5 {address} {port} | tail -n 1");
    [BUSYBOX.into(), "sh".into(), "-c".into(), script]
}

#[track_caller]
fn wait_page(what: &str, wanted: &str, mut get: impl FnMut() -> Result<String, String>) {
    wait_until(what, PATIENCE, || match get() {
        Ok(page) if page == wanted => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn containers_on_two_nodes_talk_and_a_port_is_published() {
    let lab = Lab::with_nodes(2);
    lab.put_config(NODE_CONFIG);
    let _daemons = lab.start_all(&[]);
    let podmen = [Podman::new(&lab.node(1)), Podman::new(&lab.node(2))];
    let servers = [podmen[0].serve("one", &[]), podmen[1].serve("two", &["--publish=8080:80"])];
    for (node, server) in lab.nodes().iter().zip(&servers) {
        let subnet = node.as_peer().subnet;
        assert!(matches!(server, IpAddr::V4(address) if subnet.contains(*address)), "{server} is not in {subnet}");
    }

    // Each way through the overlay: a container of its own asks the other node's.
    for (from, to) in [(0, 1), (1, 0)] {
        let words = fetch(servers[to], 80);
        let wanted = format!("node {}", to + 1);
        wait_page(&format!("the page of {wanted}"), &wanted, || podmen[from].once(&words.each_ref().map(|w| &**w)));
    }

    // From outside the cluster, by the node's own address.
    let words = fetch(lab.node(2).addr().into(), 8080);
    let fetch = || lab.fabric().run(&words.each_ref().map(|w| &**w)).map_err(|e| format!("{e:#}"));
    wait_page("the published page", "node 2", fetch);

    for (podman, name) in podmen.iter().zip(["one", "two"]) {
        assert_eq!((podman.held().len(), podman.stored().len()), (1, 1), "{name}");
        podman.run(&["rm", "--force", "--time", "0", name]);
        assert_eq!((podman.held(), podman.stored()), (vec![], vec![]), "{name}");
    }
    let rules = lab.node(2).exec("iptables-save -t nat").unwrap();
    assert!(!rules.contains("8080"), "{rules}");
}

#[test]
fn without_a_lease_a_container_fails_with_the_reason_and_leaves_nothing() {
    let lab = Lab::with_nodes(1);
    let podman = Podman::new(&lab.node(1));
    let failure = podman.once(&[BUSYBOX, "true"]).unwrap_err();
    assert!(failure.contains("subnet.env: no such file or directory"), "{failure}");
    assert_eq!((podman.held(), podman.stored()), (vec![], vec![]));

    // And works as soon as there is one.
    lab.put_config(NODE_CONFIG);
    let _daemon = lab.start_all(&[]);
    podman.once(&[BUSYBOX, "true"]).unwrap();
    assert_eq!((podman.held(), podman.stored()), (vec![], vec![]));
}

#[test]
fn the_daemon_writes_through_no_link_and_waits_for_no_fifo() {
    let lab = Lab::with_nodes(1);
    let file = lab.node(1).subnet_file();
    let status = file.with_file_name("subnet.env.status");
    let theirs = lab.node(1).run_dir().join("theirs");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&theirs, "theirs").unwrap();
    // As somebody leaves them who may write in this folder.
    symlink(&theirs, &status).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut daemon = lab.node(1).twilld(&[]);
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    wait_until("the daemon's word for the plugin", PATIENCE, || {
        let said = is_file(&status) && fs::read_to_string(&status).unwrap().contains("no network config yet");
        said.then_some(()).ok_or_else(|| daemon.log())
    });
    lab.put_config(NODE_CONFIG);
    daemon.wait_ready();
    assert!(is_file(&file) && !status.exists());
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");

    // The same for a subnet.env that is a link while the daemon starts.
    daemon.terminate();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&theirs, text.replace("1450", "9999")).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(&theirs, &file).unwrap();
    let mut daemon = lab.node(1).twilld(&[]);
    daemon.wait_ready();
    assert!(
        is_file(&file) && fs::read_to_string(&file).unwrap() == text,
        "the subnet that it had is taken from the link"
    );
    assert!(fs::read_to_string(&theirs).unwrap().contains("9999"));
}
