"""Settings: which source wins, and what is refused."""

import json
from pathlib import Path

import pytest

from draftwire.errors import ConfigError
from draftwire.options import OPTIONS
from draftwire.settings import resolve


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_nearest_source_wins(tmp_path):
    user = write(
        tmp_path / "xdg" / "draftwire" / "config.toml",
        'verifier = "ws://user:1"\ntop_k = 1\ntop_p = 0.1\nblock = 1\n',
    )
    here = write(tmp_path / "here" / "draftwire.toml", "top_k = 2\ntop_p = 0.2\nblock = 2")
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    environ.update(DRAFTWIRE_TOP_P="0.3", DRAFTWIRE_BLOCK="3")
    values = resolve({"block": "4"}, environ=environ, folder=here.parent)
    found = {name: (v.value, v.origin) for name, v in values.items()}
    assert found["verifier"] == ("ws://user:1", str(user))
    assert found["top_k"] == (2, str(here))
    assert found["top_p"] == (0.3, "DRAFTWIRE_TOP_P")
    assert found["block"] == (4, "--block")
    assert found["temperature"] == (0.0, "default")
    assert set(found) == set(OPTIONS)


def test_the_user_file_is_below_home_without_xdg(tmp_path):
    write(tmp_path / ".config" / "draftwire" / "config.toml", 'target = "v2"')
    values = resolve({}, environ={"HOME": str(tmp_path)}, folder=tmp_path)
    assert values["target"].value == "v2"


def test_a_named_file_replaces_the_one_in_the_folder(tmp_path):
    write(tmp_path / "draftwire.toml", "block = 2")
    named = write(tmp_path / "other.toml", "top_k = 9")
    values = resolve({}, config=named, environ={}, folder=tmp_path)
    assert (values["block"].value, values["top_k"].value) == (None, 9)
    with pytest.raises(ConfigError, match="cannot read"):
        resolve({}, config=tmp_path / "gone.toml", environ={}, folder=tmp_path)


def test_paths_in_a_file_start_at_the_file(tmp_path):
    write(tmp_path / "draftwire.toml", 'draft = "a.draft"\ntoken_file = "/abs/token"')
    values = resolve({"draft": None}, environ={}, folder=tmp_path)
    assert values["draft"].value == tmp_path / "a.draft"
    assert values["token_file"].value == Path("/abs/token")
    values = resolve({"draft": "b.draft"}, environ={}, folder=tmp_path)
    assert values["draft"].value == Path("b.draft")


def test_an_unknown_key_is_refused_with_a_suggestion(tmp_path):
    write(tmp_path / "draftwire.toml", "temprature = 0.8")
    with pytest.raises(ConfigError, match="temprature") as caught:
        resolve({}, environ={}, folder=tmp_path)
    assert "temperature" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        resolve({}, environ={"DRAFTWIRE_TEMPRATURE": "1"}, folder=Path("/nonexistent"))
    assert "DRAFTWIRE_TEMPERATURE" in caught.value.hint


def test_variables_of_others_are_left_alone(tmp_path):
    environ = {"DRAFTWIRE_MODELS": "x", "DRAFTWIRE_SOMETHING_ELSE": "1", "HOME": ""}
    assert resolve({}, environ=environ, folder=tmp_path)["block"].value is None


@pytest.mark.parametrize(
    "text",
    ["block = 0", "block = 256", "block = 2.5", "block = true", 'block = "many"']
    + ["temperature = -1", "temperature = nan", "top_p = 0", "top_p = 1.5", "top_k = -1"]
    + ["threads = 0", "verifier = 5", "draft = [1]", "[draft]", "not toml", "\x80"]
    + ["block = 1\nblock = 2"],
)
def test_a_bad_file_is_one_clear_error(text, tmp_path):
    path = tmp_path / "draftwire.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        resolve({}, environ={}, folder=tmp_path)
    assert "draftwire.toml" in str(caught.value)


def test_every_option_is_a_setting_of_files_and_environment(tmp_path):
    """All of them: each written as TOML and as text, and read back the same."""
    wanted = {
        "verifier": "wss://here:1",
        "draft": "/x.draft",
        "token_file": "/token",
        "target": "v2",
        "token": "secret",
        "insecure": True,
        "tls_ca": "/ca",
        "tls_cert": "/cert",
        "tls_key": "/key",
        "proxy": "off",
        "timeout_s": 4.5,
        "silence_s": 2.0,
        "precision": "int8",
        "engine": "litert",
        "provider": "cpu",
        "threads": "auto",
        "energy": "off",
        "capture": True,
        "wire_log": "/log",
        "radio": "mmcli",
        "suffix_cache": "/cache",
        "scheme": "qs",
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.75,
        "logit_bias": "7=1.5,9=-100",
        "bad_words": "never",
        "logprobs": 5,
        "seed": 2**63,
        "sample": 3,
        "noise": "sparse",
        "max_new_tokens": 7,
        "stop": "END",
        "ignore_eos": True,
        "schema": '{"type":"integer"}',
        "regex": "[a-z]+",
        "choice": "left",
        "grammar": 'start: "a"',
        "force": False,
        "deadline_s": 0.75,
        "offline": "draft",
        "patience_s": 0.0,
        "block": 9,
        "controller": "auto:energy",
        "objective": "latency",
        "max_forwards_per_token": 0.25,
        "qs": "support=16,resolution=100",
        "pipeline": 3,
        "preempt": "exits,guess",
        "cut": True,
        "batch": 2,
        "max_joules": 5.0,
        "max_watts": 6.0,
        "max_joules_per_token": 0.5,
        "http": "127.0.0.1:8080",
        "http_token_file": "/http-token",
        "http_cert": "/http-cert",
        "http_key": "/http-key",
        "http_origin": "https://panel.local",
    }
    assert set(wanted) == set(OPTIONS)
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in wanted.items()]
    write(tmp_path / "draftwire.toml", "".join(lines).replace(str(2**63), "9", 1))
    environ = {f"DRAFTWIRE_{name.upper()}": str(v) for name, v in wanted.items()}
    from_file = resolve({}, environ={}, folder=tmp_path)
    from_environment = resolve({}, environ=environ, folder=Path("/nonexistent"))
    for name, value in wanted.items():
        found = from_environment[name]
        assert found.origin == f"DRAFTWIRE_{name.upper()}"
        texts = ("stop", "bad_words", "choice", "http_origin")
        expected = (value,) if name in texts else value
        if name == "logit_bias":
            expected = ((7, 1.5), (9, -100.0))
        if isinstance(found.value, Path):
            expected = Path(str(value))
        assert found.value == expected, name
        if name != "seed":  # beyond TOML's integers
            assert from_file[name].value == expected, name
            assert from_file[name].origin == str(tmp_path / "draftwire.toml")


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_has_help_and_a_default_in_range(name):
    option = OPTIONS[name]
    assert option.help and option.rule.wants
    assert option.default is None or option.read(option.default) == option.default


def test_the_settings_of_an_installed_bundle_are_found(tmp_path, monkeypatch):
    import draftwire.settings as module

    version = tmp_path / "versions" / "1"
    write(version / "bin" / "start.py", "")
    write(tmp_path / "etc" / "draftwire.toml", 'target = "v3"\ndraft = "../a.draft"\n')
    monkeypatch.setattr(module, "__file__", str(version / "site/draftwire/settings.py"))
    found = resolve({}, environ={}, folder=Path("/nonexistent"))
    assert found["target"].value == "v3"
    assert found["draft"].value == tmp_path / "etc" / ".." / "a.draft"
    (version / "bin" / "start.py").unlink()  # somebody else's folder called versions
    assert resolve({}, environ={}, folder=Path("/nonexistent"))["target"].value == ""
