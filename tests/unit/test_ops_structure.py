"""The files of ops/ hang together: keys that their readers know, and names that lead somewhere.

No container engine, Kubernetes or collector is at hand here, so what they would refuse first is held against what their
documentation allows.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"


def read(name: str) -> Any:
    return yaml.safe_load((OPS / name).read_text(encoding="utf-8"))


# --- compose --------------------------------------------------------------------------------------------------------

SERVICE = {
    "image": str, "command": list, "ports": list, "volumes": list, "secrets": list, "depends_on": list,
    "env_file": list, "environment": dict, "extra_hosts": list, "restart": str,
}  # fmt: skip


@pytest.mark.parametrize("name", ["compose.yaml", "jaeger.yaml"])
def test_compose_files_have_keys_that_compose_knows(name: str) -> None:
    tree = read(name)
    assert tree.keys() <= {"name", "services", "networks", "volumes", "secrets"}
    for service, each in tree["services"].items():
        assert each.keys() <= SERVICE.keys(), service
        assert all(isinstance(value, SERVICE[key]) for key, value in each.items()), service
        assert each.get("restart", "no") in ("no", "always", "on-failure", "unless-stopped")
        for port in each.get("ports", ()):
            assert re.fullmatch(r"[\d.]+:\d+:\d+", port), port
        for volume in each.get("volumes", ()):
            assert re.fullmatch(r"[\w./-]+:/[\w./-]+(:ro)?", volume), volume


def test_every_service_secret_and_volume_is_used_and_each_port_published_once() -> None:
    tree = read("compose.yaml")
    services = tree["services"].values()
    assert {secret for each in services for secret in each.get("secrets", ())} == tree["secrets"].keys()
    used = {volume.split(":")[0] for each in services for volume in each.get("volumes", ())}
    assert {volume for volume in used if not volume.startswith(".")} == tree["volumes"].keys()
    published = [port.split(":")[1] for each in services for port in each.get("ports", ())]
    assert len(published) == len(set(published))
    for each in services:
        for path in re.findall(r"/run/secrets/(\w+)", json.dumps(each.get("environment", {}))):
            assert path in each["secrets"]


def test_a_network_interface_has_a_name_that_linux_takes_and_the_firewall_rule_means_it() -> None:
    bridge = read("compose.yaml")["networks"]["default"]["driver_opts"]["com.docker.network.bridge.name"]
    assert len(bridge) < 16
    assert f"! -i {bridge} -j DROP" in (OPS / "README.md").read_text(encoding="utf-8")


# --- the collector --------------------------------------------------------------------------------------------------

COLLECTOR = read("otel-collector.yaml")
PARTS = {
    "receivers": {"otlp"}, "extensions": {"basicauth"}, "exporters": {"otlp", "prometheus"},
    "processors": {"memory_limiter", "filter", "resource", "attributes", "transform", "batch"},
}  # fmt: skip
CONTEXTS = {
    "trace_statements": {
        "resource": {"attributes"}, "span": {"attributes", "name", "resource"}, "spanevent": {"attributes"},
    },
    "metric_statements": {
        "resource": {"attributes"}, "scope": {"attributes", "name", "version", "schema_url"},
        "datapoint": {"attributes", "metric"},
    },
}  # fmt: skip
FILTERS = {
    ("traces", "span"): {"name"},
    ("metrics", "metric"): {"name", "unit", "type", "is_monotonic", "aggregation_temporality", "resource"},
    ("metrics", "datapoint"): {"attributes", "metric", "explicit_bounds"},
}
EDITORS = {"set", "limit", "truncate_all", "keep_keys"}
CONVERTERS = {"IsMatch", "Concat", "Substring", "Len"}
WORDS = {"and", "not", "nil", "true", "where"}


def check_ottl(rule: str, paths: set[str], functions: set[str]) -> None:
    """A rule of OTTL: brackets match, functions are there, and every path begins with a field of its context."""
    bare = re.sub(r'"[^"]*"', '""', rule)
    assert bare.count('"') % 2 == 0
    for opening, closing in ("()", "[]"):
        assert bare.count(opening) == bare.count(closing), rule
    assert set(re.findall(r"\b(\w+)\(", re.sub(r"\b(not|and) \(", "(", bare))) <= functions, rule
    names = {name for name in re.findall(r"(?<![.\w])([a-z_]+)\b(?!\()", bare) if name not in WORDS}
    assert names <= paths, (rule, names - paths)
    patterns = re.findall(r'IsMatch\((?:Concat\([^)]*\)|[^,]+),\s+"([^"]*)"\)', rule)
    assert len(patterns) == rule.count("IsMatch(")
    for pattern in patterns:
        re.compile(pattern)
        assert pattern.startswith("^") and pattern.endswith("$"), pattern


def test_the_collector_has_parts_that_its_distribution_has() -> None:
    assert COLLECTOR.keys() == {*PARTS, "service"}
    for kind, known in PARTS.items():
        assert {name.split("/")[0] for name in COLLECTOR[kind]} <= known, kind
    assert COLLECTOR["service"].keys() == {"extensions", "telemetry", "pipelines"}
    for name, pipeline in COLLECTOR["service"]["pipelines"].items():
        assert pipeline.keys() == {"receivers", "processors", "exporters"}
        for processor in pipeline["processors"]:
            body = COLLECTOR["processors"][processor]
            if processor.startswith("filter"):
                assert name in body, f"{processor} does nothing to {name}"
            if processor.startswith("transform"):
                assert f"{name.rstrip('s')}_statements" in body, f"{processor} does nothing to {name}"


def test_every_rule_of_the_collector_is_one() -> None:
    for name, body in COLLECTOR["processors"].items():
        for kind, contexts in CONTEXTS.items():
            for group in body.get(kind, ()) if name.startswith("transform") else ():
                for statement in group["statements"]:
                    assert re.match(r"\w+", statement)[0] in EDITORS, statement  # type: ignore[index]
                    check_ottl(statement, contexts[group["context"]], EDITORS | CONVERTERS)
        for (signal, what), paths in FILTERS.items():
            for rule in body.get(signal, {}).get(what, ()) if name.startswith("filter") else ():
                check_ottl(rule, paths, CONVERTERS)
        if name.startswith("filter"):
            assert {
                (signal, what) for signal in ("traces", "metrics") for what in body.get(signal, ())
            } <= FILTERS.keys()


def test_what_the_collector_reads_from_its_environment_and_files_is_given_to_it() -> None:
    text = (OPS / "otel-collector.yaml").read_text(encoding="utf-8")
    service = read("compose.yaml")["services"]["collector"]
    (path,) = service["env_file"]
    recipe = (OPS / "README.md").read_text(encoding="utf-8")
    (line,) = (line for line in recipe.splitlines() if line.endswith(f"> ops/{path.removeprefix('./')}"))
    assert set(re.findall(r"\$\{env:(\w+)\}", text)) == set(re.findall(r"([A-Z]+)=%s", line))
    assert set(re.findall(r"/run/secrets/(\w+)", text)) <= set(service["secrets"])
    assert not re.search(
        r"\$(?!\{env:|\)?\")", re.sub(r"#.*", "", text)
    )  # another $ would be the collector's own syntax


# --- Kubernetes -----------------------------------------------------------------------------------------------------

KUBERAY = (OPS / "ray/kuberay.yaml").read_text(encoding="utf-8")
KINDS = {each["kind"]: each for each in yaml.safe_load_all(KUBERAY)}
VERSIONS = {
    "PersistentVolumeClaim": "v1", "Service": "v1", "NetworkPolicy": "networking.k8s.io/v1", "RayJob": "ray.io/v1",
}  # fmt: skip
JOB = KINDS["RayJob"]["spec"]
CLUSTER = JOB["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]["template"]
SUBMITTER = JOB["submitterPodTemplate"]


def test_kubernetes_knows_the_kinds_and_their_names_are_names() -> None:
    assert {kind: each["apiVersion"] for kind, each in KINDS.items()} == VERSIONS
    for each in KINDS.values():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", each["metadata"]["name"])
        assert each.keys() == {"apiVersion", "kind", "metadata", "spec"}


def test_the_job_has_fields_that_kuberay_knows() -> None:
    assert JOB.keys() <= {
        "entrypoint", "shutdownAfterJobFinishes", "backoffLimit", "submitterPodTemplate", "rayClusterSpec",
    }  # fmt: skip
    assert CLUSTER.keys() <= {"rayVersion", "authOptions", "headGroupSpec"}
    assert CLUSTER["headGroupSpec"].keys() <= {"rayStartParams", "template"}
    assert all(isinstance(value, str) for value in CLUSTER["headGroupSpec"]["rayStartParams"].values())
    for template in (HEAD, SUBMITTER):
        for container in template["spec"]["containers"]:
            # Kubernetes takes texts only; a bare 1 would be refused.
            assert all(isinstance(each["value"], str) for each in container["env"])
            assert "command" not in container  # the operator writes it


def test_what_a_pod_mounts_selects_and_runs_is_there() -> None:
    pod = HEAD["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        assert container["image"] == SUBMITTER["spec"]["containers"][0]["image"]
    claim = KINDS["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim
    made = re.findall(r"kubectl create configmap (\S+)", KUBERAY)
    assert [volumes["run"]["configMap"]["name"]] == made
    mine = {**HEAD["metadata"]["labels"], "ray.io/node-type": "head"}  # the operator adds that one
    assert KINDS["Service"]["spec"]["selector"].items() <= mine.items()
    policy = KINDS["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= mine.items()
    allowed = [each["podSelector"]["matchLabels"] for rule in policy["ingress"] for each in rule.get("from", ())]
    assert any(labels.items() <= SUBMITTER["metadata"]["labels"].items() for labels in allowed)


def test_ray_on_kubernetes_is_the_ray_that_the_image_has() -> None:
    assert f"ray[default,train]=={CLUSTER['rayVersion']}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    image = (OPS / "Dockerfile").read_text(encoding="utf-8")
    assert HEAD["spec"]["securityContext"]["runAsUser"] == int(re.findall(r"^USER (\d+)", image, re.MULTILINE)[-1])
    (home,) = re.findall(r"^VOLUME (\S+)", image, re.MULTILINE)
    assert home in {mount["mountPath"] for mount in HEAD["spec"]["containers"][0]["volumeMounts"]}


# --- Grafana --------------------------------------------------------------------------------------------------------

DASHBOARD = json.loads((OPS / "grafana/dashboards/swarm.json").read_text(encoding="utf-8"))
PANEL = {"id", "type", "title", "description", "datasource", "gridPos", "targets", "fieldConfig", "options"}
UNITS = {"short", "none", "percentunit", "s", "bytes", "Bps", "decbytes", "reqps"}


def test_the_dashboard_has_what_grafana_reads() -> None:
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert isinstance(DASHBOARD["schemaVersion"], int) and DASHBOARD["schemaVersion"] >= 36
    sources = {
        each["uid"]: each["type"] for each in read("grafana/provisioning/datasources/datasources.yaml")["datasources"]
    }
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            assert panel.keys() == {"id", "type", "title", "collapsed", "gridPos", "panels"}
            continue
        assert panel["type"] in ("timeseries", "stat", "bargauge", "table", "heatmap")
        assert panel.keys() <= PANEL and panel["targets"], panel["title"]
        assert panel["fieldConfig"].keys() == {"defaults", "overrides"}
        assert panel["fieldConfig"]["defaults"].get("unit", "none") in UNITS, panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]
        for source in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            assert sources[source["uid"]] == source["type"]


def test_panels_use_variables_that_the_dashboard_has() -> None:
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    text = json.dumps(DASHBOARD["panels"])
    builtin = {"__rate_interval", "__interval", "__range"}
    assert variables <= set(re.findall(r"\$(\w+)", text)) <= variables | builtin


def test_grafana_is_given_its_dashboards_where_it_looks_for_them() -> None:
    (provider,) = read("grafana/provisioning/dashboards/dashboards.yaml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in read("compose.yaml")["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
