"""Real verifiers behind a real gateway, processes all, killed and drained under devices."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tools.fleet import EVENTS, Settings, bench_fleet, render

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.mark.timeout(300)
def test_verifiers_and_the_gateway_come_and_go_and_no_text_differs():
    small = Settings(
        FIXTURES / "tiny.draft",
        FIXTURES / "tiny.target",
        verifiers=2,
        devices=2,
        seconds=1.0,
        tokens=24,
    )
    document = bench_fleet(small, say=lambda line: None)
    assert document["wrong"] == 0
    assert document["texts"] >= 8
    # The gateway was killed, so every device has come back at least once.
    assert document["reconnects"] >= 2
    assert [row["event"] for row in document["events"]] == list(EVENTS)
    assert "0 wrong" in render(document)
