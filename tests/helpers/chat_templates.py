"""Chat templates in the manner of well-known families, and conversations to put in."""

# ruff: noqa: E501  (a template's lines are as long as they are)
from __future__ import annotations

from typing import Any

_TOOLS_XML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "You may call these functions:\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
"""
_CALLS = """\
{%- for call in message.tool_calls %}
    {%- if call.function %}{%- set call = call.function %}{%- endif %}
    {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
    {{- call.arguments if call.arguments is string else call.arguments | tojson }}
    {{- '}\\n</tool_call>' }}
{%- endfor %}
"""

# Name -> template; {bos} and the like are named tokens, as each model has its own.
TEMPLATES: dict[str, str] = {
    "chatml": (
        "{% for message in messages %}"
        "{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a terse robot.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "qwen": _TOOLS_XML
    + """\
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
"""
    + _CALLS
    + """\
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    "qwen_thinking": _TOOLS_XML
    + """\
{%- set ns = namespace(last=messages | length - 1, looking=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == 'user' and message.content is string
        and not (message.content.startswith('<tool_response>')) %}
        {%- set ns.looking = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n')
                .split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
"""
    + _CALLS
    + """\
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
""",
    "llama2": """\
{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}{% set first = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set first = false %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('user and assistant must take turns') }}{% endif %}
{% if loop.index0 == 0 and first != false %}
{% set content = '<<SYS>>\\n' + first + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}
{%- endif %}{% endfor %}""",
    "llama3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
        " + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
        "{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "llama3_tools": """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today: " + strftime_now("%d %b %Y") + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message['content'] is string %}
            {{- message['content'] | trim }}
        {%- else %}
            {%- for part in message['content'] %}
                {%- if part['type'] == 'text' %}{{- part['text'] | trim }}{%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant!') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral_system_last": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and loop.last %}
            {{- "[AVAILABLE_TOOLS] " + (tools | tojson(sort_keys=true)) }}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + (message["content"] or "") | trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + "
        "'<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
    ),
    "gemma_system_first": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}{%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
""",
    "phi3": (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
        "{% else %}{{ eos_token }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}"
    ),
    "deepseek": (
        "{% if not add_generation_prompt is defined %}"
        "{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(system='') %}{%- for message in messages %}"
        "{%- if message['role'] == 'system' %}{% set ns.system = message['content'] %}"
        "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}"
        "{{ '<|User|>' + message['content'] }}{%- endif %}"
        "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
        "{% set content = message['content'] %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<|Assistant|>' + content + eos_token }}{%- endif %}{%- endfor -%}"
        "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
    ),
    "granite": """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}
    {%- set system = "You are Stone." %}
    {%- if documents %}{%- set system = system + " Use documents." %}{%- endif %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- for message in rest %}
    {%- if message.role == 'tool' %}{%- continue %}{%- endif %}
    {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' }}
    {{- (message.content or '') + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %}
""",
    "marked_for_training": """\
{% macro turn(role) %}<|im_start|>{{ role }}
{{ caller() }}<|im_end|>
{% endmacro %}
{% for message in messages %}
{% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}

{% else %}
{% call turn(message.role) %}{{ message.content | replace('\\t', ' ') }}{% endcall %}
{% endif %}
{% endfor %}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}""",
    "vicuna": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + '\\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ 'ASSISTANT: ' + message['content'] + eos_token + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
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

SPECIAL = (
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|User|>",
    "<|Assistant|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|end_of_text|>",
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
