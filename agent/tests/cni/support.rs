//! A directory with all that the plugin reads and writes, delegates that are scripts, and calls as a runtime makes them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A lease of 10.5.52.0/24.
pub(crate) const ENV: &str =
    "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// What the scripted delegate prints for ADD, in a form that nobody would print anew.
pub(crate) const RESULT: &str = "{ \"ips\" :[ ],\"cniVersion\":\"1.0.0\",  \"x\":1e3}\n\n";

/// For what takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One node's files.
pub(crate) struct Node {
    dir: TempDir,
}

/// One call of the plugin.
pub(crate) struct Call {
    command: Command,
    conf: Vec<u8>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Node {
    /// A node with a lease and a `bridge` that does what it is told and writes down what that was.
    pub(crate) fn new() -> Node {
        let node = Node { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(node.path("bin")).unwrap();
        node.lease(ENV);
        node.delegate("bridge", &format!("case $CNI_COMMAND in ADD) printf '%s' '{RESULT}';; esac"));
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn lease(&self, text: &str) {
        fs::write(self.path("subnet.env"), text).unwrap();
    }

    /// Makes a delegate of a shell script. Before the script, it writes its configuration to `<verb>.json`, its
    /// environment to `<verb>.env` and its process id to `<verb>.pid`.
    pub(crate) fn delegate(&self, name: &str, script: &str) {
        let dir = self.dir.path().display();
        let text = format!(
            "#!/bin/sh\necho $$ > {dir}/$CNI_COMMAND.pid\nenv > {dir}/$CNI_COMMAND.env\n\
             cat > {dir}/$CNI_COMMAND.part && mv {dir}/$CNI_COMMAND.part {dir}/$CNI_COMMAND.json\n{script}\n"
        );
        self.program(name, &text);
    }

    /// Puts a program into `CNI_PATH`.
    pub(crate) fn program(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What the delegate was given for `verb`, if it was called; a second look sees only a second call.
    pub(crate) fn seen(&self, verb: &str) -> Option<Value> {
        let path = self.path(&format!("{verb}.json"));
        let text = fs::read(&path).ok()?;
        fs::remove_file(path).unwrap();
        Some(serde_json::from_slice(&text).unwrap())
    }

    /// The configuration of network `net`, with `more` on top.
    pub(crate) fn conf(&self, more: Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "flannel",
            "subnetFile": self.path("subnet.env"),
            "dataDir": self.path("data"),
        });
        merge(&mut conf, more);
        conf
    }

    /// A call for container `c1`, interface `eth0`, with [`Node::conf`].
    pub(crate) fn call(&self, verb: &str) -> Call {
        self.call_with(verb, json!({}))
    }

    pub(crate) fn call_with(&self, verb: &str, more: Value) -> Call {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CNI_")) {
            command.env_remove(name);
        }
        command.env("CNI_COMMAND", verb).env("CNI_PATH", self.path("bin"));
        command.env("CNI_CONTAINERID", "c1").env("CNI_IFNAME", "eth0").env("CNI_NETNS", "/run/netns/none");
        Call { command, conf: self.conf(more).to_string().into_bytes() }
    }

    /// The names in the data directory, sorted.
    pub(crate) fn stored(&self) -> Vec<String> {
        names(&self.path("data"))
    }
}

impl Call {
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Call {
        self.command.env(name, value);
        self
    }

    pub(crate) fn id(self, id: &str) -> Call {
        self.env("CNI_CONTAINERID", id)
    }

    pub(crate) fn ifname(self, name: &str) -> Call {
        self.env("CNI_IFNAME", name)
    }

    pub(crate) fn stdin(mut self, text: &str) -> Call {
        self.conf = text.as_bytes().to_vec();
        self
    }

    /// Runs another plugin with the same variables.
    pub(crate) fn program(mut self, path: &str) -> Call {
        let mut command = Command::new(path);
        hand_on(&self.command, &mut command);
        self.command = command;
        self
    }

    /// Runs the plugin by another program, as `["nsenter", "--net=..."]`.
    pub(crate) fn under(mut self, words: &[&str]) -> Call {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(self.command.get_program());
        hand_on(&self.command, &mut command);
        self.command = command;
        self
    }

    pub(crate) fn start(mut self) -> Child {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        // A plugin that doesn't read is none of our errors.
        let _ = child.stdin.take().unwrap().write_all(&self.conf);
        child
    }

    pub(crate) fn run(self) -> Outcome {
        let output = self.start().wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs it; it must succeed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        let outcome = self.run();
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        outcome.stdout
    }

    /// Runs it; it must fail with a proper error object. Its code, message and details.
    #[track_caller]
    pub(crate) fn fails(self) -> (u64, String, String) {
        let outcome = self.run();
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let object: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"));
        assert!(object["cniVersion"].is_string(), "{outcome:?}");
        let text = |key: &str| object[key].as_str().unwrap_or_else(|| panic!("no {key}: {outcome:?}")).to_string();
        (object["code"].as_u64().unwrap(), text("msg"), text("details"))
    }
}

/// The names in a directory, sorted; none if there is no such directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Polls until `there` gives a value.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut there: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = there() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until no process has this number, or one that has ended.
#[track_caller]
pub(crate) fn wait_dead(pid: &str) {
    wait_for(&format!("the end of process {pid}"), || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let ended = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
        ended.then_some(())
    });
}

fn hand_on(from: &Command, to: &mut Command) {
    for (name, value) in from.get_envs() {
        match value {
            Some(value) => to.env(name, value),
            None => to.env_remove(name),
        };
    }
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
