"""Chats, live: the session's, and those of ``draftwire chat``."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from live import DRAFT, FIXTURES, connect, ids_of, serving
from places import draftwire as draftwire_command
from places import environment

import draftwire
from draftwire.errors import ConfigError
from draftwire.packages import NewFile, load_draft, load_target, write_package
from draftwire.tokenizer import load_tokenizer, tokenizer_fingerprint

PATIENCE_S = 120
_WRITTEN = ("format", "id", "files", "exits")
ASKED = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Once"}]


async def test_without_a_template_a_chat_is_a_transcript(session, verifier):
    stream = session.chat(ASKED, max_new_tokens=12)
    plain = session.generate("Be brief.\n\nUser: Once\nAssistant:", max_new_tokens=12)
    assert ids_of(stream) == ids_of(plain)
    assert stream.report["prompt_tokens"] == plain.report["prompt_tokens"]
    assert any("no chat template" in line for line in stream.report["warnings"])
    assert not any("no chat template" in line for line in plain.report["warnings"])

    async with draftwire.aio.connect(verifier.url, draft=DRAFT) as twin:
        found = [chunk.text async for chunk in twin.chat(ASKED, max_new_tokens=12)]
    assert "".join(found) == stream.text


def test_a_wrong_chat_is_refused_before_anything_is_sent(session):
    for messages, words in (
        ([], "no messages"),
        ("Once", "must be a list"),
        ([{"role": "user"}], "content must be text"),
        ([{"role": "user", "content": "\ud800"}], "no Unicode"),
        ([{"role": "user", "content": object()}], "content must be text"),
        ([{"role": "user", "content": "x", "more": object()}], "no JSON"),
        ([{"role": "tool", "content": "x"}], "takes no tool message"),
        ([{"role": "user", "content": "x " * 9000}], "holds"),
    ):
        with pytest.raises(ConfigError, match=words):
            session.chat(messages)
    with pytest.raises(ConfigError, match="no tools"):
        session.chat(ASKED, tools=[{"type": "function"}])
    with pytest.raises(ConfigError, match="temperature is 'hot'"):
        session.chat(ASKED, temperature="hot")
    with pytest.raises(TypeError, match="temprature"):
        session.chat(ASKED, temprature=1)


def changed(kind: str, out: Path, word: str, files: dict[str, bytes]) -> Path:
    """Write a tiny package whose tokenizer takes ``word`` for a special token."""
    load: Any = load_draft if kind == "draft" else load_target
    package = load(FIXTURES / f"tiny.{kind}")
    raw = json.loads(package.tokenizer_path.read_text(encoding="utf-8"))
    added = {**raw["added_tokens"][0], "content": word, "id": raw["model"]["vocab"][word]}
    raw["added_tokens"].append(added)
    scratch = out.with_suffix(".json")
    scratch.write_text(json.dumps(raw), encoding="utf-8")
    fields = {k: v for k, v in package.raw.items() if k not in _WRITTEN}
    fields["family"] = {**fields["family"], "tokenizer": tokenizer_fingerprint(scratch)}
    content = {
        name: NewFile(file.path, {k: v for k, v in file.details.items() if k != "sha256"})
        for name, file in package.files.items()
    }
    content["tokenizer.json"] = NewFile(scratch)
    content.update({name: NewFile(data) for name, data in files.items()})
    write_package(out, kind, fields, content)
    return out


def test_the_end_of_the_turn_ends_the_answer(session, tmp_path):
    """A token that the model says before long becomes what the template ends turns with."""
    tokenizer = load_tokenizer(DRAFT)
    ids = ids_of(session.generate("<Once>", max_new_tokens=120))
    words = {i: tokenizer.engine.id_to_token(i) for i in ids}
    at = next(n for n in range(4, len(ids)) if re.fullmatch("[A-Za-z]", words[ids[n]]))
    word = words[ids[at]]
    at = ids.index(ids[at])
    template = "<|endoftext|>{% for m in messages %}<{{ m.content }}>"
    template += "{% if not loop.last %}END{% endif %}{% endfor %}"
    files = {"chat_template.jinja": template.replace("END", word).encode()}
    target = changed("target", tmp_path / "t.target", word, {})
    draft = changed("draft", tmp_path / "t.draft", word, files)
    with serving(target) as verifier, connect(verifier, draft=draft) as ours:
        stream = ours.chat([{"role": "user", "content": "Once"}], max_new_tokens=120)
        assert ids_of(stream) == ids[: at + 1]
        assert stream.finish == "stop" and stream.report["warnings"] == []
        assert ids_of(ours.generate("<Once>", max_new_tokens=120)) == ids
        # A letter that is a special token at once cannot be kept as text: said so.
        with pytest.raises(ConfigError, match="spells a special token"):
            ours.chat([{"role": "user", "content": f"On{word}ce"}])


def words_of(verifier, *more: object) -> list[str]:
    words = ["chat", "--verifier", verifier.url, "--draft", str(DRAFT), "--energy", "off"]
    return [*words, *map(str, more)]


def say(verifier, text: str, *more: object) -> subprocess.CompletedProcess[str]:
    """Chat through a pipe."""
    return draftwire_command(*words_of(verifier, *more), said=text, timeout=PATIENCE_S)


def test_through_a_pipe(verifier, session, tmp_path):
    talk = "Once\n\n/reset\nOnce\n/system Be brief.\nOnce\nAnd?\n/quit\nnever\n"
    done = say(verifier, talk, "--max-new-tokens", 8, "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    reports = json.loads((tmp_path / "r.json").read_text())
    assert [report["tokens"] for report in reports] == [8] * 4
    # The second begins anew; the third has a system message, the fourth remembers.
    sizes = [report["prompt_tokens"] for report in reports]
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3]
    said = ("Be brief.", "Once", reports[2]["text"], "And?")
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said)]
    stream = session.chat(messages, max_new_tokens=8)
    list(stream)
    assert stream.text == reports[3]["text"] and stream.text in done.stdout
    costs = [line for line in done.stderr.splitlines() if line.startswith("[8 tokens, ")]
    assert len(costs) == 4 and " forwards, " in costs[0] and " B up, " in costs[0]
    assert " J" not in costs[0] and done.stderr.count("no chat template") == 1
    (tmp_path / "t.json").write_text("[{")
    for line, words, more in (
        ("/fly\n", "no command /fly", ()),
        ("x " * 9000, "holds", ()),
        ("a", "needs --tools", ("--tool-choice", "required")),
        ("a", "no file of JSON", ("--tools", tmp_path / "t.json")),
    ):
        done = say(verifier, line, *more)
        assert done.returncode == 2 and words in done.stderr


def test_what_is_no_text_is_no_message(verifier):
    words = [sys.executable, "-m", "draftwire", *words_of(verifier)]
    told = environment(PYTHONIOENCODING="utf-8:strict")
    done = subprocess.run(
        words, env=told, input=b"\xff\n", capture_output=True, timeout=600
    )
    assert done.returncode == 2 and b"not Unicode text" in done.stderr


def test_in_a_file_of_answers_are_no_prompts(verifier):
    main, other = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "draftwire", *words_of(verifier)],
        stdin=other,
        stdout=subprocess.PIPE,
        stderr=other,
        env=environment(TERM="dumb"),
    ) as process:
        os.close(other)
        os.write(main, b"/quit\n")
        try:
            assert process.communicate(timeout=PATIENCE_S)[0] == b""
        finally:
            process.kill()
            os.close(main)


def test_tools_of_a_file_are_called(verifier, tmp_path):
    pytest.importorskip("llguidance")
    tools = [{"name": "go", "parameters": {"enum": [1, 2]}}]
    (tmp_path / "t.json").write_text(json.dumps(tools))
    done = say(verifier, "Go\n", "--tools", tmp_path / "t.json", "--tool-choice", "go")
    assert done.returncode == 0, done.stderr
    call = json.loads(done.stdout.partition("<tool_call>")[2].partition("</tool_call>")[0])
    assert call["name"] == "go" and call["arguments"] in (1, 2)


def test_in_a_terminal_an_interrupt_ends_the_answer_and_not_the_chat(verifier):
    one_by_one = ("--objective", "cost", "--block", 1)
    main, other = pty.openpty()
    words = words_of(verifier, "--temperature", 1, "--seed", 5, *one_by_one)
    process = subprocess.Popen(
        [sys.executable, "-m", "draftwire", *words],
        stdin=other,
        stdout=other,
        stderr=other,
        env=environment(TERM="dumb"),
        start_new_session=True,
    )
    os.close(other)
    seen = ""

    def until(*words: str) -> None:
        nonlocal seen
        end = time.monotonic() + PATIENCE_S
        while not all(word in seen for word in words):
            assert time.monotonic() < end, seen
            if select.select([main], [], [], 1)[0]:
                seen += os.read(main, 65536).decode("utf-8", "replace")

    try:
        until("talking with", "> ")
        os.write(main, b"/help\n")
        until("/reset", "what is there stays")
        seen = ""
        os.write(main, b"Once\n")
        until("Once")
        pause = 0.2
        while "cancelled" not in seen:  # it may have ended by itself: ask again, sooner
            time.sleep(pause)
            pause *= 0.7
            process.send_signal(signal.SIGINT)
            until("tokens/s;")
            while "cancelled" not in seen and "begun anew" not in seen:
                os.write(main, b"/reset\n")  # an interrupt that came late drops the line
                seen = seen[-1:]
                until("> ")
            if "cancelled" not in seen:
                seen = ""
                os.write(main, b"Once more\n")
                until("Once more")
        seen = ""
        os.write(main, b"/fly\n")
        until("no command /fly", "> ")
        end = time.monotonic() + PATIENCE_S
        while process.poll() is None:  # one that comes between two prompts may be lost
            assert time.monotonic() < end, seen
            os.write(main, b"\x04")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)
