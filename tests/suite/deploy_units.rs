//! The systemd unit, its environment file and Docker's drop-in, by systemd's own programs.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::{deploy, output, run};

/// The highest exposure that `systemd-analyze security` may find, of 10, in tenths.
const EXPOSURE: u32 = 22;

/// A copy of a unit with this workspace's programs in place of the installed ones, which verify looks for.
fn unit(file: &str, folder: &std::path::Path) -> std::path::PathBuf {
    let text = fs::read_to_string(deploy("systemd").join(file)).unwrap();
    let programs = [("/usr/sbin/twilld", "twilld"), ("/usr/bin/twill ", "twill")];
    let text = programs.iter().fold(text, |text, (path, name)| {
        let space = if path.ends_with(' ') { " " } else { "" };
        text.replace(path, &format!("{}{space}", twill_lab::program(name).unwrap().display()))
    });
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

/// What systemd has to say against a unit; verify ends well even where it has something.
fn complaints(path: &std::path::Path) -> String {
    let output =
        output(Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(path));
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn systemd_has_nothing_against_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    let path = unit("twilld.service", folder.path());
    assert_eq!(complaints(&path), "");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("WatchdogSec=", "WatchdogSecs=")).unwrap();
    assert!(complaints(&path).contains("WatchdogSecs"), "verify sees no mistake");
}

#[test]
fn systemd_has_nothing_against_the_drop_in_of_docker() {
    let folder = tempfile::tempdir().unwrap();
    unit("docker.service.d/twill.conf", folder.path());
    unit("twilld.service", folder.path());
    let docker = folder.path().join("docker.service");
    fs::write(&docker, "[Service]\nType=notify\nExecStart=/bin/true\n").unwrap();
    assert_eq!(complaints(&docker), "");
}

#[test]
fn the_unit_is_protected() {
    let offline = ["security", "--offline=yes", "--no-pager"];
    let report = run(Command::new("systemd-analyze").args(offline).arg(deploy("systemd/twilld.service")));
    let line = report.lines().last().unwrap();
    let score = line.split(": ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    println!("{line}");
    let tenths: u32 = score.replace('.', "").parse().unwrap();
    assert!(tenths <= EXPOSURE, "{line}\n{report}");
}

/// The names of twilld's variables, from its help.
pub(crate) fn variables() -> BTreeSet<String> {
    let help = run(Command::new(twill_lab::program("twilld").unwrap()).arg("--help"));
    let flag = |line: &str| {
        let words = line.trim_start();
        let name = words.strip_prefix("--").or(words.strip_prefix("-v[").map(|_| "v"))?;
        name.split([' ', '[', ',']).next().map(str::to_owned)
    };
    let flags = help.lines().filter(|line| line.starts_with("  ")).filter_map(flag);
    flags.map(|name| format!("FLANNELD_{}", name.replace('-', "_").to_uppercase())).collect()
}

#[test]
fn the_environment_file_has_every_variable_and_each_is_explained() {
    let text = fs::read_to_string(deploy("systemd/twilld.env")).unwrap();
    let mut found = BTreeSet::new();
    let mut explained = false;
    for line in text.lines() {
        match line.strip_prefix("#FLANNELD_").and_then(|rest| rest.split_once('=')) {
            Some((name, _)) => {
                assert!(explained, "{line}: no comment above it");
                assert!(found.insert(format!("FLANNELD_{name}")), "{line}: twice");
            }
            None => explained = line.starts_with("# "),
        }
        assert!(line.is_empty() || line.starts_with('#'), "{line}: the file sets nothing");
    }
    let known = variables();
    assert!(known.contains("FLANNELD_ETCD_ENDPOINTS") && known.contains("FLANNELD_V"), "{known:?}");
    let missing: Vec<_> = known.difference(&found).collect();
    let unknown: Vec<_> = found.difference(&known).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "deploy/systemd/twilld.env lacks {missing:?} and has {unknown:?}"
    );
}

/// What the package makes /etc/default/twilld of.
#[test]
fn the_short_environment_file_sets_nothing_and_says_what_the_long_one_says() {
    let [short, long] =
        ["twilld.default", "twilld.env"].map(|file| fs::read_to_string(deploy("systemd").join(file)).unwrap());
    assert!(short.lines().all(|line| line.is_empty() || line.starts_with('#')), "it sets something");
    let variables: Vec<&str> = short.lines().filter(|line| line.starts_with("#FLANNELD_")).collect();
    assert!(variables.len() > 1, "{variables:?}");
    for line in variables {
        assert!(long.lines().any(|other| other == line), "twilld.env has no {line}");
    }
}

#[test]
fn the_defaults_in_the_environment_file_are_the_daemon_s() {
    let help = run(Command::new(twill_lab::program("twilld").unwrap()).arg("--help"));
    let text = fs::read_to_string(deploy("systemd/twilld.env")).unwrap();
    for line in text.lines() {
        let Some((name, value)) = line.strip_prefix("#FLANNELD_").and_then(|rest| rest.split_once('=')) else {
            continue;
        };
        let flag = name.to_lowercase().replace('_', "-");
        let starts = [format!("\n      --{flag} "), format!("\n      --{flag}["), format!("\n  -{flag}[")];
        let start = starts.iter().find_map(|start| help.find(start)).unwrap_or_else(|| panic!("no {flag} in the help"));
        let entry = help[start + 1..].split("\n      --").next().unwrap();
        let default = entry.split_once("[default: ").map(|(_, rest)| rest.split(']').next().unwrap());
        match default {
            Some(default) => assert_eq!(value, default, "{name}"),
            // No default: an example of a file, or nothing.
            None => assert!(value.is_empty() || value.starts_with("/etc/twill/"), "{line}"),
        }
    }
}
