"""Goals of the actions as draftwire's calls, and its chunks as messages. No ROS here."""

from __future__ import annotations

import json
import math
from typing import Any, Mapping

import draftwire

__all__ = ["begin", "fill_partial", "fill_response", "fill_usage"]


def begin(
    session: draftwire.Session,
    goal: Any,
    *,
    chat: bool,
    waited_s: float,
    defaults: Mapping[str, Any],
) -> draftwire.Stream:
    """
    Begin the stream that a goal of either action asks for.

    It has waited ``waited_s`` for the session. ``defaults`` are ``max_tokens``, ``offline``
    and ``objective`` of a goal that does not say. A DraftwireError says what the goal asks
    for and there is not.
    """
    how = goal.sampling_config
    options: dict[str, Any] = {
        "temperature": round(float(how.temp), 6),  # float32: 0.8 is 0.800000012
        "top_k": int(how.top_k),
        "top_p": round(float(how.top_p), 6),
        "stop": list(goal.stop),
    }
    if how.grammar_schema:
        options["schema"] = how.grammar_schema
    if how.seeded:
        options["seed"] = int(how.seed) % 2**64
    if goal.deadline > 0:  # counts from acceptance
        options["deadline_s"] = max(float(goal.deadline) - waited_s, 1e-3)
    elif goal.deadline != 0:
        raise draftwire.ConfigError(
            f"deadline is {goal.deadline} (0 is none; what is over needs no goal)"
        )
    if goal.offline or defaults["offline"]:
        options["offline"] = goal.offline or defaults["offline"]
    if defaults["objective"]:
        options["objective"] = defaults["objective"]
    if goal.max_tokens or not chat:
        options["max_new_tokens"] = int(goal.max_tokens) or defaults["max_tokens"]
    if not chat:
        return session.generate(goal.prompt, **options)
    options.setdefault("max_new_tokens", 4096)  # an answer ends by itself
    messages = [{"role": m.role, "content": m.content} for m in goal.messages]
    return session.chat(messages, tools=_tools(goal.tools), **options)


def _tools(text: str) -> list[dict[str, Any]] | None:
    if not text:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise draftwire.ConfigError(f"tools is no JSON: {exc}") from exc
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise draftwire.ConfigError("tools must be a JSON list of tool objects")
    return found


def fill_partial(message: Any, chunk: draftwire.Chunk) -> Any:
    """Return a PartialResponse with what is new."""
    message.text = chunk.text
    message.tokens = [token.id for token in chunk.tokens]
    message.verified = chunk.verified
    message.unverified = chunk.unverified
    message.revised = chunk.revision is not None
    message.revision = chunk.revision or 0
    message.kept_text = chunk.kept_text or ""
    message.t = chunk.t_s
    return message


def fill_response(message: Any, stream: draftwire.Stream | None, error: str) -> Any:
    """Return a Response with the whole answer, or with why there is none."""
    if stream is not None:
        message.text = stream.text
        message.tokens = [token.id for token in stream.tokens]
        message.unverified = sum(token.kind == "unverified" for token in stream.tokens)
        message.finish = stream.finish or "error"
    if error:
        message.finish, message.error = "error", error
    return message


def fill_usage(message: Any, report: dict[str, Any] | None) -> Any:
    """Return a UsageStats of a run report; what was not measured is no number."""
    found = report or {}
    for name, value in (
        ("prompt_tokens", found.get("prompt_tokens")),
        ("completion_tokens", found.get("tokens")),
        ("drafted", found.get("drafted")),
        ("accepted", found.get("accepted")),
        ("target_forwards", found.get("target_forwards")),
        ("bytes_up", (found.get("bytes") or {}).get("up_payload")),
        ("bytes_down", (found.get("bytes") or {}).get("down_payload")),
    ):
        setattr(message, name, int(value or 0))
    seconds = found.get("seconds") or {}
    for name, value in (
        ("joules", (found.get("energy") or {}).get("joules")),
        ("seconds", seconds.get("total")),
        ("first_token", seconds.get("first_token")),
    ):
        setattr(message, name, math.nan if value is None else float(value))
    return message
