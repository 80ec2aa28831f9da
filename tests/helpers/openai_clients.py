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
    chat = client.chat.completions.create
    # One call: so small a model would write others to the end of its context.
    called = chat(
        model="v1",
        messages=messages,
        tools=[TOOL],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (choice,) = called.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call, *_) = choice.message.tool_calls
    assert call.function.name == "f" and json.loads(call.function.arguments)["how"]
    pieces = list(
        chat(
            model="v1",
            messages=messages,
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "f"}},
            stream=True,
        )
    )
    said = [c for p in pieces for c in p.choices[0].delta.tool_calls or ()]
    assert [c.function.name for c in said] == ["f"]
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    whole = chat(model="v1", messages=messages, response_format=form)
    assert list(json.loads(whole.choices[0].message.content)) == ["how"]
    flat = {"type": "function", "strict": True, **TOOL["function"]}
    asked: dict[str, Any] = {
        "model": "v1",
        "input": messages,
        "tools": [flat],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    answer = client.responses.create(**asked)
    (call,) = answer.output
    assert call.type == "function_call" and json.loads(call.arguments)["how"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    items = [*messages, call.model_dump(exclude_none=True), output]
    refuses(  # the reference family has no template, which says how calls are told
        Exception,
        lambda: client.responses.create(model="v1", input=items, max_output_tokens=8),
        "transcript takes no",
    )
    with client.responses.stream(**asked) as events:
        kinds = [event.type for event in events]
        (same,) = events.get_final_response().output
    assert same.arguments == call.arguments
    assert "response.function_call_arguments.done" in kinds
    said = client.responses.create(
        model="v1",
        input=prompt,
        text={"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
    )
    assert said.status == "completed" and json.loads(said.output_text)["how"]


def with_openai(url: str, token: str, wanted: dict[str, Any]) -> None:
    """The official client: everything that it can ask."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=token, max_retries=0)
    messages, prompt = wanted["messages"], wanted["prompt"]
    chat = client.chat.completions.create
    models = [model.id for model in client.models.list()]
    assert "v1" in models and client.models.retrieve("v1").id == "v1", models

    whole = chat(model="v1", messages=messages, max_tokens=24)
    assert whole.choices[0].message.content == wanted["chat"], whole
    assert whole.choices[0].message.role == "assistant" and whole.model == "v1"
    assert whole.usage.completion_tokens == wanted["chat_tokens"], whole.usage
    cost = whole.usage.model_extra["draftwire"]
    assert 0 < cost["forwards"] <= wanted["chat_tokens"] and cost["joules"] is None
    assert cost["bytes"]["up_payload"] > 0

    stream = chat(
        model="draftwire",
        messages=messages,
        max_completion_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == wanted["chat"]
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert ends[-1] in ("stop", "length") and not any(ends[:-1])
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    said = chunks[1].choices[0].model_extra["draftwire"]
    assert said["verified"] is True and said["token_ids"]

    drawn = [
        chat(
            model="v1", messages=messages, max_tokens=12, temperature=0.9, seed=-5, n=3
        ).choices
        for _ in range(2)
    ]
    texts = [[choice.message.content for choice in choices] for choices in drawn]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1, texts
    assert [choice.index for choice in drawn[0]] == [0, 1, 2]

    write = client.completions.create
    both = write(model="v1", prompt=[prompt, prompt], max_tokens=16)
    assert [choice.text for choice in both.choices] == [wanted["text"]] * 2
    ids = write(model="v1", prompt=wanted["ids"], max_tokens=16)
    assert ids.choices[0].text == wanted["text"]
    stopped = write(
        model="v1", prompt=prompt, max_tokens=16, stop=[wanted["stop"], "no-such"]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == wanted["text"].partition(wanted["stop"])[0]
    for n in (1, 2):
        pieces = {index: "" for index in range(n)}
        for chunk in write(model="v1", prompt=prompt, max_tokens=16, n=n, stream=True):
            pieces[chunk.choices[0].index] += chunk.choices[0].text
        assert list(pieces.values()) == [wanted["text"]] * n

    told = chat(
        model="v1",
        messages=messages,
        max_tokens=8,
        logprobs=True,
        top_logprobs=3,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={"7": -100},
        extra_body={"min_p": 0.01, "repetition_penalty": 1.2, "bad_words": ["king"]},
    ).choices[0]
    assert "king" not in told.message.content
    content = told.logprobs.content
    assert "".join(entry.token for entry in content) == told.message.content
    assert all(len(e.top_logprobs) == 3 and e.logprob <= 0 for e in content)
    assert bytes(content[0].bytes).decode() == content[0].token
    pieces, entries = "", []
    for chunk in chat(
        model="v1", messages=messages, max_tokens=24, logprobs=True, stream=True
    ):
        pieces += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            entries += chunk.choices[0].logprobs.content
    assert pieces == wanted["chat"] and len(entries) == wanted["chat_tokens"]
    legacy = write(model="v1", prompt=prompt, max_tokens=16, logprobs=2).choices[0]
    assert legacy.text == wanted["text"] == "".join(legacy.logprobs.tokens)
    places = zip(legacy.logprobs.text_offset, legacy.logprobs.tokens)
    assert all(legacy.text[at:].startswith(word) for at, word in places)
    assert all(len(best) <= 2 for best in legacy.logprobs.top_logprobs)

    hurried = chat(
        model="v1",
        messages=messages,
        extra_body={"draftwire": {"deadline_s": 0.05, "report": True}},
        stop="\n",
        temperature=1,
        top_p=0.9,
        user="somebody",
        presence_penalty=0,
        logprobs=False,
        tools=[],
    )
    extra = hurried.choices[0].model_extra["draftwire"]
    assert extra["finish"] in ("deadline", "stop")
    assert extra["report"]["schema"] == "draftwire.report/1"

    answer = client.responses.create(
        model="v1", input=prompt, instructions="Be brief.", max_output_tokens=12
    )
    assert answer.output_text and answer.status in ("completed", "incomplete")
    assert answer.usage.input_tokens > 0
    spoken = (
        client.responses.create(
            model="v1",
            input=prompt,
            max_output_tokens=12,
            include=["message.output_text.logprobs"],
            top_logprobs=2,
        )
        .output[0]
        .content[0]
    )
    assert spoken.text == "".join(entry.token for entry in spoken.logprobs)
    assert all(len(entry.top_logprobs) == 2 for entry in spoken.logprobs)
    text, kinds = "", []
    with client.responses.stream(
        model="v1", input=messages, max_output_tokens=24
    ) as events:
        for event in events:
            kinds.append(event.type)
            text += event.delta if event.type == "response.output_text.delta" else ""
        assert events.get_final_response().output_text == text == wanted["chat"]
    assert kinds[0] == "response.created" and kinds[-1] in (
        "response.completed",
        "response.incomplete",
    )

    if wanted["grammar"]:
        with_tools(client, messages, prompt)
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
        error = refuses(
            openai.BadRequestError,
            lambda: chat(model="v1", messages=messages, **{field: value}),  # noqa: B023
        )
        assert error.param == field, error
    gone = refuses(openai.NotFoundError, lambda: chat(model="gpt-4o", messages=messages))
    assert gone.code == "model_not_found" and "v1" in str(gone)
    refuses(
        openai.BadRequestError,
        lambda: chat(model="v1", messages=[{"role": "user", "content": "a " * 9000}]),
        "tokens",
    )
    refuses(
        openai.BadRequestError,
        lambda: client.responses.create(
            model="v1", input=prompt, tools=[{"type": "web_search"}]
        ),
        "web_search",
    )
    wrong = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
    refuses(openai.AuthenticationError, lambda: wrong.models.list())

    begun = write(model="v1", prompt=prompt, max_tokens=100_000, stream=True)
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
        task = asyncio.ensure_future(
            aclient.completions.create(model="v1", prompt=prompt, max_tokens=100_000)
        )
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await aclient.close()

    asyncio.run(at_once())


def with_langchain(url: str, token: str, wanted: dict[str, Any]) -> None:
    """What robot agents are written with."""
    from langchain_openai import ChatOpenAI, OpenAI

    talk = [(m["role"], m["content"]) for m in wanted["messages"]]
    model = ChatOpenAI(
        base_url=url, api_key=token, model="v1", max_tokens=24, max_retries=0
    )
    answer = model.invoke(talk)
    assert answer.content == wanted["chat"]
    assert answer.usage_metadata["output_tokens"] == wanted["chat_tokens"]
    assert "".join(piece.content for piece in model.stream(talk)) == wanted["chat"]
    assert asyncio.run(model.ainvoke(talk)).content == wanted["chat"]
    stopped = model.bind(stop=[wanted["stop"]]).invoke(talk)
    assert wanted["stop"] not in stopped.content
    assert [a.content for a in model.batch([talk, talk])] == [wanted["chat"]] * 2
    whole = ChatOpenAI(
        base_url=url,
        api_key=token,
        model="v1",
        max_tokens=24,
        use_responses_api=True,
        max_retries=0,
    )
    assert whole.invoke(talk).text == wanted["chat"]
    plain = OpenAI(base_url=url, api_key=token, model="v1", max_tokens=16, temperature=0)
    assert plain.invoke(wanted["prompt"]) == wanted["text"]
    if not wanted["grammar"]:
        return
    model = ChatOpenAI(base_url=url, api_key=token, model="v1", max_retries=0)
    bound = model.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    assert bound.invoke(talk).tool_calls[0]["name"] == "f"
    model = model.model_copy(update={"use_responses_api": True})
    bound = model.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
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
    called = litellm.completion(
        **{**asked, "max_tokens": 60}, tools=[TOOL], tool_choice="required"
    )
    assert called.choices[0].message.tool_calls[0].function.name == "f"


if __name__ == "__main__":
    client, url, token, expected = sys.argv[1:]
    globals()[f"with_{client}"](url, token, json.loads(expected))
    print("all as expected")
