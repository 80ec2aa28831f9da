"""``draftwire verifier top``: rates between two pages, in 80 columns, on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time

import pytest
from verifier_lab import ArithmeticBackend, get, greeted, serving
from verifier_process import ENVIRONMENT, TINY
from verifier_process import serving as serving_process

from draftwire.cli import main
from draftwire.verifier.serving.top import Top, read_page


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
        for _ in range(600):
            if heard.count(b"devices ") > 2:
                break
            time.sleep(0.05)
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
