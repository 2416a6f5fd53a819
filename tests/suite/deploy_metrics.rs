//! Metrics in a cluster: nothing of them unless they are asked for; then Prometheus and the kubelet both find twilld.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use twill_lab::{Lab, NODE_CONFIG, Namespace, Node, wait_until};

use crate::chart::render_with;
use crate::manifests::programs_know_their_flags;
use crate::manifests::{are_bounded, arguments, containers, documents, fit_every_release, kustomize, of_kind};
use crate::{deploy, run, tool};

/// For states that take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `kubectl apply -k` sends for an overlay that has this component besides.
fn kustomize_with(component: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("cp").arg("-r").arg(deploy("kubernetes")).arg(folder.path()));
    let overlay = folder.path().join("my-cluster");
    fs::create_dir(&overlay).unwrap();
    let text =
        format!("resources: [../kubernetes/overlays/on-demand]\ncomponents: [../kubernetes/components/{component}]\n");
    fs::write(overlay.join("kustomization.yaml"), text).unwrap();
    run(Command::new(tool("kubectl")).arg("kustomize").arg(&overlay))
}

/// twilld's container.
fn twilld(documents: &[Value]) -> &Value {
    containers(of_kind(documents, "DaemonSet")).find(|container| container["name"] == "twilld").unwrap()
}

#[test]
fn without_being_asked_for_there_are_none() {
    let off = ["--set=metrics.ip=::", "--set=metrics.podMonitor.interval=5s"];
    assert_eq!(render_with("tls", &[]), render_with("tls", &off));
    for text in [render_with("tls", &[]), render_with("plain", &[]), kustomize("on-demand"), kustomize("all")] {
        let documents = documents(&text);
        assert!(!documents.iter().any(|document| document["kind"] == "PodMonitor"));
        let twilld = twilld(&documents);
        assert_eq!(twilld["ports"], Value::Null);
        assert!(twilld["args"].as_array().unwrap().contains(&json!("--healthz-ip=127.0.0.1")));
        assert_eq!(twilld["env"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn the_components_are_held_to_what_the_overlays_are_held_to() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["metrics", "pod-monitor"].map(|component| {
        let text = kustomize_with(component);
        let documents = documents(&text);
        programs_know_their_flags(&documents);
        are_bounded(&documents, &["NET_ADMIN"]);
        let file = folder.path().join(component);
        fs::write(&file, text).unwrap();
        file
    });
    fit_every_release(&files.each_ref().map(|file| file.as_path()));
}

/// A PodMonitor is an extension without a schema among Kubernetes' own, so it is compared as a whole. That it fits the
/// schema of the Prometheus operator was tried with
/// <https://github.com/prometheus-operator/prometheus-operator/blob/v0.93.0/example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml>.
#[test]
fn the_pod_monitor_finds_the_daemons_and_their_port() {
    let node = json!({"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "node"});
    let least = json!({"port": "metrics", "path": "/metrics", "relabelings": [node]});
    let most = json!({
        "port": "metrics", "path": "/metrics", "interval": "30s", "scrapeTimeout": "5s",
        "relabelings": [node, {"targetLabel": "cluster", "replacement": "east"}],
        "metricRelabelings": [{"sourceLabels": ["__name__"], "regex": "twill_batches_total", "action": "drop"}],
    });
    for (text, endpoint) in [
        (render_with("metrics", &[]), &least),
        (kustomize_with("pod-monitor"), &least),
        (render_with("everything", &[]), &most),
    ] {
        let documents = documents(&text);
        let monitor = of_kind(&documents, "PodMonitor");
        assert_eq!(
            (&monitor["apiVersion"], &monitor["metadata"]["name"]),
            (&json!("monitoring.coreos.com/v1"), &json!("twill"))
        );
        let labels = &monitor["spec"]["selector"]["matchLabels"];
        assert_eq!(monitor["spec"], json!({"selector": {"matchLabels": labels}, "podMetricsEndpoints": [endpoint]}));
        // The pods of the same namespace that have the labels: the DaemonSet's, not the Job's.
        let has_all = |kind: &str| {
            let document = of_kind(&documents, kind);
            assert_eq!(document["metadata"]["namespace"], monitor["metadata"]["namespace"], "{kind}");
            let there = &document["spec"]["template"]["metadata"]["labels"];
            labels.as_object().unwrap().iter().all(|(name, value)| there[name] == *value)
        };
        assert_eq!((has_all("DaemonSet"), has_all("Job")), (true, false), "{labels}");
        let port = &twilld(&documents)["readinessProbe"]["httpGet"]["port"];
        assert_eq!(twilld(&documents)["ports"], json!([{"name": "metrics", "containerPort": port, "protocol": "TCP"}]));
    }
    let labels = |text: &str| of_kind(&documents(text), "PodMonitor")["metadata"]["labels"].clone();
    assert_eq!(labels(&render_with("everything", &[]))["release"], "prometheus");
    assert_eq!(labels(&kustomize_with("pod-monitor"))["app.kubernetes.io/managed-by"], "kustomize");
}

/// Asks for a path; the whole answer.
fn get(from: &Namespace, to: SocketAddr, path: &str) -> std::io::Result<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    from.enter(ask).unwrap()
}

/// A twilld as the manifests start it in a pod with this address, asked as Prometheus and the kubelet ask.
fn is_found_by_both(lab: &Lab, node: &Node, manifests: &str, address: IpAddr) {
    let documents = documents(manifests);
    let twilld = twilld(&documents);
    // The lab has an etcd of its own.
    let mut args = arguments(twilld, "node1", &address.to_string());
    args.retain(|arg| !arg.starts_with("--etcd-"));
    let mut daemon = node.twilld(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let port = u16::try_from(twilld["ports"][0]["containerPort"].as_u64().unwrap()).unwrap();
    wait_until(&format!("Prometheus has an answer of {address}; {args:?}"), PATIENCE, || {
        match get(lab.fabric(), (address, port).into(), "/metrics") {
            Ok(text) if text.starts_with("HTTP/1.1 200 ") && text.contains("\ntwill_ready 1\n") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let asked = &twilld[probe]["httpGet"];
        let host = asked["host"].as_str().map_or(address, |host| host.parse().unwrap());
        assert_eq!(asked["port"], port, "{probe}");
        let answer = get(node.netns(), (host, port).into(), asked["path"].as_str().unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{probe} at {host}: {answer}");
    }
    if args.contains(&format!("--healthz-ip={address}")) {
        let elsewhere = get(node.netns(), (Ipv4Addr::LOCALHOST, port).into(), "/healthz").unwrap_err();
        assert_eq!(elsewhere.kind(), ErrorKind::ConnectionRefused, "it listens on one address");
    }
    assert!(daemon.terminate().status.success());
}

#[test]
fn prometheus_and_the_kubelet_are_answered_on_the_node_s_address() {
    let lab = Lab::with_nodes(1);
    lab.put_config(NODE_CONFIG);
    let node = lab.node(1);
    let (v4, v6) = (IpAddr::from(node.addr()), IpAddr::from(node.addr6()));
    let chart = |ip: &str| render_with("metrics", &[&format!("--set=metrics.ip={ip}")]);
    // The first address of a node in a cluster of both families is one or the other.
    for (manifests, addresses) in [
        (chart(""), &[v4, v6][..]),
        (chart("0.0.0.0"), &[v4]),
        (chart("::"), &[v4, v6]),
        (kustomize_with("metrics"), &[v4, v6]),
    ] {
        for address in addresses {
            is_found_by_both(&lab, &node, &manifests, *address);
        }
    }
}

/// The list in deploy/README.md is complete, and has nothing that twilld lacks.
#[test]
fn the_readme_names_every_metric() {
    let lab = Lab::with_nodes(1);
    let node = lab.node(1);
    let _daemon = node.twilld(&["--healthz-port=8471"]);
    let text = wait_until("/metrics", PATIENCE, || {
        get(node.netns(), (Ipv4Addr::LOCALHOST, 8471).into(), "/metrics").map_err(|e| e.to_string())
    });
    let metric = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
    };
    let served: BTreeSet<String> = text.lines().filter_map(metric).collect();
    let readme = fs::read_to_string(deploy("README.md")).unwrap();
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `twill_"));
    let named: BTreeSet<String> = rows.map(|row| format!("twill_{}", row.split(['`', '{']).next().unwrap())).collect();
    assert!(served.contains("twill_ready") && served.contains("twill_misses_total"), "{text}");
    assert_eq!(named, served, "deploy/README.md, Metrics");
}
