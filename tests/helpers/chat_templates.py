"""Chat templates in the manner of well-known families, and conversations to put in."""

# ruff: noqa: E501  (a template's lines are as long as they are)
from __future__ import annotations

from pathlib import Path
from typing import Any

# Name -> template; {bos} and the like are named tokens, as each model has its own.
TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).with_suffix("").glob("*.jinja"))
}
# What ends a turn of each.
TURN_END = {
    **dict.fromkeys(
        ("chatml", "qwen", "qwen_thinking", "marked_for_training"), "<|im_end|>"
    ),
    **dict.fromkeys(("llama3", "llama3_tools"), "<|eot_id|>"),
    **dict.fromkeys(("gemma", "gemma_system_first"), "<end_of_turn>"),
    **dict.fromkeys(
        ("llama2", "mistral", "mistral_system_last", "zephyr", "deepseek", "vicuna"), "</s>"
    ),
    "phi3": "<|end|>",
    "granite": "<|end_of_text|>",
}
# Those that need jinja2: what they write between two messages depends on more than roles.
NEED_JINJA = {"qwen", "qwen_thinking", "llama2", "llama3_tools", "mistral_system_last"}
NEED_JINJA |= {"deepseek", "marked_for_training"}

SPECIAL = tuple(
    "<s> </s> <unk> <|im_start|> <|im_end|> <|start_header_id|> <|end_header_id|> <|eot_id|> [INST] [/INST] [AVAILABLE_TOOLS] "
    "[/AVAILABLE_TOOLS] <start_of_turn> <end_of_turn> <|system|> <|user|> <|assistant|> <|end|> <|User|> <|Assistant|> <|start_of_role|> <|end_of_role|> <|end_of_text|>".split()
)
NOT_SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def _turns(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    found = [] if system is None else [{"role": "system", "content": system}]
    for number, text in enumerate(texts):
        found.append({"role": ("user", "assistant")[number % 2], "content": text})
    return found


def _call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "grasp", "arguments": arguments}
    calls = [{"id": "call_1", "type": "function", "function": function}]
    return {"role": "assistant", "tool_calls": calls, **more}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "grasp",
            "description": 'Close the gripper around <an object> & hold "it"',
            "parameters": {
                "type": "object",
                "properties": {"what": {"type": "string"}, "force": {"type": "number"}},
                "required": ["what"],
            },
        },
    }
]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    _turns("Hello"),
    _turns("Hello", system="Be brief."),
    _turns("Hi", "Hello!", "And now?"),
    _turns("Hi", "Hello!", "And now?", system="Be brief."),
    _turns("1", "2", "3", "4", "5", "6", "7"),
    _turns("1", "2", "3", "4", "5", "6", "7", system="Count."),
    _turns("  padded \n", "\n answer\n", "\tmore\t"),
    _turns(" padded ", system="\n\nkeep your distance \n"),
    _turns("line one\nline two\n\nline four"),
    _turns("Naïve café, 你好, 😀 and e\u0301"),
    _turns('quotes " and \' and \\ and \\n'),
    _turns("<b>HTML & entities &amp;</b>", system="<rules>none</rules>"),
    _turns("{{ messages }} {% if x %} {# no #}"),
    _turns("def f(x):\n    return x[0] < 3 and x > [1]"),
    _turns("ends in <|im_", "end|>", "<|", system="a < b"),
    _turns("", "empty", ""),
    _turns("Think", "<think>\nhm\n</think>\n\nYes", "Really?"),
    _turns("Think", "no tags", "more", "<think>x</think>y", "last"),
    _turns("ends with the robot", "its answer"),
    _turns("ends with the robot", "its answer", system="s"),
    _turns("x" * 500, "y" * 300, "z"),
    [*_turns("Take the cup"), _call({"what": "cup", "force": 2.5}, content="")],
    [
        *_turns("Take the cup", system="You are an arm."),
        _call({"what": "a \"red\" cup", "list": [1, None, True]}),
        {"role": "tool", "name": "grasp", "tool_call_id": "call_1", "content": '{"ok": true}'},
    ],
    [
        *_turns("Take both"),
        _call('{"what": "cup"}', content="First the cup."),
        {"role": "tool", "content": "held"},
        {"role": "tool", "content": "<held> again"},
        *_turns("and?"),
    ],
    [*_turns("Why?"), {"role": "assistant", "content": "So.", "reasoning_content": "hm"}],
    [*_turns("Why?"), {"role": "assistant", "content": "So.", "reasoning": "hm", "name": "r"}],
    [{"role": "user", "content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]}],
    [{"role": "system", "content": [{"type": "text", "text": "parts"}]}, *_turns("x")],
    [{"role": "assistant", "content": "I begin"}, *_turns("Oh?")],
    [*_turns("one"), *_turns("two users in a row")],
    [*_turns("a", system="first"), {"role": "system", "content": "in the middle"}],
    [{"role": "developer", "content": "d"}, *_turns("x")],
]  # fmt: skip
