"""Clients that know nothing of draftwire, against a running service.

    python openai_clients.py openai|langchain|litellm BASE_URL TOKEN EXPECTED_JSON

Runs in an environment of its own (requirements/clients.txt) and ends with 0 when all is
as expected: ``EXPECTED_JSON`` holds the messages, the prompt, and what a session says.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {"how": {"enum": ["slow", "fast"]}},
    "required": ["how"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
# One call: so small a model would write others to the end of its context.
ONE = {"tool_choice": "required", "parallel_tool_calls": False}


def refuses(kind: type[Exception], call: Any, *words: str) -> Any:
    """Call, and return the exception that must come."""
    try:
        call()
    except kind as exc:
        assert all(word in str(exc) for word in words), exc
        return exc
    raise AssertionError(f"{kind.__name__} was expected")


def with_tools(client: Any, messages: Any, prompt: str) -> None:
    """Calls of tools and answers that keep to a schema."""
    chat, answer = client.chat.completions.create, client.responses.create
    (choice,) = chat(model="v1", messages=messages, tools=[TOOL], **ONE).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call, *_) = choice.message.tool_calls
    assert call.function.name == "f" and json.loads(call.function.arguments)["how"]
    named = {"type": "function", "function": {"name": "f"}}
    asked = {"model": "v1", "messages": messages, "tools": [TOOL], "stream": True}
    pieces = list(chat(tool_choice=named, **asked))
    said = [c for p in pieces for c in p.choices[0].delta.tool_calls or ()]
    assert [c.function.name for c in said] == ["f"]
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    whole = chat(model="v1", messages=messages, response_format=form)
    assert list(json.loads(whole.choices[0].message.content)) == ["how"]

    flat = {"type": "function", "strict": True, **TOOL["function"]}
    asked = {"model": "v1", "input": messages, "tools": [flat], **ONE}
    (call,) = answer(**asked).output
    assert call.type == "function_call" and json.loads(call.arguments)["how"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    items = [*messages, call.model_dump(exclude_none=True), output]
    refuses(  # the reference family has no template, which says how calls are told
        Exception,
        lambda: answer(model="v1", input=items, max_output_tokens=8),
        "transcript takes no",
    )
    with client.responses.stream(**asked) as events:
        kinds = [event.type for event in events]
        (same,) = events.get_final_response().output
    assert same.arguments == call.arguments
    assert "response.function_call_arguments.done" in kinds
    form = {"type": "json_schema", "name": "s", "schema": SCHEMA}
    said = answer(model="v1", input=prompt, text={"format": form})
    assert said.status == "completed" and json.loads(said.output_text)["how"]


def with_chats(client: Any, wanted: dict[str, Any]) -> None:
    """Chats whole, in pieces, drawn, and with log-probabilities."""

    def chat(count: int = 24, **options: Any) -> Any:
        asked = {"model": "v1", "messages": wanted["messages"], "max_tokens": count}
        return client.chat.completions.create(**{**asked, **options})

    whole = chat()
    assert whole.choices[0].message.content == wanted["chat"], whole
    assert whole.choices[0].message.role == "assistant" and whole.model == "v1"
    assert whole.usage.completion_tokens == wanted["chat_tokens"], whole.usage
    cost = whole.usage.model_extra["draftwire"]
    assert 0 < cost["forwards"] <= wanted["chat_tokens"] and cost["joules"] is None
    assert cost["bytes"]["up_payload"] > 0

    told = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
    chunks = list(chat(model="draftwire", **told))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(c.delta.content or "" for c in choices) == wanted["chat"]
    ends = [c.finish_reason for c in choices]
    assert ends[-1] in ("stop", "length") and not any(ends[:-1])
    entries = [e for c in choices if c.logprobs is not None for e in c.logprobs.content]
    assert len(entries) == wanted["chat_tokens"]
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    said = choices[1].model_extra["draftwire"]
    assert said["verified"] is True and said["token_ids"]

    drawn = [chat(12, temperature=0.9, seed=-5, n=3).choices for _ in range(2)]
    texts = [[choice.message.content for choice in choices] for choices in drawn]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1, texts
    assert [choice.index for choice in drawn[0]] == [0, 1, 2]

    more = {"min_p": 0.01, "repetition_penalty": 1.2, "bad_words": ["king"]}
    shaped = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {"7": -100}}
    (told,) = chat(8, logprobs=True, top_logprobs=3, extra_body=more, **shaped).choices
    assert "king" not in told.message.content
    content = told.logprobs.content
    assert "".join(entry.token for entry in content) == told.message.content
    assert all(len(e.top_logprobs) == 3 and e.logprob <= 0 for e in content)
    assert bytes(content[0].bytes).decode() == content[0].token

    ours = {"draftwire": {"deadline_s": 0.05, "report": True}}
    hurried = chat(
        extra_body=ours, stop="\n", temperature=1, top_p=0.9, user="me", tools=[]
    )
    extra = hurried.choices[0].model_extra["draftwire"]
    assert extra["finish"] in ("deadline", "stop")
    assert extra["report"]["schema"] == "draftwire.report/1"


def with_texts(client: Any, wanted: dict[str, Any]) -> None:
    """The old endpoint of texts, and the new one of responses."""
    prompt, text, stop = wanted["prompt"], wanted["text"], wanted["stop"]

    def write(**options: Any) -> Any:
        asked = {"model": "v1", "prompt": prompt, "max_tokens": 16, **options}
        return client.completions.create(**asked)

    both = write(prompt=[prompt, prompt])
    assert [choice.text for choice in both.choices] == [text] * 2
    assert write(prompt=wanted["ids"]).choices[0].text == text
    (stopped,) = write(stop=[stop, "no-such"]).choices
    assert stopped.finish_reason == "stop" and stopped.text == text.partition(stop)[0]
    for n in (1, 2):
        pieces = dict.fromkeys(range(n), "")
        for chunk in write(n=n, stream=True):
            pieces[chunk.choices[0].index] += chunk.choices[0].text
        assert list(pieces.values()) == [text] * n
    (legacy,) = write(logprobs=2).choices
    assert legacy.text == text == "".join(legacy.logprobs.tokens)
    places = zip(legacy.logprobs.text_offset, legacy.logprobs.tokens)
    assert all(text[at:].startswith(word) for at, word in places)
    assert all(len(best) <= 2 for best in legacy.logprobs.top_logprobs)

    asked = {"model": "v1", "input": prompt, "max_output_tokens": 12}
    answer = client.responses.create(instructions="Be brief.", **asked)
    assert answer.output_text and answer.status in ("completed", "incomplete")
    assert answer.usage.input_tokens > 0
    told = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    spoken = client.responses.create(**told, **asked).output[0].content[0]
    assert spoken.text == "".join(entry.token for entry in spoken.logprobs)
    assert all(len(entry.top_logprobs) == 2 for entry in spoken.logprobs)
    asked = {**asked, "input": wanted["messages"], "max_output_tokens": 24}
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert final.output_text == "".join(deltas) == wanted["chat"]
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")


def with_openai(url: str, token: str, wanted: dict[str, Any]) -> None:
    """The official client: everything that it can ask."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=token, max_retries=0)
    messages, prompt = wanted["messages"], wanted["prompt"]
    models = [model.id for model in client.models.list()]
    assert "v1" in models and client.models.retrieve("v1").id == "v1", models
    with_chats(client, wanted)
    with_texts(client, wanted)
    if wanted["grammar"]:
        with_tools(client, messages, prompt)

    def chat(**options: Any) -> Any:
        asked = {"model": "v1", "messages": messages, **options}
        return lambda: client.chat.completions.create(**asked)

    for field, value in {
        "tools": [{}],
        "response_format": {"type": "xml"},
        "top_logprobs": 2,
        "logit_bias": {"5": 101},
        "frequency_penalty": 2.5,
        "reasoning_effort": "low",
        "temperature": -1,
        "n": 99,
        "stop": ["x"] * 17,
    }.items():
        error = refuses(openai.BadRequestError, chat(**{field: value}))
        assert error.param == field, error
    gone = refuses(openai.NotFoundError, chat(model="gpt-4o"), "v1")
    assert gone.code == "model_not_found"
    long = [{"role": "user", "content": "a " * 9000}]
    refuses(openai.BadRequestError, chat(messages=long), "tokens")
    search = {"model": "v1", "input": prompt, "tools": [{"type": "web_search"}]}
    refuses(openai.BadRequestError, lambda: client.responses.create(**search), "web_search")
    wrong = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
    refuses(openai.AuthenticationError, wrong.models.list)

    endless = {"model": "v1", "prompt": prompt, "max_tokens": 100_000}
    begun = client.completions.create(**endless, stream=True)
    next(iter(begun))
    begun.close()  # hangs up; the test looks whether the stream is cancelled

    async def at_once() -> None:
        aclient = openai.AsyncOpenAI(base_url=url, api_key=token, max_retries=0)

        async def one() -> str:
            found = await aclient.chat.completions.create(
                model="v1", messages=messages, max_tokens=24, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in found])

        assert await asyncio.gather(*(one() for _ in range(5))) == [wanted["chat"]] * 5
        task = asyncio.ensure_future(aclient.completions.create(**endless))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await aclient.close()

    asyncio.run(at_once())


def with_langchain(url: str, token: str, wanted: dict[str, Any]) -> None:
    """What robot agents are written with."""
    from langchain_openai import ChatOpenAI, OpenAI

    talk = [(m["role"], m["content"]) for m in wanted["messages"]]
    ends = {"base_url": url, "api_key": token, "model": "v1", "max_retries": 0}
    model = ChatOpenAI(**ends, max_tokens=24)
    answer = model.invoke(talk)
    assert answer.content == wanted["chat"]
    assert answer.usage_metadata["output_tokens"] == wanted["chat_tokens"]
    assert "".join(piece.content for piece in model.stream(talk)) == wanted["chat"]
    assert asyncio.run(model.ainvoke(talk)).content == wanted["chat"]
    stopped = model.bind(stop=[wanted["stop"]]).invoke(talk)
    assert wanted["stop"] not in stopped.content
    assert [a.content for a in model.batch([talk, talk])] == [wanted["chat"]] * 2
    whole = ChatOpenAI(**ends, max_tokens=24, use_responses_api=True)
    assert whole.invoke(talk).text == wanted["chat"]
    plain = OpenAI(**ends, max_tokens=16, temperature=0)
    assert plain.invoke(wanted["prompt"]) == wanted["text"]
    for responses in (False, True) if wanted["grammar"] else ():
        bound = ChatOpenAI(**ends, use_responses_api=responses).bind_tools([TOOL], **ONE)
        assert bound.invoke(talk).tool_calls[0]["name"] == "f"


def with_litellm(url: str, token: str, wanted: dict[str, Any]) -> None:
    """What routers are written with."""
    import litellm

    litellm.suppress_debug_info = True
    where = {"model": "openai/v1", "api_base": url, "api_key": token, "num_retries": 0}
    asked = {**where, "messages": wanted["messages"], "max_tokens": 24}
    answer = litellm.completion(**asked)
    assert answer.choices[0].message.content == wanted["chat"]
    assert answer.usage.completion_tokens == wanted["chat_tokens"]
    pieces = litellm.completion(**asked, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == wanted["chat"]
    answer = asyncio.run(litellm.acompletion(**asked))
    assert answer.choices[0].message.content == wanted["chat"]
    asked.update(max_tokens=60, tools=[TOOL], tool_choice="required")
    (choice,) = litellm.completion(**asked).choices
    assert choice.message.tool_calls[0].function.name == "f"


if __name__ == "__main__":
    client, url, token, expected = sys.argv[1:]
    globals()[f"with_{client}"](url, token, json.loads(expected))
    print("all as expected")
