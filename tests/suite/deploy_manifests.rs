//! The manifests for Kubernetes: what kustomize makes of them, by Kubernetes' own schemas and by the programs that they
//! start. The chart's are held to the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{deploy, output, python, root, run, tool, units};

/// The releases whose schemas the manifests have to fit.
const KUBERNETES: std::ops::RangeInclusive<u32> = 29..=37;

/// The overlays.
const OVERLAYS: [&str; 2] = ["on-demand", "all"];

/// What `kubectl apply -k` sends.
pub(crate) fn kustomize(overlay: &str) -> String {
    run(Command::new(tool("kubectl")).arg("kustomize").arg(deploy("kubernetes/overlays").join(overlay)))
}

/// The documents of a YAML text.
pub(crate) fn documents(yaml: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.yaml");
    std::fs::write(&file, yaml).unwrap();
    let script = "import json,sys,yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let json = run(python().args(["-c", script]).arg(&file));
    serde_json::from_str(&json).unwrap()
}

/// The document of this kind.
#[track_caller]
pub(crate) fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// Holds files against the schemas of every supported release, unknown members refused. A PodMonitor is not Kubernetes' own
/// and has no schema there; its members are checked in `deploy_metrics.rs`.
#[track_caller]
pub(crate) fn fit_every_release(files: &[&Path]) {
    for minor in KUBERNETES {
        let validate = ["-m", "kubernetes_validate", "--strict", "--quiet", "-k", &format!("1.{minor}")];
        let ended = output(python().args(validate).args(files));
        let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
        let is_expected =
            |line: &str| line.contains("find schema for kind PodMonitor with api version monitoring.coreos.com/v1 ");
        assert!(ended.status.success() && said.lines().all(is_expected), "1.{minor}: {said}");
    }
}

/// Every container of a document, init containers first.
pub(crate) fn containers(document: &Value) -> impl Iterator<Item = &Value> {
    let spec = &document["spec"]["template"]["spec"];
    let list = |name: &str| spec[name].as_array().into_iter().flatten();
    list("initContainers").chain(list("containers"))
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// A container's arguments on this node, in a pod with this address.
pub(crate) fn arguments(container: &Value, node: &str, address: &str) -> Vec<String> {
    let field = |variable: &Value| match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()? {
        "spec.nodeName" => Some(node.to_owned()),
        "status.podIP" => Some(address.to_owned()),
        other => panic!("{other}: no field that a test knows"),
    };
    let variables = container["env"].as_array().into_iter().flatten();
    let known: Vec<_> = variables
        .filter_map(|variable| Some((format!("$({})", variable["name"].as_str()?), field(variable)?)))
        .collect();
    let expanded = |arg: &String| known.iter().fold(arg.clone(), |arg, (name, value)| arg.replace(name, value));
    texts(&container["args"]).iter().map(expanded).collect()
}

/// Starts each container's program with its arguments and variables, and --help behind them: it reads all of them, and ends.
#[track_caller]
pub(crate) fn programs_know_their_flags(documents: &[Value]) {
    let mut known = units::variables();
    // For the arguments.
    known.extend(["NODE_NAME", "POD_IP"].map(str::to_owned));
    let mut started = BTreeSet::new();
    for container in documents.iter().flat_map(containers) {
        let name = texts(&container["command"]).remove(0);
        let mut variables: Vec<(String, String)> = Vec::new();
        for from in container["envFrom"].as_array().into_iter().flatten() {
            let map = &from["configMapRef"]["name"];
            let map = documents.iter().find(|d| d["kind"] == "ConfigMap" && d["metadata"]["name"] == *map).unwrap();
            let data = map["data"].as_object().unwrap();
            variables.extend(data.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())));
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            variables.push((variable["name"].as_str().unwrap().to_owned(), "node-1".to_owned()));
        }
        for (name, _) in &variables {
            assert!(known.contains(name), "{name}: no variable of twilld's");
        }
        let args = arguments(container, "node-1", "fd00::7");
        let mut command = Command::new(twill_lab::program(&name).unwrap());
        let ended = output(command.args(&args).arg("--help").envs(variables));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{name} {args:?}: {said}");
        started.insert(name);
    }
    assert!(started.contains("twilld"), "{started:?}");
}

#[test]
fn the_overlays_fit_every_release_of_kubernetes() {
    let folder = tempfile::tempdir().unwrap();
    let files = OVERLAYS.map(|overlay| {
        let file = folder.path().join(format!("{overlay}.yaml"));
        std::fs::write(&file, kustomize(overlay)).unwrap();
        file
    });
    fit_every_release(&files.each_ref().map(|file| file.as_path()));
    // The check can fail.
    let wrong = folder.path().join("wrong.yaml");
    std::fs::write(&wrong, kustomize("all").replace("hostNetwork:", "hostNetworks:")).unwrap();
    let validate = ["-m", "kubernetes_validate", "--strict", "--quiet"];
    assert!(!output(python().args(validate).arg(&wrong)).status.success());
}

/// As in the image, where one file is both.
#[test]
fn the_daemon_is_the_operator_s_command_by_that_name() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("twill");
    std::os::unix::fs::symlink(twill_lab::program("twilld").unwrap(), &link).unwrap();
    let [by_link, own] =
        [link.clone(), twill_lab::program("twill").unwrap()].map(|program| run(Command::new(program).arg("--help")));
    assert_eq!(by_link, own);
    assert!(run(Command::new(&link).arg("--version")).starts_with("twill 0."));
}

#[test]
fn every_flag_in_the_overlays_is_one_that_the_programs_know() {
    for overlay in OVERLAYS {
        let documents = documents(&kustomize(overlay));
        programs_know_their_flags(&documents);
        let settings = documents.iter().find(|d| d["data"]["FLANNELD_PEER_MODE"] != Value::Null).unwrap();
        assert_eq!(settings["data"]["FLANNELD_PEER_MODE"], overlay);
    }
    let wrong = output(Command::new(twill_lab::program("twilld").unwrap()).args(["--no-such-flag", "--help"]));
    assert_eq!(wrong.status.code(), Some(2), "a wrong flag before --help is refused");
}

/// What a security review asks of each container.
#[track_caller]
pub(crate) fn are_bounded(documents: &[Value], capabilities: &[&str]) {
    let agents = of_kind(documents, "DaemonSet");
    for container in documents.iter().flat_map(containers) {
        let context = &container["securityContext"];
        let name = &container["name"];
        assert_eq!(context["privileged"], false, "{name}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{name}");
        let expected = if name == "twilld" { capabilities } else { &[] };
        assert_eq!(texts(&context["capabilities"]["add"]), expected, "{name}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
    }
    let spec = &agents["spec"]["template"]["spec"];
    assert_eq!(
        (&spec["hostNetwork"], &spec["automountServiceAccountToken"]),
        (&Value::Bool(true), &Value::Bool(false))
    );
    assert_eq!(of_kind(documents, "ServiceAccount")["automountServiceAccountToken"], false);
    let twilld = containers(agents).find(|container| container["name"] == "twilld").unwrap();
    let args = texts(&twilld["args"]);
    let flag = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name)).unwrap();
    for (probe, path) in [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &twilld[probe]["httpGet"];
        assert_eq!(get["path"], path, "{probe}");
        assert_eq!(flag("--healthz-port="), get["port"].to_string(), "{probe}");
        // Without a host the kubelet asks the pod's address.
        let host = get["host"].as_str().unwrap_or("$(POD_IP)");
        assert_eq!(flag("--healthz-ip="), host, "{probe}");
    }
}

#[test]
fn the_overlays_ask_for_no_more_than_they_need() {
    let documents = documents(&kustomize("on-demand"));
    are_bounded(&documents, &["NET_ADMIN"]);
    let labels = &of_kind(&documents, "Namespace")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
    let agents = of_kind(&documents, "DaemonSet");
    let spec = &agents["spec"]["template"]["spec"];
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(spec["tolerations"], serde_json::json!([{"operator": "Exists"}]));
    assert_eq!(agents["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    for document in &documents {
        for label in ["name", "part-of", "managed-by", "version"] {
            let name = format!("app.kubernetes.io/{label}");
            assert!(document["metadata"]["labels"][&name].is_string(), "{}: no {name}", document["kind"]);
        }
    }
}

/// Such a Job must not wait on a node that is dead.
#[test]
fn the_job_tolerates_what_a_new_node_has_and_ends() {
    let documents = documents(&kustomize("on-demand"));
    let job = &of_kind(&documents, "Job")["spec"];
    let tolerated: BTreeSet<&str> = job["template"]["spec"]["tolerations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|toleration| toleration["key"].as_str().unwrap())
        .collect();
    assert!(tolerated.contains("node.kubernetes.io/not-ready"), "{tolerated:?}");
    assert!(!tolerated.contains("node.kubernetes.io/unreachable"), "{tolerated:?}");
    assert!(job["activeDeadlineSeconds"].as_u64().unwrap() < job["ttlSecondsAfterFinished"].as_u64().unwrap());
    // Nobody else's processes have it.
    assert_eq!(containers(of_kind(&documents, "Job")).next().unwrap()["securityContext"]["runAsUser"], 8471);
}

/// What kustomize makes of an overlay beside deploy/ with these files.
fn kustomize_own(files: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let overlay = folder.path().join("my-cluster");
    std::fs::create_dir_all(folder.path().join("deploy")).unwrap();
    std::fs::create_dir(&overlay).unwrap();
    run(Command::new("cp").arg("-r").arg(deploy("kubernetes")).arg(folder.path().join("deploy")));
    files.iter().for_each(|(name, text)| std::fs::write(overlay.join(name), text).unwrap());
    run(Command::new(tool("kubectl")).arg("kustomize").arg(&overlay))
}

/// The first block of YAML behind these words of a document in deploy/.
fn of_document(name: &str, words: &str) -> String {
    let document = std::fs::read_to_string(deploy(name)).unwrap();
    let (_, behind) = document.split_once(words).unwrap_or_else(|| panic!("no {words} in deploy/{name}"));
    behind.split_once("```yaml\n").unwrap().1.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_overlay_in_the_readme_sets_what_is_the_cluster_s() {
    let all = documents(&kustomize_own(&[("kustomization.yaml", &of_document("README.md", "## Kubernetes\n"))]));
    for document in all.iter().filter(|document| document["kind"] == "DaemonSet" || document["kind"] == "Job") {
        for container in containers(document) {
            assert_eq!(container["image"], "registry.example/net/twill:0.1.0");
        }
    }
    let data =
        |key: &str| all.iter().map(|d| &d["data"][key]).find(|value| value.is_string()).unwrap().as_str().unwrap();
    assert_eq!(data("FLANNELD_ETCD_ENDPOINTS"), "https://10.0.0.5:2379,https://10.0.0.6:2379");
    let network: Value = serde_json::from_str(data("net-conf.json")).unwrap();
    assert_eq!(network["Network"], "10.5.0.0/16");
    assert_eq!(all.iter().filter(|document| document["data"]["net-conf.json"].is_string()).count(), 1);
}

#[test]
fn the_patch_for_a_migration_keeps_the_agent_to_the_nodes_with_the_label() {
    let patches = of_document("MIGRATION.md", "## In Kubernetes\n");
    let overlay = format!("resources: [../deploy/kubernetes/overlays/all]\npatches:\n{patches}");
    let all = documents(&kustomize_own(&[("kustomization.yaml", &overlay)]));
    let selector = |kind: &str| of_kind(&all, kind)["spec"]["template"]["spec"]["nodeSelector"].clone();
    assert_eq!(selector("DaemonSet"), serde_json::json!({"kubernetes.io/os": "linux", "overlay-agent": "twill"}));
    // No node has the label yet when the Job runs.
    assert_eq!(selector("Job"), serde_json::json!({"kubernetes.io/os": "linux"}));
}

#[test]
fn the_component_conflist_gives_the_init_container_the_operator_s_configuration() {
    let lines = of_document("README.md", "the component `conflist`");
    let overlay = format!("  resources: [../deploy/kubernetes/overlays/on-demand]\n{lines}");
    let list = r#"{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel"}]}"#;
    let text = kustomize_own(&[("kustomization.yaml", &overlay), ("10-flannel.conflist", list)]);
    let all = documents(&text);
    let map = all.iter().find(|document| document["data"]["10-flannel.conflist"] == list).unwrap();
    let agents = of_kind(&all, "DaemonSet");
    let volumes = agents["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == "conflist").unwrap();
    assert_eq!(volume["configMap"]["name"], map["metadata"]["name"], "a changed one has another name");
    assert!(map["metadata"]["name"].as_str().unwrap().starts_with("twill-cni-"));
    programs_know_their_flags(&all);
    are_bounded(&all, &["NET_ADMIN"]);
    let init = containers(agents).next().unwrap();
    assert!(texts(&init["args"]).contains(&"--conflist=/etc/twill/cni/10-flannel.conflist".to_owned()));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    fit_every_release(&[file.path()]);
}

/// The version stands in the workspace's Cargo.toml; all that names an image follows.
#[test]
fn the_version_is_the_same_everywhere() {
    let cargo = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let version = cargo.lines().find_map(|line| line.strip_prefix("version = ")).unwrap().trim_matches('"');
    let agents = documents(&kustomize("all"));
    let agents = of_kind(&agents, "DaemonSet");
    assert_eq!(agents["metadata"]["labels"]["app.kubernetes.io/version"], version);
    assert!(containers(agents).all(|container| container["image"] == format!("registry.invalid/twill:{version}")));
    let chart = documents(&std::fs::read_to_string(deploy("helm/twill/Chart.yaml")).unwrap());
    assert_eq!((chart[0]["version"].as_str(), chart[0]["appVersion"].as_str()), (Some(version), Some(version)));
}
