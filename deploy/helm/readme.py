#!/usr/bin/env python3
"""Makes the chart's README from its values.yaml: prints it, or with --check says whether the file there is the same.

A value is a line `key: value` whose comment above begins with `# --`. Only what values.yaml here uses is understood.
"""
import pathlib
import re
import sys

CHART = pathlib.Path(__file__).parent / "twill"

HEAD = """# The chart twill

Twill on every node of a cluster, with its network in etcd. This file is made by `deploy/helm/readme.py`; `deploy/README.md` has
the rest: sizes, ports, etcd's roles and certificates, upgrades.

```
kubectl create namespace twill-system
kubectl label namespace twill-system pod-security.kubernetes.io/enforce=privileged
kubectl -n twill-system create secret generic twill-etcd \\
    --from-file=ca.crt --from-file=tls.crt=node.crt --from-file=tls.key=node.key
kubectl -n twill-system create secret generic twill-etcd-setup \\
    --from-file=ca.crt --from-file=tls.crt=setup.crt --from-file=tls.key=setup.key
cat >values.yaml <<'END'
image:
  repository: registry.example/net/twill
etcd:
  endpoints: [https://10.0.0.5:2379]
network:
  config: {Network: 10.5.0.0/16, Backend: {Type: vxlan}}
END
helm install twill deploy/helm/twill --namespace twill-system --values values.yaml
kubectl -n twill-system rollout status daemonset/twill
```

`setup.crt` is for the Job that writes the network config (`deploy/etcd/README.md`). Where etcd has a config already, set
`network.create=false`: then neither `network.config` nor that Secret is needed.

With `--set metrics.enabled=true` twilld's metrics can be scraped, and with `--set metrics.podMonitor.enabled=true` besides the
Prometheus operator has them scraped. `deploy/README.md`, *Metrics*, names them and says who can read what.

| value | default | meaning |
|---|---|---|
"""


def rows(text):
    """(dotted key, default, meaning) of each described value, in order."""
    path, comment, pending = [], None, None
    lines = text.splitlines()
    for at, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = stripped[4:].strip()
        elif stripped.startswith("#"):
            comment = f"{comment} {stripped[1:].strip()}" if comment else None
        elif key := re.match(r"( *)([A-Za-z]+):(.*)", line):
            depth = len(key[1]) // 2
            path = path[:depth] + [key[2]]
            if comment:
                yield ".".join(path), key[3].strip() or block(lines, at, len(key[1])), comment
            comment = None
        else:
            comment = None


def block(lines, at, indent):
    """A default that stands on the lines below its key, in one line."""
    below = []
    for line in lines[at + 1:]:
        if not line.strip() or line.lstrip().startswith("#") or len(line) - len(line.lstrip()) <= indent:
            break
        below.append(line)
    text, depths = "", []
    for line in below:
        depth, item = len(line) - len(line.lstrip()), line.strip()
        while depths and depths[-1] >= depth:
            text, depths = text + "}", depths[:-1]
        text += ", " if text and not text.endswith("{") else ""
        if item.endswith(":"):
            text, depths = f"{text}{item} {{", depths + [depth]
        else:
            text += item.removeprefix("- ")
    text += "}" * len(depths)
    return f"[{text}]" if below[0].strip().startswith("- ") else f"{{{text}}}"


def main():
    table = "".join(f"| `{key}` | `{default}` | {meaning} |\n" for key, default, meaning in
                    rows((CHART / "values.yaml").read_text()))
    readme = HEAD + table
    if sys.argv[1:] != ["--check"]:
        sys.stdout.write(readme)
    elif (CHART / "README.md").read_text() != readme:
        sys.exit("deploy/helm/twill/README.md is not what deploy/helm/readme.py makes of values.yaml: run it again")


main()
