"""Which targets are in service while folders change under the verifier."""

from __future__ import annotations

import json
import os

import pytest

from draftwire.errors import ConfigError, PackageError, RefusedError
from draftwire.packages import Family
from draftwire.verifier.registry import Registry


class Nameplate:
    """A backend that nobody runs."""

    def __init__(self, path):
        raw = json.loads((path / "target.json").read_text())
        if "broken" in raw:
            raise PackageError("it is broken", hint="mend it")
        self.name, self.version = raw["name"], raw["version"]
        self.id = raw.get("id", "00") * 32
        self.family = Family("f", None, raw.get("tokenizer", "a") * 64)


@pytest.fixture
def shop(tmp_path):
    def put(folder, **raw):
        path = tmp_path / f"{folder}.target"
        path.mkdir(exist_ok=True)
        file = path / "target.json"
        before = file.stat().st_mtime_ns if file.exists() else 0
        file.write_text(json.dumps({"name": "t", **raw}))
        os.utime(file, ns=(before + 1000, before + 1000))
        return path

    put.path = tmp_path
    return put


def versions(registry):
    return [s.backend.version for s in registry.targets]


async def test_packages_come_change_and_go(shop, caplog):
    loaded = []

    def load(path):
        loaded.append(path.name)
        return Nameplate(path)

    registry = Registry(load)
    shop("one", version="v1")
    bad = shop("bad", broken=1)
    (shop.path / "notes").mkdir()
    await registry.scan(shop.path)
    await registry.scan(shop.path)
    assert versions(registry) == ["v1"]
    assert loaded == ["bad.target", "one.target"]  # a failure is not retried
    assert "cannot serve bad.target: it is broken mend it" in caplog.text

    (old,) = registry.targets
    registry.enter(old)
    shop("one", version="v1", id="11")
    shop("bad", version="v2")
    await registry.scan(shop.path)
    assert sorted(versions(registry)) == ["v1", "v2"]
    assert old not in registry.targets and old in registry.all
    assert registry.find("v1", "").backend.id == "11" * 32
    registry.leave(old)
    assert old not in registry.all

    (bad / "target.json").unlink()
    await registry.scan(shop.path)
    assert versions(registry) == ["v1"]
    registry.close()


async def test_two_folders_of_one_name_do_not_take_turns(shop, caplog):
    registry = Registry(Nameplate)
    first = await registry.load(shop("a", version="v1"))
    shop("b", version="v1")
    for _ in range(3):
        await registry.scan(shop.path)
    assert registry.targets == (first,)
    assert caplog.text.count("two targets are called t v1") == 2  # a and b, once
    with pytest.raises(ConfigError, match="two targets"):
        await registry.load(shop("c", version="v1"))
    registry.close()


async def test_the_default_is_the_newest_that_reads_the_devices_tokens(shop):
    registry = Registry(Nameplate)
    for version, tokenizer in (("v9", "a"), ("v10", "a"), ("v11", "b")):
        path = shop(f"x{version}", version=version, tokenizer=tokenizer)
        await registry.load(path)
    for wanted, tokenizer, version in (
        ("", "a" * 64, "v10"),
        ("", "b" * 64, "v11"),
        ("", "c" * 64, "v11"),
        ("t", "a" * 64, "v10"),
        ("v9", "b" * 64, "v9"),
        ("xv9", "", "v9"),
        ("xv9.target", "", "v9"),
        ("t:v10", "", "v10"),
    ):
        assert registry.find(wanted, tokenizer).backend.version == version
    with pytest.raises(RefusedError, match="t v10, t v11, t v9"):
        registry.find("v12", "")
    registry.close()


async def test_what_was_loaded_by_its_path_is_read_again_when_told(shop, caplog):
    registry = Registry(Nameplate)
    one, two = shop("one", version="v1"), shop("two", version="v2")
    first, _ = await registry.load(one), await registry.load(two)
    registry.enter(first)
    await registry.reload()
    assert versions(registry) == ["v1", "v2"]  # nothing has changed

    shop("one", version="v3")
    await registry.reload()
    assert versions(registry) == ["v2", "v3"]
    assert registry.find("one", "").backend.version == "v3"
    assert first.retired and first in registry.all  # its connection goes on with it
    registry.leave(first)
    assert first not in registry.all

    shop("one", version="v2")  # a name that is taken, and one that does not load
    shop("two", broken=1)
    await registry.reload()
    assert versions(registry) == ["v2", "v3"]
    assert "keeping one.target as it was: two targets are called t v2" in caplog.text
    assert "keeping two.target as it was: it is broken mend it" in caplog.text
    registry.close()
