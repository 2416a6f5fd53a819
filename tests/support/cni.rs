//! A call of the CNI plugin on a node, as a runtime makes it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::node::Node;
use crate::process::program;

impl Node {
    /// What the plugin `flannel` says to a call on this node, with a delegate that only succeeds: its answer, or its error.
    #[track_caller]
    pub fn cni(&self, verb: &str) -> Result<String, String> {
        match self.call_plugin(verb) {
            Ok(said) => said,
            Err(e) => panic!("call the CNI plugin on node {}: {e:#}", self.index()),
        }
    }

    fn call_plugin(&self, verb: &str) -> Result<Result<String, String>> {
        let bin = self.run_dir().join("bin");
        fs::create_dir_all(&bin)?;
        let delegate = bin.join("bridge");
        fs::write(&delegate, "#!/bin/sh\ncat > /dev/null\nprintf '{}'\n")?;
        fs::set_permissions(&delegate, fs::Permissions::from_mode(0o755))?;
        let conf = serde_json::json!({"cniVersion": "1.1.0", "name": "net", "type": "flannel",
            "subnetFile": self.subnet_file(), "dataDir": self.run_dir().join("data")});
        let mut child = Command::new(program("flannel")?)
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/none"), ("CNI_IFNAME", "eth0")])
            .env("CNI_PATH", bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("its standard input")?.write_all(conf.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(if output.status.success() { Ok(text) } else { Err(text) })
    }
}
