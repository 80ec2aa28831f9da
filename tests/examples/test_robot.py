"""The plan loop gives commands that the robot knows, with a link and without."""

import json
import subprocess
import sys

import pytest
from places import MODELS, ROOT, environment
from service_lab import verifier

pytest.importorskip("llguidance")
pytest.importorskip("onnxruntime")


def commands(url):
    done = subprocess.run(
        [sys.executable, "examples/robot_plan.py", url],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "no plan" not in done.stderr, done.stderr
    return [json.loads(line.partition(": ")[2]) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("linked", [True, False])
def test_every_step_is_a_command(linked):
    if linked:
        with verifier(target=MODELS / "v2.target") as (_, port):
            found = commands(f"ws://127.0.0.1:{port}")
    else:
        found = commands("ws://127.0.0.1:9")
    assert len(found) == 4
    for command in found:
        assert command["gait"] in ("stand", "walk", "trot")
        assert command["forward"] in (0, 1, 2) and command["turn"] in (-1, 0, 1)
        assert linked or command["forward"] < 2  # guesses are walked slowly
