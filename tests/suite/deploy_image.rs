//! The image: what is in it, and three nodes that podman runs from it with what the DaemonSet gives its containers.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use twill_lab::{Lab, NODE_CONFIG, Node, wait_until};

use crate::manifests::{containers, documents, kustomize, of_kind};
use crate::{deploy, root, run, tool};

/// What an image may weigh, unpacked.
const LARGEST: u64 = 12 << 20;

/// For a container to start and twilld to be ready, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends containers whose test was killed: seconds.
const LONGEST_LIFE: &str = "--timeout=600";

/// Where `make dist-programs` leaves the static programs.
pub(crate) fn programs() -> PathBuf {
    let target = tool("helm").parent().and_then(Path::parent).map(Path::to_path_buf).unwrap();
    let programs = target.join(format!("{}-unknown-linux-gnu/dist", std::env::consts::ARCH));
    assert!(programs.join("twilld").exists(), "no {}/twilld: run make dist-programs first", programs.display());
    programs
}

/// A storage of images and containers in a folder of its own.
struct Storage {
    dir: tempfile::TempDir,
}

impl Storage {
    fn new() -> Storage {
        let storage = Storage { dir: tempfile::Builder::new().prefix("twill-image-").tempdir().unwrap() };
        let dir = storage.dir.path().display();
        let conf = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"none\"\n\
             tmp_dir = \"{dir}/tmp\"\nstatic_dir = \"{dir}/static\"\nvolume_path = \"{dir}/volumes\"\n\
             [containers]\ndefault_ulimits = [\"nofile=1024:4096\", \"nproc=1024:1024\"]\n"
        );
        fs::write(storage.path("containers.conf"), conf).unwrap();
        storage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds the image as `make image` does; its digest.
    fn build(&self, tag: &str, commit: &str) -> String {
        let mut build = Command::new(deploy("image/build.sh"));
        build.arg("--programs").arg(programs()).args(["--tag", tag, "--commit", commit]);
        run(build.arg("--root").arg(self.path("root"))).trim().to_owned()
    }

    fn podman(&self, mut command: Command) -> Command {
        command.env("CONTAINERS_CONF", self.path("containers.conf")).args(["--storage-driver", "overlay", "--root"]);
        command.arg(self.path("root")).arg("--runroot").arg(self.path("root/run"));
        command
    }

    /// Runs podman outside of any node.
    fn here(&self, args: &[&str]) -> String {
        run(self.podman(Command::new("podman")).args(args))
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let removed = self.podman(Command::new("podman")).args(["rm", "--all", "--force", "--time", "0"]).output();
        if !removed.is_ok_and(|removed| removed.status.success()) {
            eprintln!("containers in {} could not be removed", self.dir.path().display());
        }
        // Podman leaves its overlay mounts to the next start of the machine.
        let _ = Command::new("umount").arg("-q").arg(self.path("root/overlay")).status();
    }
}

#[test]
fn it_is_small_holds_nothing_but_the_programs_and_is_the_same_each_time() {
    let storages = [Storage::new(), Storage::new()];
    let digests = storages.each_ref().map(|storage| storage.build("localhost/twill:test", "abc"));
    assert!(digests[0].starts_with("sha256:"), "{digests:?}");
    assert_eq!(digests[0], digests[1], "two builds");
    let storage = &storages[0];
    let image = documents(&storage.here(&["image", "inspect", "localhost/twill:test"])).remove(0)[0].clone();
    let size = image["Size"].as_u64().unwrap();
    println!("{} bytes, {}", size, digests[0]);
    assert!(size < LARGEST, "{size} bytes");
    assert_eq!(image["Labels"]["org.opencontainers.image.revision"], "abc");
    assert_eq!(image["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");
    let archive = storage.path("files.tar");
    let container = storage.here(&["create", "localhost/twill:test"]);
    storage.here(&["export", "--output", archive.to_str().unwrap(), container.trim()]);
    let files = run(Command::new("tar").arg("-tf").arg(&archive));
    let mut files: Vec<&str> = files.lines().filter(|file| file.starts_with("usr/") && !file.ends_with('/')).collect();
    files.sort_unstable();
    assert_eq!(files, ["usr/bin/flannel", "usr/bin/twill", "usr/bin/twilld", "usr/share/doc/twill/LICENSE"]);
}

/// A node of the lab whose containers are those of the DaemonSet.
struct PodmanNode<'a> {
    storage: &'a Storage,
    node: Node,
    /// The DaemonSet's pod.
    pod: &'a Value,
    etcd: &'a str,
}

impl PodmanNode<'_> {
    /// `podman run` in the node with what the manifest says of this container, from this image.
    fn container(&self, name: &str, image: &str, options: &[&str]) -> Command {
        let spec = &self.pod["spec"]["template"]["spec"];
        let container = containers(self.pod).find(|container| container["name"] == name).unwrap();
        let context = &container["securityContext"];
        // By nsenter, since a namespace alone is entered: the container's cgroups are the machine's.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.node.netns().name())).arg("podman");
        let mut command = self.storage.podman(command);
        command.args(["run", "--network=host", LONGEST_LIFE]).args(options);
        for capability in context["capabilities"]["drop"].as_array().unwrap() {
            command.arg(format!("--cap-drop={}", capability.as_str().unwrap()));
        }
        for capability in context["capabilities"]["add"].as_array().into_iter().flatten() {
            command.arg(format!("--cap-add={}", capability.as_str().unwrap()));
        }
        assert_eq!((&context["privileged"], &context["allowPrivilegeEscalation"]), (&false.into(), &false.into()));
        command.arg("--security-opt=no-new-privileges");
        assert_eq!(context["readOnlyRootFilesystem"], true);
        command.args(["--read-only", "--read-only-tmpfs=false", &format!("--user={}", context["runAsUser"])]);
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volume = spec["volumes"].as_array().unwrap().iter().find(|v| v["name"] == mount["name"]).unwrap();
            let Some(path) = volume["hostPath"]["path"].as_str() else { continue };
            let path = self.host_path(path);
            fs::create_dir_all(&path).unwrap();
            command.arg(format!("--volume={}:{}", path.display(), mount["mountPath"].as_str().unwrap()));
        }
        // The lab's etcd speaks no TLS, and there are no Secrets.
        let words = |list: &Value| list.as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect();
        let mut args: Vec<String> = words(&container["args"]);
        args.retain(|arg| !arg.contains("file=/etc/twill/etcd"));
        let name = format!("node{}", self.node.index());
        args.iter_mut().for_each(|arg| *arg = arg.replace("$(NODE_NAME)", &name));
        if !container["envFrom"].is_null() {
            command.arg(format!("--env=FLANNELD_ETCD_ENDPOINTS={}", self.etcd));
        }
        command.arg(image).args(words(&container["command"])).args(args);
        command
    }

    /// The node's own folder in place of a folder of the machine's.
    fn host_path(&self, path: &str) -> PathBuf {
        match path {
            "/run/flannel" => self.node.run_dir().to_path_buf(),
            path => self.node.run_dir().join("host").join(path.trim_start_matches('/')),
        }
    }

    /// Runs the init container to its end, and starts twilld.
    fn start(&self, image: &str) {
        run(&mut self.container("install-cni", image, &["--rm"]));
        run(&mut self.container("twilld", image, &["--detach", "--name", &self.name()]));
    }

    fn name(&self) -> String {
        format!("twilld{}", self.node.index())
    }

    /// Stops twilld as a kubelet does, and removes it.
    fn stop(&self) {
        let grace = &self.pod["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
        self.storage.here(&["stop", "--time", &grace.to_string(), &self.name()]);
        let code = self.storage.here(&["inspect", "--format", "{{.State.ExitCode}}", &self.name()]);
        assert_eq!(code.trim(), "0", "{}", self.storage.here(&["logs", &self.name()]));
        self.storage.here(&["rm", &self.name()]);
    }

    /// Asks as a kubelet does; the first line of the answer.
    fn probe(&self, probe: &str) -> std::io::Result<String> {
        let twilld = containers(self.pod).find(|container| container["name"] == "twilld").unwrap();
        let get = &twilld[probe]["httpGet"];
        let (host, port, path) = (get["host"].as_str().unwrap(), get["port"].as_u64().unwrap(), &get["path"]);
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((host, u16::try_from(port).unwrap()))?;
            write!(stream, "GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path.as_str().unwrap())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.lines().next().unwrap_or_default().to_owned())
        };
        self.node.netns().enter(ask).unwrap()
    }

    fn wait_ready(&self) {
        wait_until("the readiness probe", PATIENCE, || match self.probe("readinessProbe") {
            Ok(line) if line.contains(" 200 ") => Ok(()),
            other => Err(format!("{other:?}\n{}", self.storage.here(&["logs", "--tail=5", &self.name()]))),
        });
        assert!(self.probe("livenessProbe").unwrap().contains(" 200 "));
    }
}

#[test]
fn three_nodes_from_the_image_reach_each_other_also_while_one_is_updated_and_rolled_back() {
    let storage = Storage::new();
    let [old, new] = ["localhost/twill:old", "localhost/twill:new"];
    assert_ne!(storage.build(old, "old"), storage.build(new, "new"));
    let all = documents(&kustomize("on-demand"));
    let pod = of_kind(&all, "DaemonSet");
    let lab = Lab::with_nodes(3);
    lab.put_config(NODE_CONFIG);
    let nodes: Vec<PodmanNode> = lab
        .nodes()
        .iter()
        .map(|node| PodmanNode { storage: &storage, node: node.clone(), pod, etcd: lab.etcd().url() })
        .collect();
    for node in &nodes {
        node.start(old);
        node.wait_ready();
    }
    let pods: Vec<_> = lab.nodes().iter().map(|node| node.pod(1)).collect();
    for from in &pods {
        for to in &pods {
            wait_until("a pod reaches the others", PATIENCE, || from.ping(to.addr()));
        }
    }
    the_plugin_is_installed(&nodes[0]);
    nodes.iter().for_each(has_what_the_manifest_says_and_no_more);

    let (there, back) = (pods[0].ping_running(pods[1].addr(), 10), pods[2].ping_running(pods[0].addr(), 10));
    for image in [new, old] {
        there.wait_received(20);
        nodes[0].stop();
        // Packets go on with no daemon.
        there.wait_received(20);
        nodes[0].start(image);
        nodes[0].wait_ready();
        let running = storage.here(&["inspect", "--format", "{{.ImageName}}", &nodes[0].name()]);
        assert_eq!(running.trim(), image);
    }
    there.wait_received(20);
    for report in [there.stop(), back.stop()] {
        println!("{report:?}");
        assert_eq!(report.lost, 0, "{report:?}");
        assert!(report.received > 60, "{report:?}");
    }
    nodes.iter().for_each(PodmanNode::stop);
}

/// By the kernel's own account of the process.
#[track_caller]
fn has_what_the_manifest_says_and_no_more(node: &PodmanNode) {
    let pid = node.storage.here(&["inspect", "--format", "{{.State.Pid}}", &node.name()]);
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // CAP_NET_ADMIN is number 12; a filter is seccomp's mode 2.
    for (name, expected) in [("CapEff:", "0000000000001000"), ("CapBnd:", "0000000000001000"), ("NoNewPrivs:", "1")] {
        assert_eq!(field(name), expected, "{name}");
    }
    assert_eq!(field("Seccomp:"), "2");
    let root = fs::read_to_string(format!("/proc/{}/mountinfo", pid.trim())).unwrap();
    let root = root.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
}

/// The init container left a plugin that runs, and its configuration.
fn the_plugin_is_installed(node: &PodmanNode) {
    let (bin, conf) = (node.host_path("/opt/cni/bin"), node.host_path("/etc/cni/net.d"));
    let version = run(Command::new(bin.join("flannel")).env("CNI_COMMAND", "VERSION"));
    assert!(version.contains("1.1.0"), "{version}");
    let list = fs::read(conf.join("10-flannel.conflist")).unwrap();
    assert_eq!(list, fs::read(root().join("deploy/cni/10-flannel.conflist")).unwrap());
}
