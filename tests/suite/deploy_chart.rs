//! The Helm chart: linted, rendered with several sets of values, and held to what the manifests are held to.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::manifests::{
    are_bounded, containers, documents, fit_every_release, kustomize, of_kind, programs_know_their_flags,
};
use crate::{deploy, output, run, tool};

/// The sets of values, in the chart's ci/.
const SETS: [&str; 4] = ["tls", "plain", "metrics", "everything"];

fn helm(command: &str) -> Command {
    let mut helm = Command::new(tool("helm"));
    let homes = ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"];
    helm.envs(homes.map(|home| (home, "/nonexistent"))).arg(command);
    helm
}

fn values(set: &str) -> String {
    format!("--values={}", deploy("helm/twill/ci").join(format!("{set}.yaml")).display())
}

fn render(set: &str) -> String {
    render_with(set, &[])
}

/// The chart with this set of values, and with helm's arguments for others.
pub(crate) fn render_with(set: &str, args: &[&str]) -> String {
    let chart = ["twill", "--namespace=twill-system", &values(set)];
    run(helm("template").args(chart).args(args).arg(deploy("helm/twill")))
}

/// What helm says to values that it refuses.
fn refused(args: &[&str]) -> String {
    let ended = output(helm("template").arg("twill").arg(deploy("helm/twill")).args(args));
    assert!(!ended.status.success(), "{args:?} is taken");
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[test]
fn it_is_linted_and_fits_every_release_of_kubernetes() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for set in SETS {
        run(helm("lint").args(["--strict", &values(set)]).arg(deploy("helm/twill")));
        let file = folder.path().join(format!("{set}.yaml"));
        fs::write(&file, render(set)).unwrap();
        files.push(file);
    }
    fit_every_release(&files.iter().map(|file| file.as_path()).collect::<Vec<&Path>>());
}

#[test]
fn every_flag_is_one_that_the_programs_know() {
    for set in SETS {
        let documents = documents(&render(set));
        programs_know_their_flags(&documents);
        if set != "everything" {
            are_bounded(&documents, &["NET_ADMIN"]);
        }
    }
}

#[test]
fn by_default_it_is_what_the_manifests_are() {
    let (ours, theirs) = (documents(&render("tls")), documents(&kustomize("on-demand")));
    let of = |documents: &[Value], kind: &str, name: &str| {
        containers(of_kind(documents, kind)).find(|container| container["name"] == name).unwrap().clone()
    };
    for (kind, name) in [("DaemonSet", "twilld"), ("DaemonSet", "install-cni"), ("Job", "config")] {
        let (ours, theirs) = (of(&ours, kind, name), of(&theirs, kind, name));
        for part in ["securityContext", "resources", "startupProbe", "livenessProbe", "readinessProbe", "command"] {
            assert_eq!(ours[part], theirs[part], "{name}: {part}");
        }
    }
    let spec = |documents: &[Value]| of_kind(documents, "DaemonSet")["spec"]["template"]["spec"].clone();
    let (ours, theirs) = (spec(&ours), spec(&theirs));
    let parts = ["volumes", "tolerations", "nodeSelector", "priorityClassName", "terminationGracePeriodSeconds"];
    for part in [&parts[..], &["hostNetwork", "dnsPolicy", "automountServiceAccountToken"]].concat() {
        assert_eq!(ours[part], theirs[part], "{part}");
    }
}

#[test]
fn values_that_make_no_sense_are_refused_with_their_name() {
    let tls = values("tls");
    for (args, words) in [
        (&[][..], "etcd.endpoints: at least one is needed"),
        (&[&tls, "--set=etcd.endpoint=https://x:1"], "endpoint"),
        (&[&tls, "--set=peerMode=some"], "peerMode"),
        (&[&tls, "--set=capabilities={NET_RAW}"], "capabilities"),
        (&[&tls, "--set=capabilities={NET_ADMIN,SYS_ADMIN}"], "capabilities"),
        (&[&tls, "--set=health.port=0"], "port"),
        (&[&tls, "--set=image.digest=latest"], "digest"),
        (&[&tls, "--set=podMonitor.enabled=true"], "podMonitor"),
        (&[&tls, "--set=metrics.podMonitor.enabled=true"], "needs metrics.enabled=true"),
        (&[&tls, "--set=metrics.podMonitor.interval=often"], "interval"),
        (&[&tls, "--set=metrics.ip=10.0.0.7"], "ip"),
        (&[&tls, "--set=etcd.tls.enabled=false"], "etcd.tls.enabled is false"),
        (&["--set=etcd.endpoints={http://x:1}"], "etcd.tls.enabled is true"),
    ] {
        let said = refused(args);
        assert!(said.contains(words), "{args:?}: no {words} in {said}");
    }
}

#[test]
fn the_readme_is_made_of_the_values() {
    run(Command::new("python3").arg(deploy("helm/readme.py")).arg("--check"));
}
