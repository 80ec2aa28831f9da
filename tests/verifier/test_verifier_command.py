"""``draftwire verifier`` as processes: first line, tokens, signals, new targets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec

import pytest

pytest.importorskip("onnxruntime")

from pieces import target_only
from places import full_disk
from verifier_process import ROOT, TINY, serving

import draftwire
from draftwire.cli import main
from draftwire.errors import RefusedError
from draftwire.packages import identity
from draftwire.sampling import SamplingParams
from draftwire.verifier.backends.onnx_target import OnnxTarget

DRAFT = ROOT / "tests" / "fixtures" / "tiny.draft"


def check(url, capsys, *words):
    code = main(["verifier", "check", url, "--health", "--json", *map(str, words)])
    text = capsys.readouterr().out
    return code, json.loads(text) if text else None


def test_a_device_gets_the_targets_text_and_sigterm_ends_it(tmp_path, capsys):
    token = tmp_path / "token"
    assert main(["verifier", "token", "--out", str(token)]) == 0
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    word = token.read_text().strip()
    with serving("--target", TINY, "--token-file", token, folder=tmp_path) as (
        process,
        url,
    ):
        capsys.readouterr()
        code, health = check(url, capsys)
        assert code == 0 and health["status"] == "ok" and "targets" not in health
        code, health = check(url, capsys, "--token-file", token)
        assert health["targets"][0]["version"] == "v1"
        with pytest.raises(RefusedError):
            draftwire.connect(url, draft=DRAFT, token="wrong" * 5).close()
        with draftwire.connect(url, draft=DRAFT, token=word) as session:
            prompt = [5, 6, 7, 8]
            found = [
                t.id
                for chunk in session.generate(prompt, max_new_tokens=24)
                for t in chunk.tokens
            ]
        whole = OnnxTarget(TINY, slots=1, threads=1)
        assert found == target_only(whole, prompt, SamplingParams(), 24)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert check(url, capsys)[0] == 4


def test_new_targets_come_and_go_while_it_runs(tmp_path, capsys):
    shop = tmp_path / "targets"
    shop.mkdir()
    words = ("--targets-dir", shop, "--scan-seconds", "0.1")

    def wait_for(count):
        for _ in range(200):
            code, health = check(url, capsys)
            if len(health["targets"]) == count:
                assert code == (0 if count else 4)
                return
            time.sleep(0.05)
        pytest.fail(f"never saw {count} targets")

    with serving(*words, folder=tmp_path) as (process, url):
        wait_for(0)
        (shop / "broken.target").mkdir()
        (shop / "broken.target" / "target.json").write_text("{}")
        shutil.copytree(TINY, shop / ".new.partial")
        os.rename(shop / ".new.partial", shop / "tiny.target")
        wait_for(1)
        process.send_signal(signal.SIGHUP)
        shutil.rmtree(shop / "tiny.target")
        wait_for(0)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "cannot serve broken.target" in process.stderr.read()


def test_sighup_takes_a_target_in_its_place_and_logs_are_objects(tmp_path, capsys):
    mine = tmp_path / "mine.target"
    shutil.copytree(TINY, mine)
    words = ("--target", mine, "--log-format", "json", "-v")
    with serving(*words, folder=tmp_path) as (process, url):
        _, health = check(url, capsys)
        before = [t["version"] for t in health["targets"]]
        with draftwire.connect(url, draft=DRAFT) as session:
            stream = session.generate("Once upon a time", max_new_tokens=24)
            manifest = json.loads((mine / "target.json").read_text())
            manifest["version"] = "v77"
            manifest["id"] = identity("target", manifest)
            (mine / "target.json").write_text(json.dumps(manifest))
            process.send_signal(signal.SIGHUP)
            for _ in range(400):
                _, health = check(url, capsys)
                if [t["version"] for t in health["targets"]] == ["v77"]:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("v77 never came")
            text = "".join(chunk.text for chunk in stream)
            assert text and stream.report["target"]["version"] == before[0]
        with draftwire.connect(url, draft=DRAFT) as session:
            again = session.generate("Once upon a time", max_new_tokens=24)
            assert "".join(chunk.text for chunk in again) == text
            assert again.report["target"]["version"] == "v77"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert all({"time", "level", "logger", "message", "event"} <= set(x) for x in lines)
    (retired,) = [x for x in lines if x["event"].startswith("retiring")]
    assert retired["level"] == "info" and retired["args"][0].endswith(before[0])


def test_sighup_takes_new_tokens_and_a_bad_file_changes_nothing(tmp_path, capsys):
    tokens = tmp_path / "tokens"
    tokens.write_text("a" * 20 + "\n")
    tokens.chmod(0o600)
    words = ("--target", TINY, "--token-file", tokens, "--admin", "127.0.0.1:0")

    def taken(token, wanted):
        mine = tmp_path / "mine"
        mine.write_text(token)
        for _ in range(200):
            code, health = check(url, capsys, "--token-file", mine)
            assert code == 0  # who shows a wrong token is told that it works, and no names
            if ("targets" in health) is wanted:
                return
            time.sleep(0.05)
        pytest.fail(f"{token} never became {wanted}")

    with serving(*words, folder=tmp_path) as (process, url):
        admin = process.stdout.readline().split()[-1]
        with urllib.request.urlopen(f"{admin}/metrics", timeout=10) as answer:
            assert b"draftwire:connections" in answer.read()
        taken("a" * 20, True)
        tokens.write_text("short\n")
        process.send_signal(signal.SIGHUP)
        taken("a" * 20, True)
        tokens.write_text("b" * 20 + "\n")
        process.send_signal(signal.SIGHUP)
        taken("b" * 20, True)
        taken("a" * 20, False)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "line 1: a line begins with a token" in process.stderr.read()


def test_verifiers_are_checked_with_targets_known_and_unknown(tmp_path, capsys):
    token = tmp_path / "token"
    main(["verifier", "token", "--out", str(token)])
    words = ("--target", TINY, "--target", "kit", "--token-file", token)
    with serving(*words, folder=tmp_path) as (_, url):
        capsys.readouterr()
        secret = ["--token-file", str(token)]
        for target, exhaust in (
            (["--target", "kit"], ["--exhaust"]),
            (["--draft", DRAFT], []),
        ):
            check = ["verifier", "check", url, "--quick", *map(str, target), *secret]
            code = main([*check, *exhaust, "--json"])
            found = json.loads(capsys.readouterr().out)
            assert [r for r in found["rows"] if r["result"] == "fails"] == []
            assert (code, found["conforms"], found["counts"]["fails"]) == (0, True, 0)
            untested = [r for r in found["rows"] if r["result"] == "not tested"]
            assert len(untested) == found["counts"]["not tested"] < 8
            assert all(r["detail"] for r in untested)
            assert ("error busy" in {r["name"] for r in untested}) is not bool(exhaust)
        assert main(["verifier", "check", url, "--target", "kit"]) == 4  # no token
        assert "--token-file" in capsys.readouterr().err


def test_the_kit_and_its_target_leave_nothing_behind(tmp_path, monkeypatch):
    place = tmp_path / "temp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    with serving("--target", "kit", folder=tmp_path, TMPDIR=str(place)) as (process, url):
        words = ["verifier", "check", url, "--target", "kit", "--quick", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "draftwire", *words], capture_output=True, timeout=600
        )
        found = {row["name"]: row["result"] for row in json.loads(done.stdout)["rows"]}
        assert done.returncode == 0, found
        grammars = find_spec("llguidance") is not None
        kept = found["a grammar: drafts change nothing"]
        assert kept == ("conforms" if grammars else "not tested")
        process.kill()
        process.wait(20)
    assert [*place.iterdir()] == []


def test_a_device_is_tried_by_its_command(capsys):
    words = ["generate", "Once upon a time", "--verifier", "{url}", "--draft", str(DRAFT)]
    device = [sys.executable, "-m", "draftwire", *words, "--max-new-tokens", "16"]
    assert main(["verifier", "mimic", "--only", "link lost after", "--", *device]) == 0
    said = capsys.readouterr().out
    assert "link lost after a commit" in said and " conforms to draftwire.v2" in said
    sloppy = [sys.executable, "-c", "pass"]
    mimic = ["verifier", "mimic", "--only", "a text from", "--patience", "1"]
    assert main([*mimic, "--json", "--", *sloppy]) == 4
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["detail"] == "no device came within 1 s"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--host", "0.0.0.0"], "plain ws://"),
        (["--host", "0.0.0.0", "--insecure"], "without a token"),
        (["--tls-cert", "x.pem"], "--tls-key"),
        (["--tls-cert", "x.pem", "--tls-key", "y.pem"], "TLS cannot start"),
        (["--token-file", "gone"], "token file"),
        (["--max-block", "400"], "block"),
        (["--prefill-chunk", "900"], "900"),
        (["--default", "v9"], "'v9'"),
        (["--target", "gone.target"], "no target at"),
        (["--port", "70000"], "--port"),
    ],
)
def test_wrong_options_are_one_sentence(words, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = ["verifier", "serve", "--port", "0", "--target", str(TINY)]
    assert main([*base, "--threads", "1", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("draftwire: error: ") and complaint in lines[0], lines


@pytest.mark.parametrize("flag", ["--port", "--admin"])
def test_an_address_in_use_names_its_flag(flag, capsys):
    words = ["verifier", "serve", "--port", "0", "--target", str(TINY), "--threads", "1"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words += [flag, port if flag == "--port" else f"127.0.0.1:{port}"]
        assert main(words) == 2
    said = capsys.readouterr().err
    assert f"port {port}: Address already in use" in said
    assert f"hint: choose another {flag}" in said


def test_a_readable_token_file_is_warned_about(tmp_path, caplog):
    from draftwire.verifier.serving.accounts import Account, read_accounts

    file = tmp_path / "token"
    file.write_text("x" * 20 + "\n")
    file.chmod(0o640)
    assert read_accounts(file) == (Account("x" * 20),)
    assert "chmod 600" in caplog.text


def test_a_token_is_never_overwritten(tmp_path, capsys):
    file = tmp_path / "token"
    file.write_text("old")
    assert main(["verifier", "token", "--out", str(file)]) == 2
    assert file.read_text() == "old"
    assert main(["verifier", "token"]) == 0
    assert len(capsys.readouterr().out.strip()) >= 32


def test_tokens_with_limits_are_added_to_a_file(tmp_path, capsys):
    from draftwire.verifier.serving.accounts import read_accounts

    file = tmp_path / "tokens"
    words = ["verifier", "token", "--out", str(file), "--append"]
    assert main(words) == 0
    assert main([*words, "--limits", "name=arm sessions=2 blocks_per_s=50"]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text(file.read_text().rstrip())  # as an editor may leave it
    assert main([*words, "--limits", "name=leg"]) == 0
    first, second, third = read_accounts(file)
    assert third.name == "leg"
    assert (first.name, first.sessions) == ("default", None)
    assert (second.name, second.sessions, second.blocks_per_s) == ("arm", 2, 50.0)
    before = file.read_text()
    for more in (["--limits", "name=arm"], ["--limits", "speed=9"], []):
        assert main([*words, *more]) == 2
    assert main(["verifier", "token", "--append"]) == 2
    with full_disk(len(before) + 9):
        assert main([*words, "--limits", "name=hand"]) == 6
    assert file.read_text() == before
    with full_disk():
        assert main(["verifier", "token", "--out", str(tmp_path / "new")]) == 6
    assert not (tmp_path / "new").exists()
    said = capsys.readouterr()
    assert "no limit 'speed'" in said.err
    assert main(["verifier", "token", "--limits", "sessions=1"]) == 0
    assert capsys.readouterr().out.endswith(" sessions=1\n")
