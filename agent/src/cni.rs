//! The CNI plugin `flannel`: reads its network configuration and `subnet.env`, renders a configuration for a delegate
//! (`bridge` unless told otherwise) and calls that one.
//!
//! Runs once per pod, in milliseconds: no tokio, no netlink, no etcd in here. [`call`], [`conf`], [`render`] and
//! [`result`] are pure; [`subnet`] reads the lease, [`stored`] owns the data directory, [`delegate`] the other program,
//! [`verbs`] the order of things. Facts: the CNI specification 0.1.0 to 1.1.0 and flannel's plugin 1.7
//! (<https://github.com/flannel-io/cni-plugin/blob/v1.7.1-flannel1/flannel.go>).
//!
//! Twill's own decisions:
//! - A delegate that hangs is killed, with its process group, after `delegateTimeoutSeconds` (110: below kubelet's two
//!   minutes for a request, so that our message arrives and not "context deadline exceeded"). It also dies with us: a
//!   runtime that kills us calls DEL next, and nothing may go on adding after that.
//! - A failed ADD keeps its stored configuration, with the delegate's error: the runtime calls DEL next, and that needs
//!   both. Only when the delegate could not even be started there is nothing to undo, and the file goes.
//! - DEL never makes up a configuration when nothing is stored; it does when the stored one is unreadable. It succeeds for
//!   an ADD that the delegate has refused and refuses again: `verbs/undo` has when.
//! - CHECK compares the pod's subnet with the node's: a pod of an earlier subnet is one that no other node reaches.
//! - GC drops nothing unless the runtime says which attachments are valid, and unless the delegate's GC succeeded.

pub mod call;
pub mod conf;
pub mod delegate;
pub mod error;
pub mod render;
pub mod result;
pub mod stored;
pub mod subnet;
pub mod verbs;

use std::ffi::OsString;
use std::io::Read;

use call::{Call, Verb};
use conf::{NetConf, SUPPORTED};
use error::{Error, code};

/// The longest network configuration, in bytes.
const LONGEST_CONF: u64 = 4 << 20;

/// What the plugin has to say, and whether it succeeded.
#[derive(Debug)]
pub struct Reply {
    /// For standard output: a result or an error object.
    pub stdout: Vec<u8>,
    /// For standard error, where a person reads it.
    pub stderr: String,
    /// Whether the exit status is 0.
    pub success: bool,
}

/// One run of the plugin: the environment and standard input in, what to print out.
pub fn run(env: impl Fn(&str) -> Option<OsString>, stdin: impl Read) -> Reply {
    let call = match Call::from_env(env) {
        Ok(Some(call)) => call,
        // Somebody looks what this is; flannel's plugin also says so on standard error and succeeds.
        Ok(None) => return Reply { stdout: Vec::new(), stderr: about(), success: true },
        Err(error) => return failed(&error, b""),
    };
    if call.verb == Verb::Version {
        return succeeded(versions());
    }
    let mut input = Vec::new();
    if let Err(e) = stdin.take(LONGEST_CONF + 1).read_to_end(&mut input) {
        return failed(&Error::new(code::IO, format!("error reading from stdin: {e}")), b"");
    }
    if input.len() as u64 > LONGEST_CONF {
        let msg = format!("the network configuration is longer than {} MiB", LONGEST_CONF >> 20);
        return failed(&Error::new(code::DECODE, msg), b"");
    }
    match NetConf::parse(&input, call.verb).and_then(|conf| verbs::run(&call, &conf)) {
        Ok(stdout) => succeeded(stdout),
        Err(error) => failed(&error, &input),
    }
}

/// The error object for something that is a bug of this program.
pub fn internal_error(text: &str) -> Reply {
    failed(&Error::new(code::INTERNAL, format!("internal error: {text}")), b"")
}

/// The answer to VERSION. The configuration on standard input is not read, as the reference plugins don't: a runtime
/// that keeps its end open would hang us.
fn versions() -> Vec<u8> {
    let newest = SUPPORTED[SUPPORTED.len() - 1];
    serde_json::json!({ "cniVersion": newest, "supportedVersions": SUPPORTED }).to_string().into_bytes()
}

fn about() -> String {
    let versions = SUPPORTED.join(", ");
    format!("CNI plugin flannel of Twill {}\nCNI protocol versions supported: {versions}\n", env!("CARGO_PKG_VERSION"))
}

fn succeeded(stdout: Vec<u8>) -> Reply {
    Reply { stdout, stderr: String::new(), success: true }
}

fn failed(error: &Error, input: &[u8]) -> Reply {
    Reply { stdout: error.to_json(conf::spoken_version(input)), stderr: String::new(), success: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(env: &[(&str, &str)], stdin: &str) -> Reply {
        run(|name| env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()), stdin.as_bytes())
    }

    #[test]
    fn version_answers_whatever_the_other_variables_hold() {
        let dummies = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"].map(|n| (n, "dummy"));
        let mut env = vec![("CNI_COMMAND", "VERSION")];
        for with in [false, true] {
            if with {
                env.extend(dummies);
            }
            let reply = reply(&env, "not JSON");
            let said: serde_json::Value = serde_json::from_slice(&reply.stdout).unwrap();
            assert!(reply.success);
            assert_eq!(said["cniVersion"], "1.1.0");
            assert_eq!(said["supportedVersions"], serde_json::json!(SUPPORTED));
        }
    }

    #[test]
    fn a_configuration_without_end_is_refused() {
        let env = |name: &str| (name == "CNI_COMMAND").then(|| "STATUS".into()).or(Some("/nowhere".into()));
        let said = run(env, std::io::repeat(b' ')).stdout;
        let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(said["msg"], "the network configuration is longer than 4 MiB");
    }

    #[test]
    fn without_a_command_it_introduces_itself() {
        let reply = reply(&[], "");
        assert!(reply.success && reply.stdout.is_empty());
        assert!(reply.stderr.contains("flannel") && reply.stderr.contains("1.1.0"), "{}", reply.stderr);
    }

    #[test]
    fn an_error_speaks_the_version_of_the_configuration() {
        let env = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "/nowhere")];
        let version = |stdin: &str| {
            let said: serde_json::Value = serde_json::from_slice(&reply(&env, stdin).stdout).unwrap();
            (said["cniVersion"].clone(), said["code"].clone())
        };
        assert_eq!(version(r#"{"cniVersion":"0.3.1","name":"n"}"#), ("0.3.1".into(), 1.into()));
        assert_eq!(version(r#"{"cniVersion":"9.9.9","name":"n"}"#), ("1.1.0".into(), 1.into()));
        assert_eq!(version("rubbish"), ("1.1.0".into(), 6.into()));
    }
}
