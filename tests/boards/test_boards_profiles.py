"""Board profiles: every file is sound, and boards are known by what they show."""

import json

import pytest

from draftwire.boards.profiles import FOLDER, find_profile, load_profiles, read_profile
from draftwire.cli import main
from draftwire.energy.rails import RailTable, Total, choose_total, load_tables
from draftwire.errors import ConfigError

PROFILES = load_profiles()
TABLES = [RailTable.from_dict(p.name, p.rails) for p in PROFILES.values()]


def board(root, compatible="", model=""):
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(compatible.encode() + b"\0")
    (tree / "model").write_bytes(model.encode() + b"\0")
    return root


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda p: p.stem)
def test_each_profile_is_sound(path):
    profile = read_profile(path, PROFILES)
    assert profile.name == path.stem and profile.title
    assert profile.generic or profile.compatible or profile.dmi
    table = RailTable.from_dict(profile.name, profile.rails)
    for total in table.totals:
        assert total.rails and total.scope
        assert not set(total.rails) & (set(table.parts) | set(table.unused))
        for rail in table.accuracy:
            assert table.accuracy[rail].source, "a fact has a source"
    assert profile.generic or profile.raw["notes"]["sources"], "a fact has a source"
    assert len({total.scope for total in table.totals}) == len(table.totals)


KNOWN = [  # beside those of test_boards_detect.py
    ("nvidia,p3509-0000+p3767-0000", "", "jetson-orin-nx"),
    ("xlnx,zynqmp-sk-kv260-revB\0xlnx,zynqmp", "", "kria-kv260"),
    ("acme,carrier", "NVIDIA Jetson AGX Orin Developer Kit", "jetson-agx-orin"),
]


@pytest.mark.parametrize(("compatible", "model", "name"), KNOWN)
def test_a_board_is_known(tmp_path, compatible, model, name):
    match = find_profile(board(tmp_path, compatible, model), PROFILES)
    assert match.profile.name == name
    assert "device tree" in match.how


def test_an_unknown_board_is_generic_and_says_so(tmp_path):
    match = find_profile(board(tmp_path, "acme,lanai-3636", "p\u00ff\u00ff"), PROFILES)
    assert match.profile.generic and "no known board" in match.how


def test_a_named_board_wins(tmp_path, monkeypatch):
    root = board(tmp_path, "nvidia,p3450-0000")
    assert find_profile(root, PROFILES, board="jetson-tx2").profile.name == "jetson-tx2"
    monkeypatch.setenv("DRAFTWIRE_BOARD", "rock-5b")
    assert find_profile(root, PROFILES).profile.name == "rock-5b"
    with pytest.raises(ConfigError, match="no board profile 'toaster'"):
        find_profile(root, PROFILES, board="toaster")


def test_profiles_of_the_user_override(tmp_path):
    text = 'schema = "draftwire.board/1"\nname = "rock-5b"\ntitle = "Mine"\n'
    (tmp_path / "rock-5b.toml").write_text(text)
    assert load_profiles(tmp_path)["rock-5b"].title == "Mine"
    (tmp_path / "rock-5b.toml").write_text(text + "colour = 1\n")
    with pytest.raises(ConfigError, match="unknown key 'colour'"):
        load_profiles(tmp_path)
    (tmp_path / "rock-5b.toml").write_text("name = [")
    with pytest.raises(ConfigError, match="not TOML"):
        load_profiles(tmp_path)


OWN = 'schema = "draftwire.board/1"\nname = "my-robot"\ntitle = "My robot"\n'


def test_a_profile_may_extend_another_and_is_matched_first(tmp_path):
    text = OWN + 'extends = "jetson-orin-nano"\n[match]\ncompatible = ["p3767-0005"]\n'
    (tmp_path / "my-robot.toml").write_text(text)
    profiles = load_profiles(tmp_path)
    match = find_profile(board(tmp_path / "r", "nvidia,p3768-0000+p3767-0005"), profiles)
    assert match.profile.name == "my-robot" and match.profile.own
    assert match.profile.rails == PROFILES["jetson-orin-nano"].rails
    assert profiles["jetson-orin-nano"].title == PROFILES["jetson-orin-nano"].title
    (tmp_path / "my-robot.toml").write_text(OWN + 'extends = "toaster"\n')
    with pytest.raises(ConfigError, match="extends 'toaster'"):
        load_profiles(tmp_path)


def test_where_the_users_profiles_lie(tmp_path, monkeypatch):
    config, named = tmp_path / "config/draftwire/boards", tmp_path / "named"
    for folder, title in ((config, "by XDG"), (named, "by the variable")):
        folder.mkdir(parents=True)
        (folder / "mine.toml").write_text(OWN.replace("My robot", title))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert load_profiles()["my-robot"].title == "by XDG"
    monkeypatch.setenv("DRAFTWIRE_PROFILE_DIR", str(named))
    assert load_profiles()["my-robot"].title == "by the variable"
    (named / "rails.toml").write_text(
        OWN.replace("my-robot", "railed") + 'extends = "jetson-nano"\n'
    )
    rails = {table.board: table for table in load_tables()}
    assert rails["my-robot"].totals == (), "energy reads the same folders"
    assert rails["railed"].totals == rails["jetson-nano"].totals != ()
    (named / "rails.toml").unlink()
    flagged = tmp_path / "flag"
    flagged.mkdir()
    (flagged / "mine.toml").write_text(OWN.replace("My robot", "by the flag"))
    assert load_profiles(flagged)["my-robot"].title == "by the flag"
    monkeypatch.setenv("DRAFTWIRE_PROFILE_DIR", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="DRAFTWIRE_PROFILE_DIR"):
        load_profiles()
    with pytest.raises(ConfigError, match="no folder"):
        load_profiles(tmp_path / "gone")


@pytest.mark.parametrize(
    "text",
    [
        "rails = 1\n",
        "[match]\ncompatible = 3\n",
        '[[variant]]\nmemory_gb = "big"\n',
        "modes = [1]\n",
        'memory_gb = "8"\n',
        "[notes]\nquirks = [1]\n",
        "name = 3\n",
    ],
)
def test_a_profile_of_another_shape_is_refused(tmp_path, text):
    whole = text if text.startswith("name") else OWN + text
    if text.startswith("name"):
        whole = OWN.replace('name = "my-robot"', "name = 3")
    (tmp_path / "mine.toml").write_text(whole)
    with pytest.raises(ConfigError, match="mine.toml"):
        load_profiles(tmp_path)


def test_every_profile_says_what_it_could_not_check():
    words = {
        "jetson-tx2": "carrier",
        "jetson-nano-2gb": "match strings",
        "jetson-tx2-nx": "model string",
        "jetson-agx-xavier": "model strings",
        "jetson-agx-thor": "VIN_SYS_5V0",
    }
    for name, word in words.items():
        assert any(word in text for text in PROFILES[name].unverified), name


def test_list_and_show_as_a_user_meets_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(OWN)
    assert main(["boards", "list", "--profile-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "jetson-orin-nano" in out and "* your own profile" in out
    assert main(["boards", "list", "--json"]) == 0
    names = {entry["name"] for entry in json.loads(capsys.readouterr().out)["boards"]}
    assert names == set(PROFILES)
    assert main(["boards", "show", "jetson-tx2"]) == 0
    out = capsys.readouterr().out
    assert "MAXP_CORE_ALL" in out and "unverified" in out and "energymon" in out
    assert main(["boards", "show", "pi5"]) == 2
    capsys.readouterr()
    assert main(["boards", "show", "jetson-nano", "--toml"]) == 0
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy/jetson-nano.toml"
    copy.write_text(capsys.readouterr().out)
    assert read_profile(copy).rails == PROFILES["jetson-nano"].rails


def test_rails_that_several_boards_add_up_in_several_ways_are_no_total():
    """Two boards with the same names and other totals: the first is not taken."""
    a = RailTable("a", (Total("module", ("X",)),), parts=("Y",))
    b = RailTable("b", (Total("module", ("X", "Y")),))
    choice = choose_total(["X", "Y"], [a, b])
    assert choice.total is None and "--rails" in choice.why_none
    assert choose_total(["X", "Y"], [a, b], board="b").total.rails == ("X", "Y")
    same = RailTable("c", (Total("module", ("X",)),), parts=("Y",))
    assert choose_total(["X", "Y"], [a, same]).board == "a or c"


@pytest.mark.parametrize(
    "table", [table for table in TABLES if table.totals], ids=lambda table: table.board
)
def test_the_rail_names_alone_find_the_same_total(table):
    """Two votes: for each board, its whole set of rails leads to its own total."""
    rails = {rail for total in table.totals for rail in total.rails}
    first = choose_total(rails, TABLES)
    assert first.total is not None and first.total.rails == table.totals[0].rails
    both = choose_total(rails, TABLES, board=table.board)
    assert both.how == "board and rail names" and not both.warnings
