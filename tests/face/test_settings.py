"""Settings: which source wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftwire.errors import ConfigError
from draftwire.settings import SETTINGS, resolve


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_nearest_source_wins(tmp_path: Path) -> None:
    user = write(
        tmp_path / "xdg" / "draftwire" / "config.toml",
        'verifier = "ws://user:1"\ntop_k = 1\ntop_p = 0.1\nblock = 1\n',
    )
    here = write(tmp_path / "here" / "draftwire.toml", "top_k = 2\ntop_p = 0.2\nblock = 2")
    environ = {
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "DRAFTWIRE_TOP_P": "0.3",
        "DRAFTWIRE_BLOCK": "3",
    }
    values = resolve({"block": "4"}, environ=environ, folder=here.parent)
    found = {name: (v.value, v.origin) for name, v in values.items()}
    assert found["verifier"] == ("ws://user:1", str(user))
    assert found["top_k"] == (2, str(here))
    assert found["top_p"] == (0.3, "DRAFTWIRE_TOP_P")
    assert found["block"] == (4, "--block")
    assert found["temperature"] == (0.0, "default")
    assert set(found) == set(SETTINGS)


def test_the_user_file_is_below_home_without_xdg(tmp_path: Path) -> None:
    write(tmp_path / ".config" / "draftwire" / "config.toml", 'target = "v2"')
    values = resolve({}, environ={"HOME": str(tmp_path)}, folder=tmp_path)
    assert values["target"].value == "v2"


def test_a_named_file_replaces_the_one_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "draftwire.toml", "block = 2")
    named = write(tmp_path / "other.toml", "top_k = 9")
    values = resolve({}, config=named, environ={}, folder=tmp_path)
    assert (values["block"].value, values["top_k"].value) == (None, 9)
    with pytest.raises(ConfigError, match="cannot read"):
        resolve({}, config=tmp_path / "gone.toml", environ={}, folder=tmp_path)


def test_paths_in_a_file_start_at_the_file(tmp_path: Path) -> None:
    write(tmp_path / "draftwire.toml", 'draft = "a.draft"\ntoken_file = "/abs/token"')
    values = resolve({"draft": None}, environ={}, folder=tmp_path)
    assert values["draft"].value == tmp_path / "a.draft"
    assert values["token_file"].value == Path("/abs/token")
    values = resolve({"draft": "b.draft"}, environ={}, folder=tmp_path)
    assert values["draft"].value == Path("b.draft")


def test_an_unknown_key_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path / "draftwire.toml", "temprature = 0.8")
    with pytest.raises(ConfigError, match="temprature") as caught:
        resolve({}, environ={}, folder=tmp_path)
    assert "temperature" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        resolve({}, environ={"DRAFTWIRE_TEMPRATURE": "1"}, folder=Path("/nonexistent"))
    assert "DRAFTWIRE_TEMPERATURE" in caught.value.hint


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    environ = {"DRAFTWIRE_MODELS": "x", "DRAFTWIRE_SOMETHING_ELSE": "1", "HOME": ""}
    assert resolve({}, environ=environ, folder=tmp_path)["block"].value is None


@pytest.mark.parametrize(
    "text",
    [
        "block = 0",
        "block = 256",
        "block = 2.5",
        "block = true",
        'block = "many"',
        "temperature = -1",
        "temperature = nan",
        "top_p = 0",
        "top_p = 1.5",
        "top_k = -1",
        "threads = 0",
        "verifier = 5",
        "draft = [1]",
        "[draft]",
        "not toml",
        "block = 1\nblock = 2",
        "\x80",
    ],
)
def test_a_bad_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "draftwire.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        resolve({}, environ={}, folder=tmp_path)
    assert "draftwire.toml" in str(caught.value)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_has_help_and_a_default_in_range(name: str) -> None:
    setting = SETTINGS[name]
    assert setting.help
    assert setting.default is None or setting.check(setting.default)
