"""The manifests of deploy/kubernetes.yaml: words that draftwire knows, ports that meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftwire.cli import parse

yaml = pytest.importorskip("yaml")
FILE = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes.yaml"


def test_every_command_is_one_of_ours_and_the_pieces_meet():
    documents = list(yaml.safe_load_all(FILE.read_text("utf-8")))
    named = {(d["kind"], d["metadata"]["name"]): d["spec"] for d in documents}
    parsed = {}
    for name in ("verifier", "gateway"):
        pod = named["Deployment", name]["template"]["spec"]
        (container,) = pod["containers"]
        program, *words = container["args"]
        assert program == "draftwire"
        args = parsed[name] = parse(words)
        ports = {port["containerPort"] for port in container["ports"]}
        assert ports == {args.port, args.admin[1]}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert str(Path(args.token_file).parent) in mounted
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
