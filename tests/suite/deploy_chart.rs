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
    let jobs = [&ours, &theirs].map(|documents| &of_kind(documents, "Job")["spec"]);
    for part in ["backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        assert!(jobs[0][part].is_u64() && jobs[0][part] == jobs[1][part], "{part}");
    }
    for part in ["tolerations", "securityContext", "restartPolicy", "volumes"] {
        let [ours, theirs] = jobs.map(|job| &job["template"]["spec"][part]);
        assert_eq!(ours, theirs, "{part}");
    }
    assert_eq!(of_kind(&ours, "DaemonSet")["spec"]["minReadySeconds"], 10);
    assert_eq!(of_kind(&theirs, "DaemonSet")["spec"]["minReadySeconds"], 10);
    let spec = |documents: &[Value]| of_kind(documents, "DaemonSet")["spec"]["template"]["spec"].clone();
    let (ours, theirs) = (spec(&ours), spec(&theirs));
    let parts = ["volumes", "tolerations", "nodeSelector", "priorityClassName", "terminationGracePeriodSeconds"];
    for part in [&parts[..], &["hostNetwork", "dnsPolicy", "automountServiceAccountToken"]].concat() {
        assert_eq!(ours[part], theirs[part], "{part}");
    }
}

/// The nodes' own may only read the config.
#[test]
fn the_job_has_secrets_of_its_own_unless_it_is_told_otherwise() {
    let (tls, plain) = (values("tls"), values("plain"));
    let no_certificate = "--set=etcd.tls.clientCertificate=false";
    for (args, certificate, password) in [
        (&[&*tls][..], Some("twill-etcd-setup"), None),
        (&[&tls, "--set=etcd.tls.secretName=nodes"], Some("nodes-setup"), None),
        (&[&tls, "--set=network.tlsSecretName=twill-etcd"], Some("twill-etcd"), None),
        (&[&tls, no_certificate, "--set=etcd.passwordSecretName=p"], Some("twill-etcd"), Some("p-setup")),
        (&[&tls, no_certificate, "--set=network.passwordSecretName=other"], Some("twill-etcd"), Some("other")),
        (&[&plain, "--set=network.create=true", "--set=network.config.Network=10.5.0.0/16"], None, None),
    ] {
        let rendered = documents(&run(helm("template").arg("twill").arg(deploy("helm/twill")).args(args)));
        let spec = &of_kind(&rendered, "Job")["spec"]["template"]["spec"];
        let volume = spec["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "etcd");
        assert_eq!(volume.map(|volume| volume["secret"]["secretName"].as_str().unwrap()), certificate, "{args:?}");
        let variable = &spec["containers"][0]["env"][1]["valueFrom"]["secretKeyRef"]["name"];
        assert_eq!(variable.as_str(), password, "{args:?}");
    }
}

#[test]
fn the_operator_s_cni_configuration_is_what_the_init_container_is_given() {
    let name = |rendered: &str| documents(rendered).iter().any(|d| d["metadata"]["name"] == "twill-cni");
    assert!(!name(&render("tls")) && !name(&render_with("everything", &["--set=cni.install=false"])));
    let rendered = documents(&render("everything"));
    let map = rendered.iter().find(|document| document["metadata"]["name"] == "twill-cni").unwrap();
    let list: Value = serde_json::from_str(map["data"]["10-flannel.conflist"].as_str().unwrap()).unwrap();
    let plugins = serde_json::json!([{"type": "flannel", "delegate": {"mtu": 1400}}]);
    assert_eq!(list, serde_json::json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": plugins}));
    let agents = of_kind(&rendered, "DaemonSet");
    let init = containers(agents).next().unwrap();
    let mount = init["volumeMounts"].as_array().unwrap().iter().find(|mount| mount["name"] == "conflist").unwrap();
    let flag = format!("--conflist={}/10-flannel.conflist", mount["mountPath"].as_str().unwrap());
    assert!(init["args"].as_array().unwrap().contains(&flag.into()), "{init}");
    // A change updates the nodes.
    let sum = |args: &[&str]| {
        let rendered = documents(&render_with("everything", args));
        of_kind(&rendered, "DaemonSet")["spec"]["template"]["metadata"]["annotations"]["checksum/cni"].clone()
    };
    assert!(sum(&[]).is_string());
    assert_ne!(sum(&[]), sum(&["--set=cni.conflist.name=other"]));
}

/// YAML takes some names for numbers or truth values.
#[test]
fn names_that_look_like_numbers_stay_names() {
    let odd = ["etcd.tls.secretName=0123", "etcd.passwordSecretName=true", "image.pullSecrets={1e3}"];
    let odd = odd.map(|value| format!("--set-string={value}"));
    let rendered = documents(&render_with("tls", &odd.each_ref().map(String::as_str)));
    let spec = &of_kind(&rendered, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(spec["imagePullSecrets"][0]["name"], "1e3");
    let volume = spec["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "etcd").unwrap();
    assert_eq!(volume["secret"]["secretName"], "0123");
    let twilld = containers(of_kind(&rendered, "DaemonSet")).find(|container| container["name"] == "twilld").unwrap();
    assert_eq!(twilld["env"][1]["valueFrom"]["secretKeyRef"]["name"], "true");
    let chart = ["7", "--namespace=0123", &values("everything")];
    for document in documents(&run(helm("template").args(chart).arg(deploy("helm/twill")))) {
        let metadata = &document["metadata"];
        let names = (&metadata["namespace"], &metadata["labels"]["app.kubernetes.io/instance"]);
        assert_eq!(names, (&"0123".into(), &"7".into()), "{}", document["kind"]);
    }
}

#[test]
fn values_that_make_no_sense_are_refused_with_their_name() {
    let tls = values("tls");
    for (args, words) in [
        (
            &["--set=image.repository=r/twill", "--set=network.create=false"][..],
            "etcd.endpoints: at least one is needed",
        ),
        (&[&tls, "--set=image.repository="], "image.repository: where the image is"),
        (&[&tls, "--set=network.config=null"], "network.config: the network config is needed"),
        (&[&tls, "--set=cni.conflist.name=cbr0"], "conflist"),
        (&[&tls, r"--set=podLabels.app\.kubernetes\.io/name=x"], "app.kubernetes.io/name"),
        (&[&tls, r"--set=nodeSelector.kubernetes\.io/os=linux"], "kubernetes.io/os"),
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
        (&[&tls, "--set=etcd.endpoints={http://x:1}"], "etcd.tls.enabled is true"),
    ] {
        let said = refused(args);
        assert!(said.contains(words), "{args:?}: no {words} in {said}");
    }
}

#[test]
fn the_readme_is_made_of_the_values() {
    run(Command::new("python3").arg(deploy("helm/readme.py")).arg("--check"));
}
