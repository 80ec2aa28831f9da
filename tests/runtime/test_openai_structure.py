"""OpenAI's fields for structure: formats, tools, and the answers that come of them."""

import json

import pytest

from draftwire.runtime.service.http import HttpError
from draftwire.runtime.service.openai import Answer, Done, Response, read_ask
from draftwire.runtime.tools import Call

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "go", "parameters": SCHEMA}}
FLAT = {"type": "function", "name": "go", "parameters": SCHEMA, "strict": True}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "there"}
NO_OUTPUT = {"type": "function_call_output", "call_id": "1"}
COMPACT = '{"type":"object","properties":{"x":{"type":"integer"}}}'


def ask(kind="chat", **fields):
    plain = {"response": {"input": "hi"}, "text": {"prompt": "hi"}}
    body = {**plain.get(kind, {"messages": MESSAGES}), **fields}
    return read_ask(kind, json.dumps(body).encode())


def named(**inside):
    return {"type": "json_schema", "json_schema": inside}


@pytest.mark.parametrize(
    ("kind", "form", "options"),
    [
        ("chat", {"type": "text"}, {}),
        ("chat", None, {}),
        ("chat", {"type": "json_object"}, {"schema": '{"type":"object"}'}),
        ("chat", named(name="s", strict=True, schema=SCHEMA), {"schema": COMPACT}),
        ("text", {"type": "json_object"}, {"schema": '{"type":"object"}'}),
        (
            "response",
            {"type": "json_schema", "name": "s", "schema": SCHEMA},
            {"schema": COMPACT},
        ),
        ("response", {"type": "text"}, {}),
        ("chat", {"type": "regex", "regex": "a+"}, {"regex": "a+"}),
        ("chat", {"type": "choice", "choice": ["a", "b"]}, {"choice": ("a", "b")}),
    ],
)
def test_a_format_is_an_option_of_the_stream(kind, form, options):
    fields = {"text": {"format": form}} if kind == "response" else {"response_format": form}
    assert dict(ask(kind, **fields).options) == options
    found = ask(draftwire={"schema": SCHEMA, "force": False}).options
    assert dict(found) == {"schema": COMPACT, "force": False}


REFUSED = [
    *(
        ("chat", {"response_format": form}, "response_format" + where)
        for form, where in (
            ({"type": "xml"}, ""),
            ("json", ""),
            ({"type": "json_schema"}, ""),
            (named(schema=5), ""),
            ({}, ""),
            ({"json_schema": {"schema": SCHEMA}}, ""),
            ({"type": "text", "x": 1}, ".x"),
            ({"type": "json_schema", "json_schema": 5}, ".json_schema"),
            (named(schema=SCHEMA, strict="yes"), ".json_schema.strict"),
            ({"type": "choice", "choice": []}, ""),
        )
    ),
    ("response", {"text": {"format": {"type": "json_schema"}}}, "text.format"),
    ("response", {"text": {"format": {"schema": SCHEMA}}}, "text.format.schema"),
    *(("chat", {"tools": tools}, "tools") for tools in ({}, [{}], "go")),
    ("chat", {"tools": [TOOL], "tool_choice": "fly"}, "tool_choice"),
    ("chat", {"tool_choice": "required"}, "tool_choice"),
    ("chat", {"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ("text", {"tools": [TOOL]}, "tools"),
    *(
        ("response", {"tools": [{"type": kind}]}, "tools")
        for kind in ("web_search", "function")
    ),
    ("response", {"tools": [FLAT], "tool_choice": "fly"}, "tool_choice"),
    ("response", {"tool_choice": "required"}, "tool_choice"),
    *(
        ("response", {"input": [item]}, "input")
        for item in (
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "name": "go"},
            {"type": "function_call", "call_id": "1"},
            NO_OUTPUT,
        )
    ),
]


@pytest.mark.parametrize(("kind", "fields", "param"), REFUSED)
def test_what_is_no_format_or_tool_is_named(kind, fields, param):
    with pytest.raises(HttpError) as caught:
        ask(kind, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_tools_and_their_choice():
    found = ask(tools=[TOOL])
    assert (found.tools, found.tool_choice, found.parallel) == ([TOOL], "auto", True)
    named = {"type": "function", "function": {"name": "go"}}
    found = ask(tools=[TOOL], tool_choice=named, parallel_tool_calls=False)
    assert (found.tool_choice, found.parallel) == (named, False)
    assert ask(tools=[], tool_choice="auto").tools is None


def test_calls_in_an_answer():
    calls = [Call("go", '{"x":3}'), Call("go", '{"x":4}')]
    done = Done("", "stop", {}, calls=calls)
    form = Answer(ask(tools=[TOOL]), "v1")
    (choice,) = form.whole([done])["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls" and message["content"] is None
    said = [(c["type"], c["function"]) for c in message["tool_calls"]]
    assert said == [("function", {"name": "go", "arguments": c.arguments}) for c in calls]
    assert len({c["id"] for c in message["tool_calls"]}) == 2
    events = [data["choices"][0] for _, data in form.over(0, done)]
    assert [c["index"] for c in events[0]["delta"]["tool_calls"]] == [0, 1]
    assert events[-1]["finish_reason"] == "tool_calls" and events[-1]["delta"] == {}


def test_an_answer_with_tools_that_calls_none():
    form = Answer(ask(tools=[TOOL]), "v1")
    done = Done("No.", "stop", {}, calls=[])
    (choice,) = form.whole([done])["choices"]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == "No."
    assert "tool_calls" not in choice["message"]
    events = [data["choices"][0] for _, data in form.over(0, done)]
    assert events[0]["delta"] == {"content": "No."}
    cut = Done("", "length", {}, calls=[])
    assert form.whole([cut])["choices"][0]["finish_reason"] == "length"


def test_a_response_says_its_format():
    form = {"type": "json_schema", "name": "s", "schema": SCHEMA}
    found = Response(ask("response", text={"format": form}), "v1")
    assert found.whole([Done('{"x":1}', "stop", {})])["text"]["format"]["schema"] == SCHEMA


def test_tools_of_a_response_and_what_they_gave():
    call = {"type": "function_call", "call_id": "1", "name": "go", "arguments": '{"x": 3}'}
    spoken = {"role": "assistant", "content": [{"type": "output_text", "text": "I go."}]}
    items = [{"role": "user", "content": "go"}, spoken, call, {**call, "call_id": "2"}]
    found = ask("response", input=[*items, OUTPUT], tools=[FLAT])
    inside = {k: v for k, v in FLAT.items() if k != "type"}
    assert found.tools == [{"type": "function", "function": inside}]
    _, said, told = found.prompts[0]
    assert said["content"] == "I go." and [c["id"] for c in said["tool_calls"]] == [
        "1",
        "2",
    ]
    assert said["tool_calls"][0]["function"] == {"name": "go", "arguments": {"x": 3}}
    assert told == {"role": "tool", "tool_call_id": "1", "content": "there"}


@pytest.mark.parametrize("text", ["", "I go."])
def test_calls_in_a_response(text):
    calls = [Call("go", '{"x":3}'), Call("go", '{"x":4}')]
    done = Done(text, "stop", {}, calls=calls)
    form = Response(ask("response", tools=[FLAT], stream=True), "v1")
    events = [data for _, data in (*form.begin(), *form.over(0, done), *form.end([done]))]
    assert [data["sequence_number"] for data in events] == list(range(len(events)))
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["message"] * bool(text) + [
        "function_call",
        "function_call",
    ]
    for place, item in enumerate(items):
        mine = [data for data in events if data.get("output_index") == place]
        assert mine[0]["type"] == "response.output_item.added"
        assert mine[-1] == {**mine[-1], "type": "response.output_item.done", "item": item}
        said = "".join(data.get("delta", "") for data in mine)
        assert said == (item["arguments"] if "arguments" in item else text)
    assert events[-1]["response"]["tools"] == [FLAT]
