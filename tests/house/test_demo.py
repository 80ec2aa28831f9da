"""``draftwire demo`` as a user runs it: two processes, a websocket, the real models."""

import json
import signal
import subprocess
import sys

import pytest
from places import environment


def demo(*words, folder):
    """Start it in ``folder``; its temporary files go to ``folder/tmp``."""
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "draftwire", "demo", *words],
        cwd=folder,
        env=environment(TMPDIR=str(folder / "tmp")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def left_behind(folder):
    """Return our files in ``folder``; an engine may leave files of its own in tmp."""
    ours = [p.name for p in (folder / "tmp").glob("draftwire*")]
    return ours + [p.name for p in folder.iterdir() if p.name != "tmp"]


def test_text_then_a_table_then_the_reports(tmp_path):
    words = ["--target", "v2", "--temperature", "0.8", "--seed", "7"]
    words += ["--max-new-tokens", "12", "--json", "out.json"]
    prompts = ["One", "Two", "Three"]
    words += ["--prompt", *prompts[:2], "--prompt", *prompts[2:]]
    process = demo(*words, folder=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    reports = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert len(reports) == 3
    for report, prompt in zip(reports, prompts):
        assert report["schema"] == "draftwire.report/1"
        how = {name: report["sampling"][name] for name in ("scheme", "temperature", "seed")}
        assert how == {"scheme": "coupled", "temperature": 0.8, "seed": 7}
        assert report["target"]["name"].startswith("v2")
        assert 1 <= report["tokens"] == len(report["token_ids"]) <= 12
        assert prompt + report["text"] in out
    assert "\x1b" not in out and "cloud-only" in out
    assert left_behind(tmp_path) == ["out.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing_behind(number, tmp_path):
    process = demo("--max-new-tokens", "400", folder=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("frozen draft here")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert left_behind(tmp_path) == []
