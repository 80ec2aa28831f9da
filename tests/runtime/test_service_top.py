"""``draftwire service top``: what a board does, in 80 columns."""

import json

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

from places import draftwire  # noqa: E402
from service_lab import eventually, service, verifier  # noqa: E402

from draftwire.cli.service.top import render  # noqa: E402


def test_it_shows_what_the_service_has_done(tmp_path):
    with verifier() as (_, port), service(tmp_path, port, "--block", "2") as running:
        running.up()
        with running.client() as client:
            events = list(client.generate("the cat", max_new_tokens=12))
        work = eventually(lambda: running.status()["work"], "the report is summed")
        report = events[-1]["report"]
        assert work["tokens"] == report["tokens"] == running.status()["written"]
        assert work["target_forwards"] == report["target_forwards"]
        assert work["bytes_up_payload"] == report["bytes"]["up_payload"]
        words = ["service", "top", "--socket", str(running.socket), "--interval", "0.2"]
        said = draftwire(*words, "--count", "2").stdout
        assert "link up" in said and "1 finished" in said and "tokens/s" in said
        assert max(map(len, said.splitlines())) <= 80
        document = json.loads(draftwire(*words, "--json").stdout)
        assert document["status"]["work"] == work and document["tokens_per_s"] == 0


def test_watts_and_heat_stand_in_the_view():
    status = {
        "version": "1", "verifier": "ws://v", "draft": {"name": "d"}, "uptime_s": 7200.0,
        "target": {"name": "t"}, "memory_mib": 100.0, "clients": 2,
        "link": {"state": "up", "reconnects": 1, "down_s": 0.0, "error": None},
        "streams": dict.fromkeys("running waiting finished cancelled failed".split(), 1),
        "work": {
            "tokens": 100, "rounds": 25, "drafted": 100, "accepted": 75,
            "target_forwards": 25, "bytes_up_payload": 350, "bytes_down_payload": 270,
            "seconds_total": 10.0, "seconds_draft": 4.0, "seconds_wait": 6.0,
            "joules": 30.0, "joule_tokens": 100,
        },
    }  # fmt: skip
    power = {"watts": 6.054, "scope": "board-input", "source": "sysfs"}
    board = {"heat_c": {"cpu": 51.6}, "power_mode": "15W", "throttled": "0x0"}
    lines = render({"status": status, "power": power, "board": board}, [1.0, 4.0], "12:00")
    text = "\n".join(lines)
    assert "75 % of the drafts, 3.00 a block, 0.25 target forwards a token" in text
    assert "6.05 W (board-input, sysfs), 0.3 J a token" in text
    assert "cpu 52 °C, power mode 15W" in text and "throttled" not in text
    assert "3.5 up, 2.7 down" in text and "draft 40 %, wait 60 %" in text
    assert "▂█" in text and all(len(line) <= 80 for line in lines)
