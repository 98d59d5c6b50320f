"""ops/: everything parses, names only what there is, is pinned, and opens nothing that it should not."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.specifiers import SpecifierSet

from elastic.cli import app
from elastic.metrics import INSTRUMENTS, LEVELS, STAGES
from elastic.usage import spelled_out
from tests.unit.metrics_cases import exposed

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"
FILES = sorted(path for path in OPS.rglob("*") if path.is_file() and path.name != ".gitkeep")
YAMLS = [path for path in FILES if path.suffix == ".yaml"]
UNITS = sorted((OPS / "systemd").glob("*.service"))
PINNED = re.compile(r"^[a-z0-9./-]+:v?\d+(\.\d+)+[a-z0-9.-]*$")
COMMAND = re.compile(r"(?:^|[\s'\"/(`])elastic ((?:[a-z]+)(?: [^\n#'\"`;&|>]+)?)")
HARDENED = {
    "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "CapabilityBoundingSet": "",
    "Restart": "on-failure", "KillMode": "mixed", "UMask": "0077",
}  # fmt: skip
NOT_OURS = {"up", "ALERTS"}


def name_of(path: Path) -> str:
    return path.relative_to(OPS).as_posix()


def read(name: str) -> Any:
    return yaml.safe_load((OPS / name).read_text(encoding="utf-8"))


COMPOSE = ["compose.yaml", "jaeger.yaml"]
RULES = [rule for group in read("alerts.yaml")["groups"] for rule in group["rules"]]
PANELS = json.loads((OPS / "grafana/dashboards/swarm.json").read_text(encoding="utf-8"))["panels"]
EXPRESSIONS = [
    *((rule["alert"], rule["expr"]) for rule in RULES),
    *((panel["title"], target["expr"]) for panel in PANELS for target in panel.get("targets", ())),
]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a peer's Prometheus endpoint has: series → its labels."""
    found = exposed(tmp_path_factory.mktemp("peer"))
    return {name: {label for labels in each for label in labels} for name, each in found.items()}


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_every_yaml_is_one(path: Path) -> None:
    assert all(isinstance(each, dict) for each in yaml.safe_load_all(path.read_text(encoding="utf-8")))


# --- metrics by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_alarms_and_panels_ask_for_what_peers_export(where: str, expression: str, series: dict[str, set[str]]) -> None:
    asked = set(re.findall(r"\b(swarm_[a-z_]+)\b(?=[\s{\[/*)<>]|$)", re.sub(r"\{[^}]*\}|by \([^)]*\)", "", expression)))
    assert asked or any(name in expression for name in NOT_OURS)
    assert asked <= series.keys(), asked - series.keys()
    labels = set.union(*(series[name] for name in asked)) if asked else set()
    for name, matchers in re.findall(r"\b(swarm_[a-z_]+)\{([^}]*)\}", expression):
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert used <= series[name] | {"job"}, (name, used - series[name])
    for grouping in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        assert {each.strip() for each in grouping.split(",")} <= labels


@pytest.mark.parametrize("expression", [expression for _, expression in EXPRESSIONS])
def test_stages_and_levels_that_are_asked_for_exist(expression: str) -> None:
    for matcher in re.findall(r'swarm_(?:stage|level)=~?"([^"]*)"', expression):
        assert set(matcher.split("|")) <= {*STAGES, *LEVELS}


def test_labels_shown_in_words_exist(series: dict[str, set[str]]) -> None:
    known = {label for labels in series.values() for label in labels} | {"job", "instance"}
    for rule in RULES:
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= known
    for panel in PANELS:
        for target in panel.get("targets", ()):
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known


def test_every_instrument_is_looked_at_or_known_not_to_be() -> None:
    text = " ".join(expression for _, expression in EXPRESSIONS)
    suffix = r"(_total|_seconds|_seconds_(sum|count|bucket)|_bytes|_per_second)?\b"
    unseen = {each.name for each in INSTRUMENTS if not re.search(each.name.replace(".", "_") + suffix, text)}
    assert unseen == {"swarm.inner.steps", "swarm.rounds.finished", "swarm.spans.exported", "swarm.tokens"}, unseen


# --- alarms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alarm_says_what_is_wrong_and_the_runbook_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"]["summary"]
    assert f"**{rule['alert']}**" in (OPS / "README.md").read_text(encoding="utf-8")


def test_the_runbook_knows_no_alarm_that_is_not_there() -> None:
    text = (OPS / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Alarms") :]
    section = section[: section.index("\n## ", 5)]
    assert set(re.findall(r"^\| \*\*(\w+)\*\*", section, re.MULTILINE)) == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian: prometheus)")
@pytest.mark.parametrize("what", [["check", "config", "prometheus.yaml"], ["test", "rules", "alerts.test.yaml"]])
def test_prometheus_itself_takes_them(what: list[str]) -> None:
    done = subprocess.run(["promtool", *what], cwd=OPS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- dashboards -----------------------------------------------------------------------------------------------------


def test_panels_have_a_source_an_id_and_a_place_of_their_own() -> None:
    sources = {each["uid"] for each in read("grafana/provisioning/datasources/datasources.yaml")["datasources"]}
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }  # fmt: skip
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] in sources


# --- containers -----------------------------------------------------------------------------------------------------


def images() -> Iterator[tuple[str, str]]:
    for name in COMPOSE:
        for service, each in read(name)["services"].items():
            yield f"{name}:{service}", each["image"]
    for image in re.findall(r"^FROM (\S+)", (OPS / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE):
        yield "Dockerfile", image
    for image in re.findall(r"image: (\S+)", (OPS / "ray/kuberay.yaml").read_text(encoding="utf-8")):
        yield "ray/kuberay.yaml", image


@pytest.mark.parametrize(("where", "image"), list(images()))
def test_images_are_pinned_by_version(where: str, image: str) -> None:
    assert PINNED.match(image), where


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_publishes_on_loopback_only(name: str) -> None:
    for service, each in read(name)["services"].items():
        assert all(str(port).startswith("127.0.0.1:") for port in each.get("ports", ())), service
        assert not {"network_mode", "privileged", "cap_add", "pid"} & each.keys(), service


def test_compose_mounts_what_is_there_and_keeps_secrets_in_files() -> None:
    tree = read("compose.yaml")
    for service, each in tree["services"].items():
        for volume in each.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in tree["volumes"] or (OPS / source).exists(), volume
        assert set(each.get("depends_on", ())) <= tree["services"].keys(), service
        assert set(each.get("secrets", ())) <= tree["secrets"].keys(), service
        for key in each.get("environment", {}):
            assert not re.search("PASSWORD|TOKEN|SECRET", key) or key.endswith("__FILE"), key
    assert "ops/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8")


HTPASSWD = """#!/bin/sh
while [ $# -gt 2 ]; do case $1 in -*c*) : > "$2";; esac; shift; done
echo "$2:hash" >> "$1"
"""
"""As Apache's: with -c it begins anew."""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_the_recipe_makes_secrets_that_containers_can_read_and_other_users_cannot(tmp_path: Path) -> None:
    section = (OPS / "README.md").read_text(encoding="utf-8").split("## To look at a swarm")[1]
    block = re.search(r"(?:^    .*\n)+", section, re.MULTILINE)[0]  # type: ignore[index]
    lines = [line for line in textwrap.dedent(block).splitlines() if not line.startswith("docker ")]
    (each,) = (number for number, line in enumerate(lines) if line.startswith("htpasswd "))
    lines[each : each + 1] = [lines[each].replace("12D3KooW…", peer) for peer in ("12D3KooWann", "12D3KooWbob")]
    (tmp_path / "htpasswd").write_text(HTPASSWD, encoding="utf-8")
    (tmp_path / "htpasswd").chmod(0o755)
    (tmp_path / "ops").mkdir()
    path = f"{tmp_path}:{os.environ['PATH']}"
    # Whoever follows the recipe may have a strict mask.
    done = subprocess.run(
        ["bash", "-euc", "\n".join(["umask 077", *lines])],
        cwd=tmp_path,
        env={"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    secrets = tmp_path / "ops/secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in secrets.iterdir()} == dict.fromkeys(mounted(), 0o644)
    assert (secrets / "htpasswd").read_text() == "12D3KooWann:hash\n12D3KooWbob:hash\n"
    assert (secrets / "swarm.env").read_text() == "RUNS=demo\nPEERS=12D3KooWann|12D3KooWbob\n"


def mounted() -> set[str]:
    """Files of ops/secrets that compose.yaml wants."""
    tree = read("compose.yaml")
    files = [each["file"] for each in tree["secrets"].values()]
    files += [file for each in tree["services"].values() for file in each.get("env_file", ())]
    assert all(file.startswith("./secrets/") for file in files)
    return {Path(file).name for file in files}


def test_prometheus_and_grafana_ask_services_that_there_are() -> None:
    services = read("compose.yaml")["services"].keys() | {"localhost"}
    for job in read("prometheus.yaml")["scrape_configs"]:
        for static in job.get("static_configs", ()):
            assert {target.split(":")[0] for target in static["targets"]} <= services
    for source in read("grafana/provisioning/datasources/datasources.yaml")["datasources"]:
        assert re.match(r"http://([a-z]+):\d+$", source["url"])[1] in services  # type: ignore[index]
    assert "proxy_pass http://collector:4318;" in (OPS / "gate.conf").read_text(encoding="utf-8")


def test_the_image_is_built_from_what_is_there_and_runs_as_nobody_special() -> None:
    text = (OPS / "Dockerfile").read_text(encoding="utf-8")
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    users = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert users and users[-1] not in ("0", "root")
    assert text.index("USER ") < text.index("CMD ")


# --- commands, units, Ray -------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """Command lines of ours; prose that says no more than a command's name is one too."""
    for path in [*FILES, ROOT / "docs/ports.md", ROOT / "docs/metrics.md"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            for found in COMMAND.findall(line.replace("elastic:", " ")):
                words = found.split()
                if words[0] in KNOWN:
                    yield f"{path.name}", found.strip().rstrip(".,:)")


KNOWN = typer.main.get_command(app).commands  # type: ignore[attr-defined]
COMMANDS = sorted(set(commands()))


def test_what_is_started_is_a_command() -> None:
    started = {
        found
        for path in FILES
        for found in re.findall(
            r"(?:bin/|exec |entrypoint: |&& )elastic (\w+)", path.read_text(encoding="utf-8")
        )
    }  # fmt: skip
    assert started == {"bootstrap", "check", "join"}


@pytest.mark.parametrize(("where", "line"), COMMANDS)
def test_command_lines_are_ours(where: str, line: str) -> None:
    name, *args = spelled_out(shlex.split(line))
    command = KNOWN[name]
    while hasattr(command, "commands"):
        command, args = command.commands[args[0]], args[1:]
    needed = sum(parameter.param_type_name == "argument" and parameter.required for parameter in command.params)
    # In prose the file may be left out.
    command.make_context(name, args or ["run.toml"] * needed, resilient_parsing=False)


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("path", UNITS, ids=name_of)
def test_units_are_hardened_and_come_back(path: Path) -> None:
    service = unit(path)["Service"]
    assert {key: service.get(key) for key in HARDENED} == HARDENED
    assert service.get("User", "root") != "root" or service["DynamicUser"] == "yes"
    assert unit(path)["Install"]["WantedBy"] == "multi-user.target"


def test_a_peer_has_time_to_say_goodbye() -> None:
    source = (ROOT / "elastic/actors/handle.py").read_text(encoding="utf-8")
    goodbye = float(re.search(r"^LEAVE_SECONDS = ([\d.]+)", source, re.MULTILINE)[1])  # type: ignore[index]
    peer = unit(OPS / "systemd/elastic-peer.service")
    assert float(peer["Service"]["TimeoutStopSec"]) > goodbye
    assert peer["Unit"]["Requires"] in peer["Unit"]["After"]
    image = (OPS / "Dockerfile").read_text(encoding="utf-8")
    assert int(re.search(r"--stop-timeout (\d+)", image)[1]) > goodbye  # type: ignore[index]
    job = list(yaml.safe_load_all((OPS / "ray/kuberay.yaml").read_text(encoding="utf-8")))[-1]
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > goodbye


def test_ray_is_on_loopback_or_wants_a_token() -> None:
    for path in (OPS / "systemd/elastic-ray.service", OPS / "systemd/elastic-peer.service"):
        text = path.read_text(encoding="utf-8")
        assert "Environment=RAY_AUTH_MODE=token\n" in text
        assert "Environment=RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0\n" in text
        assert "LoadCredential=ray.token:" in text
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0" in (OPS / "Dockerfile").read_text(encoding="utf-8")
    assert "RAY_AUTH_MODE=token" in " ".join(read("ray/cluster.yaml")["setup_commands"])
    job = list(yaml.safe_load_all((OPS / "ray/kuberay.yaml").read_text(encoding="utf-8")))[-1]["spec"]
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_no_ray_of_ours_tells_anyone_how_it_is_used() -> None:
    for name in ("systemd/elastic-ray.service", "Dockerfile"):
        assert "RAY_USAGE_STATS_ENABLED=0" in (OPS / name).read_text(encoding="utf-8")
    cluster = read("ray/cluster.yaml")
    assert "RAY_USAGE_STATS_ENABLED=0" in " ".join(cluster["setup_commands"])
    # The launcher exports another value in front of the command.
    starts = [line for line in cluster["head_start_ray_commands"] if "ray start" in line]
    assert starts and all(line.startswith("RAY_USAGE_STATS_ENABLED=0 ray start ") for line in starts)


def test_ray_takes_the_flags_that_it_is_started_with() -> None:
    pytest.importorskip("ray")
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    asked = {
        flag
        for path in FILES
        for line in re.findall(r"\bray start (--head [^\n>'\"&`]*)", path.read_text(encoding="utf-8"))
        for flag in re.findall(r"--[a-z-]+", line)
    }
    assert "--metrics-export-port" in asked
    assert asked <= known, asked - known


def test_every_port_that_anything_here_listens_on_has_its_row() -> None:
    text = (ROOT / "docs/ports.md").read_text(encoding="utf-8")
    rows = {
        int(port)
        for cell in re.findall(r"^\| ([^|]*\d[^|]*) \|", text, re.MULTILINE)
        for port in re.findall(r"\d{4,5}", cell)
    }
    ports = {
        int(port.split(":")[1]) for each in read("compose.yaml")["services"].values() for port in each.get("ports", ())
    }
    ports |= {
        parameter.default
        for command in KNOWN.values()
        for parameter in command.params
        if parameter.name == "port" and parameter.default
    }
    for path in FILES:
        ports |= {int(port) for port in re.findall(r"port[= ](\d{4,5})\b", path.read_text(encoding="utf-8"))}
    assert 8090 in ports and 9465 in ports
    assert ports <= rows, ports - rows


def test_no_secret_is_written_on_a_command_line_or_into_a_file_that_others_may_read() -> None:
    for path in FILES:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "--from-literal" not in line and not re.search("RAY_AUTH_TOKEN\\b", line), path
            if re.search(r"openssl rand|Basic %s", line) and "ops/secrets/" not in line:
                assert "umask 077" in line, line  # ops/secrets is a folder that nobody else enters


def test_a_rented_machine_has_a_python_that_we_run_on() -> None:
    nodes = read("ray/cluster.yaml")["available_node_types"].values()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    pythons = {"ubuntu-24.04": "3.12", "ubuntu-22.04": "3.10"}
    for node in nodes:
        image = node["node_config"]["ImageId"]  # without one, Ray takes an image with Python 3.6
        (python,) = (python for system, python in pythons.items() if system in image)
        assert python in SpecifierSet(wanted)


def test_the_cluster_launcher_takes_the_cluster_and_opens_no_port_of_rays() -> None:
    ray, jsonschema = pytest.importorskip("ray"), pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    tree = read("ray/cluster.yaml")
    jsonschema.validate(tree, schema)
    rules = tree["provider"]["security_group"]["IpPermissions"]
    everyone = [rule for rule in rules if any(each["CidrIp"] == "0.0.0.0/0" for each in rule["IpRanges"])]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in everyone] == [(4001, 4001)]


def test_kubernetes_shows_others_one_port() -> None:
    kinds = {each["kind"]: each for each in yaml.safe_load_all((OPS / "ray/kuberay.yaml").read_text(encoding="utf-8"))}
    assert kinds.keys() == {"PersistentVolumeClaim", "Service", "NetworkPolicy", "RayJob"}
    assert [port["port"] for port in kinds["Service"]["spec"]["ports"]] == [4001]
    for rule in kinds["NetworkPolicy"]["spec"]["ingress"]:
        assert "from" in rule or [port["port"] for port in rule["ports"]] == [4001]
