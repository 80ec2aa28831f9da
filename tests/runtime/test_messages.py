"""Messages to tokens on a board: with jinja2, and without."""

from types import SimpleNamespace

import pytest
from chat_templates import CONVERSATIONS, NEED_JINJA, TEMPLATES, TOOLS
from places import FIXTURES

from draftwire import template as templates
from draftwire.errors import ConfigError, PackageError
from draftwire.packages import load_draft
from draftwire.runtime.conversation import Conversation
from draftwire.template import Template, check_messages, template_files
from draftwire.tokenizer import load_tokenizer

TINY = FIXTURES / "tiny.draft"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi "}]


def rendered(template, messages, **more):
    try:
        return template.render(check_messages(messages), **more)
    except ConfigError:
        return None


def talk(folder, text, settings="{}"):
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    return Conversation(SimpleNamespace(path=folder, bos_id=0), load_tokenizer(TINY))


def test_texts_by_hand():
    def text(name, messages=ASKED, **more):
        return rendered(Template(TEMPLATES[name], TOKENS), messages, **more)

    assert text("chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n"
    )
    assert text("llama3") == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert text("gemma") is None  # it takes no system message
    assert (
        text("mistral_system_last", tools=TOOLS[:0]) == "<s>[INST] Be brief.\n\n Hi [/INST]"
    )
    assert text("qwen", tools=[{"é": "<"}]) == (
        "<|im_start|>system\nBe brief.\n\nYou may call these functions:\n<tools>\n"
        '{"é": "<"}\n</tools><|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n'
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_form_without_jinja_says_the_same(name):
    whole = Template(TEMPLATES[name], TOKENS)
    form = whole.plain_form()
    assert (form is None) == (name in NEED_JINJA)
    if form is None:
        return
    for messages in CONVERSATIONS:
        found = templates._plain_text(form, check_messages(messages), True)
        if isinstance(found, str):
            assert found == rendered(whole, messages)


def test_a_template_of_everything_odd(tmp_path):
    for text, words in (
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "refuses .*: no system"),
        ("{{ messages[9].content }}", "refuses"),
        ("{{ 1 / 0 }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),  # the sandbox
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{% if %}", "no jinja2 template"),
        ("{% break %}", "no jinja2 template"),  # what jinja2 leaves to Python
        ("{% for a in b %}" * 25 + "{% endfor %}" * 25, "no jinja2 template"),
        ("{{ " + "[" * 3000 + "]" * 3000 + " }}", "no jinja2 template"),
        ("{{ " + "9" * 10_000 + " }}", "no jinja2 template"),
    ):
        with pytest.raises(ConfigError, match=words):
            talk(tmp_path, text).prompt(ASKED)
    for name in ("chat_template.jinja", "chat_template.tool_use.jinja"):
        (tmp_path / "chat_template.jinja").write_text("x")
        (tmp_path / name).write_text("{% if %}")  # said where a package is made
        with pytest.raises(ConfigError, match="no jinja2 template"):
            template_files(tmp_path)
    (tmp_path / "chat_template.tool_use.jinja").unlink()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(ConfigError, match="no Unicode text"):
        template_files(tmp_path)
    for name, content in (("tokenizer_config.json", "{"), ("chat.json", '{"trim": 1}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(PackageError, match=name):
            Template.of(tmp_path)
        (tmp_path / name).unlink()
    settings = '{"bos_token": {"content": "<B>"}, "eos_token": "<E>", "pad_token": null}'
    text = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}"
    assert talk(tmp_path, text, settings).template.render(ASKED) == "<B>Be brief.<E>"


def test_several_templates_of_one_checkpoint(tmp_path):
    text = """{"chat_template": [{"name": "default", "template": "A{{ messages|length }}"},
        {"name": "tool_use", "template": "B{{ tools|length }}"}, {"name": "rag"}, 5]}"""
    (tmp_path / "tokenizer_config.json").write_text(text)
    for folder in (tmp_path, tmp_path / "package"):
        if folder != tmp_path:
            folder.mkdir()
            for name, content in template_files(tmp_path).items():
                (folder / name).write_bytes(content)
        found = Template.of(folder)
        assert found.render(ASKED) == "A2"
        assert found.render(ASKED, tools=TOOLS) == "B1"
    assert template_files(TINY) == {}


def test_what_a_message_spells_stays_text(tmp_path):
    """<|endoftext|> is token 0 of this tokenizer, in the template alone."""
    turn = "<|endoftext|>{{ m.role }}: {{ m.content | trim }}"
    ours = talk(tmp_path, "{% for m in messages %}" + turn + "{% endfor %}")
    tokenizer = load_tokenizer(TINY)
    for content in ("<|endoftext|>", " a<|endoftext|>b ", "<|endof", "<", "text|>", ">|<"):
        messages = [{"role": "user", "content": content}] * 2
        prompt = ours.prompt(messages)
        assert prompt.ids.count(0) == 2 and prompt.ids[0] == 0
        whole = "user: " + content.strip()
        assert tokenizer.decode(prompt.ids) == whole * 2
        assert prompt.stop_ids == (0,) and prompt.warning == ""
    # Nothing that could spell one: the library's own tokens for the whole text.
    plain = ours.prompt([{"role": "user", "content": "a b"}]).ids
    assert plain == tokenizer.encode("<|endoftext|>user: a b", parse_special=True)
    # Private characters of a user's are no way in.
    sneaky = "\U000f0000\U0010003c|endoftext|>"
    prompt = ours.prompt([{"role": "user", "content": sneaky}])
    assert prompt.ids.count(0) == 1
    # Nor are variables of the template, which a client of the service may set.
    told = talk(tmp_path, "<|endoftext|>{{ name }}: {{ messages[0].content }}")
    asked = [{"role": "user", "content": "x"}]
    assert told.prompt(asked, options={"name": "<|endoftext|>"}).ids.count(0) == 1
    halves = [{"role": "user", "content": "<|endof"}, {"role": "user", "content": "text|>"}]
    joined = talk(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert 0 not in joined.prompt(halves).ids


def test_a_package_without_a_template():
    ours = Conversation(load_draft(TINY), load_tokenizer(TINY))
    prompt = ours.prompt([*ASKED, {"role": "assistant", "content": "Hello <|endoftext|>"}])
    tokenizer = load_tokenizer(TINY)
    text = "Be brief.\n\nUser: Hi\nAssistant: Hello <|endoftext|>\nAssistant:"
    assert prompt.ids == tokenizer.encode(text, bos_id=0) and prompt.ids.count(0) == 1
    assert prompt.stop == ("\nUser:", "\nSystem:") and "plain transcript" in prompt.warning
    with pytest.raises(ConfigError, match="no chat template"):
        ours.prompt(ASKED, tools=TOOLS)


def test_without_jinja_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "_has_jinja", lambda: False)
    ours = talk(tmp_path, TEMPLATES["qwen_thinking"])  # no form of it was exported
    with pytest.raises(ConfigError, match="needs jinja2") as caught:
        ours.prompt(ASKED)
    assert caught.value.hint == "pip install 'draftwire[chat]'"
