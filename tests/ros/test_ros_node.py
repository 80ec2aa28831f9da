"""The ROS 2 node in a stand-in of its graph, with a real verifier and the frozen draft."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

import ros_double  # noqa: E402
from ros_double import wait  # noqa: E402

from draftwire.bench.child import local_verifier  # noqa: E402
from draftwire.errors import DraftwireError  # noqa: E402
from draftwire.reference import draft_path, target_path  # noqa: E402

PROMPT = "The ship sailed away over the sea until"


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    with local_verifier([target_path("v1")]) as (url, token):
        file = tmp_path_factory.mktemp("ros") / "token"
        file.write_text(token)
        yield url, str(file)


@pytest.fixture
def graph(monkeypatch):
    known, actions = ros_double.install(monkeypatch)
    node_module = importlib.import_module("draftwire_ros.node")
    executor = ros_double.Executor()
    nodes = []

    def start(activates="success", **parameters):
        node = node_module.DraftwireNode(parameter_overrides=parameters)
        node.executor = executor
        nodes.append(node)
        assert wait(executor.call(node.on_configure, None)) == "success"
        if activates == "failure":
            with contextlib.suppress(DraftwireError):
                wait(node._opening)
        assert wait(executor.call(node.on_activate, None)) == activates
        return node

    yield SimpleNamespace(start=start, known=known, executor=executor)
    for node in nodes:
        wait(executor.call(node.on_shutdown, None))
    executor.close()


def online(graph, verifier, **more):
    url, token_file = verifier
    return graph.start(verifier=url, token_file=token_file, offline="wait", **more)


def response_server(node):
    return node.servers["~/generate_response"]


def plain_text(verifier, **options):
    """Return what the library alone says."""
    import draftwire

    url, token_file = verifier
    with open(token_file) as file:
        token = file.read()
    with draftwire.connect(url, draft=draft_path(), token=token) as session:
        stream = session.generate(PROMPT, **options)
        for _ in stream:
            pass
        return stream.text


def test_a_goal_is_answered_with_the_targets_text_and_its_cost(graph, verifier):
    node = online(graph, verifier)
    handle, future = response_server(node).send(prompt=PROMPT, max_tokens=24)
    result = wait(future)
    assert handle.state == "succeeded" and result.response.finish in ("length", "stop")
    assert result.response.text == plain_text(verifier, max_new_tokens=24)
    parts = [f.partial_response for f in handle.feedback]
    assert "".join(p.text for p in parts) == result.response.text
    assert [t for p in parts for t in p.tokens] == result.response.tokens
    assert all(p.verified and not p.revised for p in parts)
    usage = result.usage
    assert usage.completion_tokens == len(result.response.tokens)
    assert 0 < usage.target_forwards < usage.completion_tokens
    assert usage.bytes_up > 0 and usage.seconds > usage.first_token > 0
    assert math.isnan(usage.joules) or usage.joules > 0


def test_sampling_stop_and_chat_reach_the_session(graph, verifier):
    node = online(graph, verifier)
    how = graph.known["SamplingConfig"](temp=0.8, top_p=0.95, seed=7, seeded=True)
    server = response_server(node)
    options = {"max_new_tokens": 24, "temperature": 0.8, "top_p": 0.95, "seed": 7}
    plain = plain_text(verifier, **options)
    for _ in range(2):
        _, future = server.send(prompt=PROMPT, max_tokens=24, sampling_config=how)
        assert wait(future).response.text == plain
    stopped = wait(server.send(prompt=PROMPT, max_tokens=40, stop=["\n"])[1]).response
    assert "\n" not in stopped.text and stopped.finish in ("stop", "length")
    message = graph.known["ChatMessage"](role="user", content="walk left twice")
    chat = node.servers["~/generate_chat_completions"]
    answer = wait(chat.send(messages=[message], max_tokens=12)[1])
    assert answer.response.tokens and answer.response.error == ""


def test_an_answer_keeps_to_a_schema_by_a_deadline(graph, verifier):
    pytest.importorskip("llguidance")
    node = online(graph, verifier)
    choice = {"enum": ["left", "right"]}
    schema = {"type": "object", "properties": {"go": choice}, "required": ["go"]}
    schema["additionalProperties"] = False
    how = graph.known["SamplingConfig"](grammar_schema=json.dumps(schema))
    goal = {"prompt": "The robot should", "sampling_config": how, "deadline": 20.0}
    found = json.loads(wait(response_server(node).send(**goal)[1]).response.text)
    assert found["go"] in choice["enum"]
    wrong = graph.known["SamplingConfig"](grammar_schema="{")
    handle, future = response_server(node).send(prompt=PROMPT, sampling_config=wrong)
    assert "schema" in wait(future).response.error and handle.state == "aborted"


def test_a_cancel_ends_a_goal_within_a_token_and_touches_no_other(
    graph, verifier, monkeypatch
):
    """Also in a graph that takes feedback so slowly that much of it waits."""
    server = response_server(online(graph, verifier))
    publish, free = ros_double.Handle.publish_feedback, threading.Event()

    def slowly(handle, message):
        publish(handle, message)
        assert handle.request.max_tokens < 400 or free.wait(60)

    monkeypatch.setattr(ros_double.Handle, "publish_feedback", slowly)
    first, one = server.send(prompt=PROMPT, max_tokens=400)
    second, two = server.send(prompt=PROMPT, max_tokens=24)
    assert wait(two).response.text == plain_text(verifier, max_new_tokens=24)
    assert second.state == "succeeded"
    until = time.monotonic() + 30
    while not first.feedback and time.monotonic() < until:
        time.sleep(0.005)
    server.cancel(first)
    free.set()
    result = wait(one)
    assert first.state == "canceled" and result.response.finish == "cancelled"
    assert len(first.feedback) == 1 < len(result.response.tokens) < 400


def test_a_goal_that_cannot_be_done_aborts_with_a_sentence(graph, verifier):
    node = online(graph, verifier)
    how = graph.known["SamplingConfig"](temp=-1.0)
    handle, future = response_server(node).send(prompt=PROMPT, sampling_config=how)
    result = wait(future)
    assert handle.state == "aborted" and result.response.finish == "error"
    assert "temperature" in result.response.error
    chat = node.servers["~/generate_chat_completions"]
    handle, future = chat.send(tools="{not json")
    assert "tools is no JSON" in wait(future).response.error and handle.state == "aborted"
    assert wait(response_server(node).send(prompt=PROMPT, max_tokens=4)[1]).response.tokens


def test_without_a_link_the_draft_answers_and_the_words_are_marked(graph):
    node = graph.start(verifier="ws://127.0.0.1:9", offline="draft")
    wait(node._opening)  # which counts against a deadline
    handle, future = response_server(node).send(prompt=PROMPT, max_tokens=8, deadline=1.5)
    result = wait(future)
    assert handle.state == "succeeded" and result.response.unverified > 0
    assert any(not f.partial_response.verified for f in handle.feedback)
    wait(graph.executor.call(node._diagnose))
    topic, message = node.published[-1]
    status = message.status[0]
    assert topic == "/diagnostics" and status.level == 1 and "link" in status.message
    assert {v.key: v.value for v in status.values}["link"] != "up"


def test_the_executors_thread_is_never_held(graph, verifier):
    """Opening, prefill, drafting and closing happen elsewhere: CPU time of the thread."""
    node = online(graph, verifier)
    server = response_server(node)
    for future in [server.send(prompt=PROMPT, max_tokens=60)[1] for _ in range(4)]:
        assert len(wait(future).response.tokens) == 60
    wait(graph.executor.call(node.on_deactivate, None))
    wait(graph.executor.call(node.on_cleanup, None))
    assert graph.executor.held_s < 0.05


def test_the_life_of_the_node(graph, verifier):
    node = online(graph, verifier)
    server = response_server(node)
    wait(server.send(prompt=PROMPT, max_tokens=4)[1])
    _, running = server.send(prompt=PROMPT, max_tokens=400)
    assert wait(graph.executor.call(node.on_deactivate, None)) == "success"
    assert wait(running).response.finish in ("cancelled", "error")
    assert server.send(prompt=PROMPT) is None, "an inactive node takes no goals"
    assert wait(graph.executor.call(node.on_cleanup, None)) == "success"
    assert node.servers == {}
    assert wait(graph.executor.call(node.on_configure, None)) == "success"
    assert wait(graph.executor.call(node.on_activate, None)) == "success"
    assert wait(response_server(node).send(prompt=PROMPT, max_tokens=4)[1]).response.tokens


def test_a_session_that_does_not_open_is_said_where_it_is_looked_for(graph):
    missing = {"draft": "/no/such.draft", "offline": "draft"}
    node = graph.start("failure", verifier="ws://127.0.0.1:9", **missing)
    assert "/no/such.draft" in node.logged[-1]
    wait(graph.executor.call(node._diagnose))
    status = node.published[-1][1].status[0]
    assert status.level == 2 and "/no/such.draft" in status.message
    assert response_server(node).send(prompt=PROMPT) is None


def test_a_goal_says_what_it_wants_of_time_and_chance(graph, verifier):
    """A deadline that is over is none that is missing; a seed may be negative."""
    node = online(graph, verifier)
    server = response_server(node)
    for deadline in (-0.1, math.nan):
        handle, future = server.send(prompt=PROMPT, max_tokens=400, deadline=deadline)
        assert "deadline" in wait(future).response.error and handle.state == "aborted"
    chat, message = node.servers["~/generate_chat_completions"], graph.known["ChatMessage"]
    words = {"messages": [message(role="user", content="go")]}
    assert "max_new_tokens" in wait(chat.send(**words, max_tokens=-1)[1]).response.error
    how = graph.known["SamplingConfig"](temp=0.8, seed=-1, seeded=True)
    found = wait(server.send(prompt=PROMPT, max_tokens=8, sampling_config=how)[1]).response
    options = {"max_new_tokens": 8, "temperature": 0.8, "seed": 2**64 - 1}
    assert found.text == plain_text(verifier, **options)


def test_whatever_goes_wrong_ends_the_goal_and_is_said(graph, verifier, monkeypatch):
    node = online(graph, verifier)
    chat = node.servers["~/generate_chat_completions"]
    handle, future = chat.send(tools="[" * 100_000)
    assert "no JSON" in wait(future).response.error and handle.state == "aborted"
    monkeypatch.setattr(wait(node._opening), "generate", lambda *a, **b: 1 / 0)
    handle, future = response_server(node).send(prompt=PROMPT)
    assert "zero" in wait(future).response.error and handle.state == "aborted"
    assert node._running == {} and node._cancelled == set()


def test_the_wait_for_the_session_counts_against_the_deadline(graph, verifier, monkeypatch):
    import draftwire

    connect, free, given = draftwire.connect, threading.Event(), []

    def late(*args, **named):
        assert free.wait(60)
        session = connect(*args, **named)
        generate = session.generate

        def noted(prompt, **options):
            given.append(options["deadline_s"])
            return generate(prompt, **options)

        session.generate = noted
        return session

    monkeypatch.setattr(draftwire, "connect", late)
    server = response_server(online(graph, verifier))
    _, plenty = server.send(prompt=PROMPT, max_tokens=4, deadline=600.0)
    _, none_left = server.send(prompt=PROMPT, max_tokens=400, deadline=0.2)
    time.sleep(0.3)
    free.set()
    assert wait(plenty).response.finish in ("length", "stop")
    assert wait(none_left).response.finish == "deadline"
    assert 0 < min(given) < 0.1 and 0 < max(given) <= 599.7


def test_a_session_that_opens_too_late_is_closed(graph, verifier, monkeypatch):
    """Cleaned up while it opened, and opened anew: the first is no session of the node."""
    import draftwire

    connect, free, opened = draftwire.connect, threading.Event(), []

    def late(*args, **named):
        first = not opened
        opened.append(None)
        assert not first or free.wait(60)
        session = connect(*args, **named)
        opened.append(session)
        return session

    monkeypatch.setattr(draftwire, "connect", late)
    node = online(graph, verifier)
    former = node._opening
    until = time.monotonic() + 30
    while not opened and time.monotonic() < until:
        time.sleep(0.005)
    for step in (node.on_deactivate, node.on_cleanup, node.on_configure, node.on_activate):
        assert wait(graph.executor.call(step, None)) == "success"
    second = wait(node._opening)
    free.set()
    with pytest.raises(DraftwireError, match="cleaned up"):
        wait(former)
    (late_one,) = [s for s in opened if s not in (None, second)]
    assert node._session is second and late_one.link.state == "closed"
    wait(graph.executor.call(node.on_shutdown, None))
    node.wait_closed(30)
    assert second.link.state == "closed"


@pytest.mark.parametrize("content", [b"\xff", b"", b"two words"])
def test_a_token_file_that_holds_none_is_said(graph, tmp_path, content):
    (tmp_path / "token").write_bytes(content)
    node = graph.start("failure", token_file=str(tmp_path / "token"))
    assert "token" in node.logged[-1]


def test_diagnostics_may_be_left_out(graph):
    node = graph.start(verifier="ws://127.0.0.1:9", diagnostics_period=0.0)
    assert graph.executor.timers == []
    assert wait(graph.executor.call(node.on_deactivate, None)) == "success"
    assert wait(graph.executor.call(node.on_cleanup, None)) == "success"
