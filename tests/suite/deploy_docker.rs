//! `twill docker-opts` beside flannel's mk-docker-opts.sh. The expected texts were written by that script (v0.28.9) from the
//! same `subnet.env`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const MASQUERADES: &str =
    "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\n\
                    FLANNEL_IPV6_SUBNET=fc00:0:0:22::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";

/// A folder with a `subnet.env`.
fn node(env: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("subnet.env"), env).unwrap();
    folder
}

fn docker_opts(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(twill_lab::program("twill").unwrap());
    command.current_dir(folder).args(["docker-opts", "-f", "subnet.env"]).args(args);
    command
}

#[track_caller]
fn ends_well(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What it writes with these arguments.
#[track_caller]
fn written(env: &str, args: &[&str]) -> String {
    let folder = node(env);
    ends_well(docker_opts(folder.path(), &["-d", "out.env"]).args(args));
    fs::read_to_string(folder.path().join("out.env")).unwrap()
}

#[test]
fn the_output_is_that_of_flannel_s_script() {
    let single = "DOCKER_OPT_BIP=\"--bip=10.5.52.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
                  DOCKER_OPT_MTU=\"--mtu=1450\"\n";
    let all = |key: &str| format!("{key}=\" --bip=10.5.52.1/24 --ip-masq=false --mtu=1450 \"\n");
    let both = format!("{single}{}", all("DOCKER_OPTS"));
    for (args, expected) in [
        (&[][..], both.clone()),
        (&["-i"], single.to_owned()),
        (&["-c"], all("DOCKER_OPTS")),
        (&["-i", "-c"], both.clone()),
        (&["-ic"], both),
        (&["-c", "-k", "DOCKER_NETWORK_OPTIONS"], all("DOCKER_NETWORK_OPTIONS")),
        (&["-kX_OPTS"], format!("{single}{}", all("X_OPTS"))),
    ] {
        assert_eq!(written(MASQUERADES, args), expected, "{args:?}");
    }
    let no_masquerade = "DOCKER_OPT_BIP=\"--bip=10.5.52.1/24\"\nDOCKER_OPT_MTU=\"--mtu=1430\"\n\
                         DOCKER_OPTS=\" --bip=10.5.52.1/24 --mtu=1430 \"\n";
    assert_eq!(written(DUAL, &[]), no_masquerade, "Docker masquerades where the daemon does not");
}

/// The script's help has -m; its getopts has not. Here it is what the help says.
#[test]
fn the_masquerade_can_be_left_out() {
    assert_eq!(written(MASQUERADES, &["-mc"]), "DOCKER_OPTS=\" --bip=10.5.52.1/24 --mtu=1450 \"\n");
}

#[test]
fn the_environment_s_own_options_are_handed_on() {
    let folder = node(MASQUERADES);
    let environment = [("DOCKER_OPT_FOO", "--foo"), ("DOCKER_OPTS", "--bar --baz=1"), ("DOCKER_OPT_MTU", "--mtu=9000")];
    ends_well(docker_opts(folder.path(), &["-d", "out.env"]).envs(environment));
    let expected = "DOCKER_OPT_BIP=\"--bip=10.5.52.1/24\"\nDOCKER_OPT_FOO=\"--foo\"\n\
                    DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n\
                    DOCKER_OPTS=\"--bar --baz=1 --bip=10.5.52.1/24 --foo --ip-masq=false --mtu=1450 \"\n";
    assert_eq!(fs::read_to_string(folder.path().join("out.env")).unwrap(), expected);
}

#[test]
fn standard_output_serves_too() {
    let folder = node(MASQUERADES);
    let output = docker_opts(folder.path(), &["-c", "-d", "/dev/stdout"]).output().unwrap();
    let expected = "DOCKER_OPTS=\" --bip=10.5.52.1/24 --ip-masq=false --mtu=1450 \"\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn ipv6_is_added_where_it_is_asked_for() {
    let expected = "DOCKER_OPTS=\" --bip=10.5.52.1/24 --ipv6 --fixed-cidr-v6=fc00:0:0:22::/64 --mtu=1430 \"\n";
    assert_eq!(written(DUAL, &["-c", "--ipv6"]), expected);
    let folder = node(MASQUERADES);
    let Output { status, stderr, .. } = docker_opts(folder.path(), &["--ipv6", "-d", "out.env"]).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(!status.success() && said.contains("subnet.env has no FLANNEL_IPV6_SUBNET"), "{said}");
}

/// The script writes empty options then, and Docker starts with a network of its own.
#[test]
fn without_a_subnet_nothing_is_written() {
    for env in [None, Some("FLANNEL_NETWORK=10.5.0.0/16\n")] {
        let folder = node(env.unwrap_or_default());
        if env.is_none() {
            fs::remove_file(folder.path().join("subnet.env")).unwrap();
        }
        let Output { status, stderr, .. } = docker_opts(folder.path(), &["-d", "out.env"]).output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.code() == Some(1) && said.contains("subnet.env"), "{said}");
        assert!(!folder.path().join("out.env").exists());
    }
}

#[test]
fn it_waits_for_the_subnet_if_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut waiting = docker_opts(folder.path(), &["--wait", "-d", "out.env"]).spawn().unwrap();
    let file = folder.path().join("subnet.env");
    let written = folder.path().join("new");
    fs::write(&written, MASQUERADES).unwrap();
    assert!(waiting.try_wait().unwrap().is_none(), "it does not wait");
    fs::rename(&written, &file).unwrap();
    assert!(waiting.wait().unwrap().success());
    assert!(folder.path().join("out.env").exists());
}

/// A wait without an end would keep Docker from starting, and the operator from its reason.
#[test]
fn the_wait_ends_and_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let waits = ["--wait=50ms", "-d", "out.env"];
    let Output { status, stderr, .. } = docker_opts(folder.path(), &waits).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("no subnet after 50ms: ") && said.contains("subnet.env"), "{said}");
    assert!(!folder.path().join("out.env").exists());
    // A time needs the equals sign: the word behind a bare --wait is none.
    let Output { status, stderr, .. } = docker_opts(folder.path(), &["--wait", "5s"]).output().unwrap();
    assert_eq!(status.code(), Some(2), "{}", String::from_utf8_lossy(&stderr));
}

#[test]
fn docker_s_own_configuration_gets_the_settings_and_keeps_its_others() {
    let folder = node(DUAL);
    let file = folder.path().join("docker/daemon.json");
    let merge = |more: &[&str]| {
        ends_well(docker_opts(folder.path(), &["--daemon-json", "docker/daemon.json"]).args(more));
        let text = fs::read_to_string(&file).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let expected = serde_json::json!({"bip": "10.5.52.1/24", "mtu": 1430, "ip-masq": true});
    assert_eq!(merge(&[]), expected);
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    assert_eq!(merge(&[]), expected);
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), before, "nothing is new, so nothing is written");
    fs::write(&file, r#"{"log-driver": "journald", "mtu": 1500}"#).unwrap();
    let expected = serde_json::json!({
        "log-driver": "journald", "bip": "10.5.52.1/24", "mtu": 1430, "ip-masq": true,
        "ipv6": true, "fixed-cidr-v6": "fc00:0:0:22::/64"
    });
    assert_eq!(merge(&["--ipv6"]), expected);
    fs::write(&file, "no json").unwrap();
    let Output { status, stderr, .. } =
        docker_opts(folder.path(), &["--daemon-json", "docker/daemon.json"]).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(!status.success() && said.contains("--daemon-json docker/daemon.json: expected a JSON object"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "no json");
}
