"""The metrics page: what a scraper reads, what the board asks for, what the docs list."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from verifier_lab import ArithmeticBackend, continuation, get, greeted, run, serving
from verifier_process import ENVIRONMENT, TINY
from verifier_process import serving as serving_process

from draftwire.cli import main
from draftwire.transport.messages import Block, Bye, Error
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.metrics import METRICS, PREFIX
from draftwire.verifier.serving.top import Top, read_page
from draftwire.verifier.tally import Tally

DOCS = Path(__file__).resolve().parents[2] / "docs"


def samples(page):
    found = read_page(page)
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    assert sum(map(len, found.values())) == len(lines), "none of them comes twice"
    return found


async def busy():
    """Return the page of a verifier that has had streams of every kind."""
    limits = Limits(resume_s=60.0)
    async with serving(ArithmeticBackend(slots=1), limits=limits) as service:
        async with greeted(service) as dev:
            await dev.generate([3, 4], 12, k=4)
            await dev.open([9, 9], 20)
            await dev.say(Bye())
            await dev.hear()
            await dev.open([5] * 300, 9)  # more than the context
            while isinstance(opened := await dev.open([1, 2, 3], 20), Error):
                await asyncio.sleep(0.01)  # the slot of the last one is on its way back
            await dev.say(Block(0, 0, tuple(continuation([1, 2, 3], 3))))
            await dev.hear()
            dev.cut()
        while not len(service.kept):
            await asyncio.sleep(0.01)
        async with greeted(service) as dev:  # takes the only slot meanwhile
            await dev.generate([8], 5)
            resumed = await dev.resume(opened, 4)
            await dev.go_on([1, 2, 3], continuation([1, 2, 3], 4), resumed.epoch)
            return (await get(service, "/metrics"))[1]


async def test_each_metric_is_there_and_says_what_happened():
    found = samples(await busy())
    for name in METRICS:
        # A gateway's own are on a gateway's page: test_gateway.py.
        own = name.startswith("gateway_")
        assert bool({name, f"{name}_count"} & set(found)) is not own, name
    of = ("model_name", "sum"), ("model_version", "v1")

    def count(name, *more):
        return found[name][tuple(sorted((*of, *more)))]

    assert count("num_preemptions_total") == count("num_rebuilds_total") == 1
    assert count("request_success_total", ("finished_reason", "abort")) == 1
    assert count("request_success_total", ("finished_reason", "length")) == 3
    assert count("e2e_request_latency_seconds_count") == 4
    assert count("time_to_first_token_seconds_count") == 3
    assert count("kv_cache_usage_perc") in (0, 1)
    kept = count("spec_decode_num_accepted_tokens_total")
    (rows,) = (v for name, v in found.items() if name.endswith("_per_pos_total"))
    places = list(rows.values())
    assert sum(places) == kept > 0
    assert places == sorted(places, reverse=True)
    assert max(places) <= count("spec_decode_num_drafts_total")
    assert found["refusals_total"][("code", "request"),] == 1
    assert found["process_resident_memory_bytes"][()] > 1 << 20


def test_a_scraper_reads_the_page():
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(run(busy)))
    kinds = {family.name: family.type for family in families}
    assert kinds["draftwire:time_to_first_token_seconds"] == "histogram"
    assert kinds["draftwire:spec_decode_num_drafts"] == "counter"
    assert kinds["draftwire:num_requests_running"] == "gauge"
    assert all(family.documentation and family.samples for family in families)
    for family in families:
        if family.type == "histogram":
            counts = [s.value for s in family.samples if s.name.endswith("_bucket")]
            assert counts == sorted(counts)


def test_the_board_asks_for_nothing_that_is_not_there():
    board = json.loads((DOCS / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [v["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    pattern = "(?:" + PREFIX + "|(?=process_))([a-z0-9_]+)"
    names = {name for expr in asked for name in re.findall(pattern, expr)}
    there = set(samples(run(busy)))
    assert names - there == set()
    assert len(names) > 25
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]}
    assert len(places) == len(board["panels"])
    for expr in asked:
        assert expr.count("(") == expr.count(")") and expr.count("{") == expr.count("}")


def test_the_docs_list_every_metric():
    text = (DOCS / "operating.md").read_text()
    for name in METRICS:
        full = name if name.startswith("process_") else PREFIX + name
        assert f"`{full}" in text, name
    listed = set(re.findall(r"\| `draftwire:([a-z0-9_]+)", text))
    assert listed - set(METRICS) == set()


def test_places_count_what_was_kept_of_each_draft():
    tally = Tally()
    for drafted, accepted in ((3, 3), (5, 1), (0, 0), (2, 0)):
        tally.judged(drafted, accepted)
    assert (tally.drafts, tally.by_position) == (3, [2, 1, 1, 0, 0])


# ---- draftwire verifier top: rates between two pages, in 80 columns, on a terminal


async def test_rates_are_those_between_two_pages():
    """Before and after a device's text of 12 tokens, k = 4."""
    backend = ArithmeticBackend(slots=4)
    backend.name = "su\x1b[31mm"
    async with serving(backend) as service, greeted(service) as dev:
        await dev.open([1], 9, stream=5)
        before = read_page((await get(service, "/metrics"))[1])
        await dev.generate([3, 4], 12, k=4, wrong_every=5)
        after = read_page((await get(service, "/metrics"))[1])
    top = Top("ws://here")
    top.take(before, 100.0)
    first = top.document()
    assert first["targets"][0]["tokens_per_s"] is None
    assert "-" in "".join(top.render())
    top.take(after, 102.0)
    (target,) = top.document()["targets"]
    assert target["tokens_per_s"] == 12 / 2
    drafts = target["by_position"]
    assert drafts == sorted(drafts, reverse=True) and 0 < drafts[0] <= 1
    accepted = sum(drafts)
    assert target["accepted_per_draft"] == pytest.approx(accepted)
    assert accepted / 4 <= target["acceptance"] < 1  # the last draft was cut
    assert (target["running"], target["kv_cache_usage"]) == (1, 0.25)
    lines = top.render("12:00:00")
    text = "\n".join(lines)
    assert "su [31mm v1" in text and "\x1b" not in text  # nothing that a terminal obeys
    assert all(len(line) <= 80 for line in lines)
    assert len(top.render(height=7)) == 7
    assert lines[0].endswith("12:00:00")

    top.take(before, 104.0)  # the verifier began anew: no negative rates
    assert top.document()["targets"][0]["tokens_per_s"] == 0


@pytest.mark.parametrize("page", ["<html></html>", "", "up 1\n", "draftwire:strangers x y"])
def test_another_page_is_no_verifiers(page):
    with pytest.raises(ValueError):
        read_page(page)


def test_a_terminal_shows_it_until_q(tmp_path, capsys):
    with serving_process("--target", TINY, folder=tmp_path) as (_, url):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        words = ["verifier", "top", url, "--interval", "0.2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "draftwire", *words],
            env=ENVIRONMENT,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.close(theirs)
        heard = bytearray()

        def read():
            try:
                while data := os.read(ours, 1 << 16):
                    heard.extend(data)
            except OSError:
                pass  # the end of a terminal

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        for rows, columns in ((24, 80), (4, 30)):  # somebody makes the window small
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            begun = len(heard)
            for _ in range(600):
                if heard.count(b"devices ", begun) > 2:
                    break
                time.sleep(0.05)
        frame = bytes(heard).split(b"\x1b[H")[-2]
        shown = re.split(rb"\x1b\[K\r+\n", frame)[:-1]  # a terminal may add a return
        assert len(shown) == 3 and max(map(len, shown)) == 30
        os.write(ours, b"q")
        assert process.wait(30) == 0, process.stderr.read()
        process.stderr.close()
        reader.join(10)
        os.close(ours)
        text = bytes(heard)
        assert text.startswith(b"\x1b[?1049h\x1b[?25l") and b"\x1b[?1049l" in text
        assert url.encode() in text and b"accept" in text

        assert main(["verifier", "top", url, "--count", "1"]) == 0
        assert "target" in capsys.readouterr().out
        assert main(["verifier", "top", url, "--json", "--interval", "0.1"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["targets"][0]["tokens_per_s"] == 0
    assert main(["verifier", "top", url, "--count", "1"]) == 4
    assert "no verifier shows its metrics" in capsys.readouterr().err
    assert main(["verifier", "top", "ftp://x"]) == 2
