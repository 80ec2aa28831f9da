"""The metrics page: what a scraper reads, what the board asks for, what the docs list."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from verifier_lab import ArithmeticBackend, continuation, get, greeted, run, serving

from draftwire.transport.messages import Block, Bye, Error
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.metrics import METRICS, PREFIX
from draftwire.verifier.tally import Tally

DOCS = Path(__file__).resolve().parents[2] / "docs"
SAMPLE = re.compile(r"([a-z0-9_:]+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-z_]+)="([^"]*)"')


def samples(page):
    """Return {(name, labels): value} of a page."""
    found = {}
    for line in page.splitlines():
        if not line.startswith("#"):
            name, labels, value = SAMPLE.fullmatch(line).groups()
            of = frozenset(LABEL.findall(labels or ""))
            assert (name, of) not in found
            found[name, of] = float(value)
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
    page = await busy()
    found = samples(page)
    named = {name for name, _ in found}
    for name in METRICS:
        full = name if name.startswith("process_") else PREFIX + name
        # A gateway's own are on a gateway's page: test_gateway.py.
        own = name.startswith("gateway_")
        assert bool({full, f"{full}_count"} & named) is not own, name
    of = frozenset({("model_name", "sum"), ("model_version", "v1")})

    def count(name, *more):
        return found[PREFIX + name, of | set(more)]

    assert count("num_preemptions_total") == count("num_rebuilds_total") == 1
    assert count("request_success_total", ("finished_reason", "abort")) == 1
    assert count("request_success_total", ("finished_reason", "length")) == 3
    assert count("e2e_request_latency_seconds_count") == 4
    assert count("time_to_first_token_seconds_count") == 3
    assert count("kv_cache_usage_perc") in (0, 1)
    kept = count("spec_decode_num_accepted_tokens_total")
    places = [
        value for (name, _), value in found.items() if name.endswith("_per_pos_total")
    ]
    assert sum(places) == kept > 0
    assert places == sorted(places, reverse=True)
    assert max(places) <= count("spec_decode_num_drafts_total")
    assert found[f"{PREFIX}refusals_total", frozenset({("code", "request")})] == 1
    assert found["process_resident_memory_bytes", frozenset()] > 1 << 20


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
    names = {
        name
        for expr in asked
        for name in re.findall(r"(?:draftwire:|process_)[a-z0-9_]+", expr)
    }
    there = {name for name, _ in samples(run(busy))}
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
