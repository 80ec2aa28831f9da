"""Install, roll back, remove: each a row of small steps that can stop anywhere.

Until the one rename that makes ``current`` point at the new version, nothing that the
running version uses has changed; after it, the new version is whole. Running the same
command again finishes what was cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable, Iterator

from draftwire.boards.install.archive import Checked, Key, check_bundle, read_key
from draftwire.boards.install.disk import Disk
from draftwire.boards.install.facts import find_facts, need_fitting
from draftwire.boards.install.layout import (
    STATE_FOLDERS,
    SYSTEM_FILES,
    UNIT,
    WANTED_BY,
    Layout,
)
from draftwire.boards.install.service import Service
from draftwire.boards.install.trouble import BOARD, BUNDLE, USAGE, InstallError
from draftwire.boards.install.unpack import start_line, unpack_version

_JOURNAL = "journalctl --namespace=draftwire -u draftwire says why"
_SPARE_BYTES = 16 << 20  # of the disk, beside what is unpacked


class Installer:
    """One board's installation; ``system``: whether files outside the prefix are written,
    by default as the installation that is there was made."""

    def __init__(
        self,
        disk: Disk,
        layout: Layout,
        service: Service,
        say: Callable[[str], None],
        *,
        system: bool | None = None,
    ) -> None:
        self.disk, self.layout, self.service, self.say = disk, layout, service, say
        self.system = not self._record().get("prefix_only") if system is None else system

    def install(
        self,
        bundle: Path,
        *,
        key: Key | None,
        replace_key: bool,
        unsigned: bool,
        python: str | None,
    ) -> str:
        """Install a bundle and switch to it; return the version's name. Whatever fails,
        what was in use before still is."""
        trusted = self._trusted_key(key, replace=replace_key)
        checked = check_bundle(bundle, trusted, unsigned=unsigned)
        manifest = checked.manifest
        name = str(manifest["id"])
        facts = find_facts(self.disk, manifest["python"], python)
        need_fitting(facts, manifest)
        self._need_space(manifest)
        said = f"signed by {checked.key.text}" if checked.key else "NOT SIGNED"
        made = f"{manifest['board']}, Python {manifest['python']}"
        self.say(f"bundle {name} for {made}, {said}")
        with self._locked():
            self._sweep()
            self._unpack(checked, name, facts.python, told=python is not None)
            self._write_owned(name, trusted)
            former = self._current()
            if not self.system:  # a later verb is not told again
                self._write_record(self._recorded())
            self._switch(name)
            if self.system:
                self._write_system(name)
        self._go(name, former)
        return name

    def _trusted_key(self, given: Key | None, *, replace: bool) -> Key | None:
        pinned = self.disk.read(self.layout.key).decode("ascii", "replace").split()
        if not pinned:
            return given
        known = read_key(pinned[0])
        if given is None or given == known:
            return known
        if replace:
            return given
        hint = "leave --key away, or say --replace-key if the maker's key has changed"
        raise InstallError(f"this board trusts {known.text}, --key is another", USAGE, hint)

    def _need_space(self, manifest: dict[str, Any]) -> None:
        needed = manifest["installed_bytes"] + _SPARE_BYTES
        if self._is_whole(str(manifest["id"])):
            return
        free = self.disk.free_bytes(self.layout.versions)
        if free < needed:
            said = f"{self.layout.prefix} has {free >> 20} MiB free, "
            said += f"the bundle needs {needed >> 20} MiB"
            hint = "make room, or install elsewhere with --prefix DIR"
            raise InstallError(said, BOARD, hint)

    def _sweep(self) -> None:
        """Remove what an interrupted installation left."""
        for name in self.disk.children(self.layout.versions):
            if name.startswith("."):
                self.disk.remove(self.layout.version(name))

    def _is_whole(self, name: str) -> bool:
        return self.disk.exists(self.layout.version(name) + "/tried")

    def _unpack(self, checked: Checked, name: str, python: str, *, told: bool) -> None:
        folder, staging = self.layout.version(name), self.layout.staging(name)
        if self._is_whole(name):
            self.say(f"{folder} is there already")
            command = self._member(name, "bin/draftwire")
            if told and not command.endswith(start_line(python)):
                self.service.try_out(folder, python, checked.manifest)
                command = command[: command.rindex(b"exec ")] + start_line(python)
                self.disk.write(folder + "/bin/draftwire", command, 0o755)
                self.say(f"its Python is {python} from now on")
            return
        self.say(f"unpack {len(checked.manifest['files'])} files to {folder}")
        if self.disk.dry:
            return
        compiler = self.service.compiler(python, checked.manifest["python"])
        try:
            unpack_version(
                self.disk, checked, staging, python=python, compiled=bool(compiler)
            )
            self.disk.remove(folder)  # left by an attempt that was cut off while trying
            self.disk.rename(staging, folder)
            self.service.compile(compiler, folder + "/site")
            self.service.try_out(folder, python, checked.manifest)
        except InstallError:
            self.disk.remove(staging)
            if name != self._current():
                self.disk.remove(folder)
            raise
        self.disk.settle()
        self.disk.fill(folder + "/tried", b"")

    def _write_owned(self, name: str, trusted: Key | None) -> None:
        """Write what belongs to the board and not to one version."""
        disk, layout = self.disk, self.layout
        if trusted is not None:
            disk.write(layout.key, (trusted.text + "\n").encode("ascii"))
        elif not disk.exists(layout.key):
            self.say("no key is kept: the next bundle will need --key, too")
        config = self._member(name, "etc/draftwire.toml")
        if not disk.exists(layout.config):
            disk.write(layout.config, config)
        elif disk.read(layout.config) != config and not disk.dry:
            self.say(
                f"{layout.config} is kept as it is; the bundle's own is "
                f"{layout.version(name)}/etc/draftwire.toml"
            )
        disk.write(layout.script, self._member(name, "install.sh"), 0o755)
        disk.link(layout.prefix + "/bin/draftwire", "../current/bin/draftwire")

    def _member(self, name: str, member: str) -> bytes:
        return self.disk.read(f"{self.layout.version(name)}/{member}")

    def _current(self) -> str:
        return os.path.basename(self.disk.link_target(self.layout.current))

    def _previous(self) -> str:
        return os.path.basename(self.disk.link_target(self.layout.previous))

    def _switch(self, name: str) -> None:
        former = self._current()
        if former and former != name:
            self.disk.link(self.layout.previous, f"versions/{former}")
        self.disk.settle()
        self.disk.link(self.layout.current, f"versions/{name}")
        self.disk.settle()

    def _write_system(self, name: str) -> None:
        """Write the files outside the prefix, as this version has them."""
        disk, layout = self.disk, self.layout
        found = {
            place: disk.read(f"{layout.version(name)}/{member}")
            for member, place in SYSTEM_FILES.items()
        }
        if disk.dry:  # the version is not there; its files would be these
            found = {place: b"new" for place in SYSTEM_FILES.values()}
        written = [place for place, text in found.items() if text]
        # First the record: what is listed and not there is no harm to `uninstall`.
        self._write_record([*written, WANTED_BY])
        for place in written:
            text = found[place].replace(b"@PREFIX@", layout.prefix.encode("ascii"))
            if disk.dry or disk.read(place) != text:
                disk.write(place, text)
        if UNIT in written and not disk.exists(WANTED_BY):
            disk.link(WANTED_BY, UNIT)

    def _go(self, name: str, former: str) -> None:
        """Start the version in use; go back when it does not come up."""
        if not self.system:
            return
        trouble = self.service.restart()
        if not trouble:
            with self._locked():
                self._prune()
            return
        if not former or former == name:
            said = f"{name} is installed, but its service does not start: {trouble}"
            raise InstallError(said, BOARD, _JOURNAL)
        with self._locked():
            self._switch(former)
            self._write_system(former)
        again = self.service.restart()
        said = f"the service of {name} does not start ({trouble}); back on {former}"
        said += f", which does not start either: {again}" if again else ""
        raise InstallError(said, BOARD, _JOURNAL)

    def _prune(self) -> None:
        """Keep the version in use and the one before it."""
        kept = {self._current(), self._previous()}
        for name in self.disk.children(self.layout.versions):
            if name not in kept and kept != {""}:
                self.disk.remove(self.layout.version(name))

    def rollback(self) -> str:
        """Switch back to the version before; a second time returns to this one."""
        former, name = self._current(), self._previous()
        if not name or name == former or not self._is_whole(name):
            said = f"there is no version before {former or 'the first'} to go back to"
            raise InstallError(said, USAGE)
        with self._locked():
            self.say(f"back from {former} to {name}")
            self._switch(name)
            if self.system:
                self._write_system(name)
        if self.system:
            trouble = self.service.restart()
            if trouble:
                raise InstallError(f"{name} does not start: {trouble}", BOARD)
        return name

    def uninstall(self, *, keep_config: bool) -> None:
        """Remove everything that was installed, the service's state included."""
        disk, layout = self.disk, self.layout
        ours = [layout.versions, layout.config, layout.token, layout.key, layout.record]
        if not any(map(disk.exists, ours)):
            raise InstallError(f"there is no installation at {layout.prefix}", USAGE)
        if self.system:
            self.service.stop()
        with self._locked():
            paths = self._recorded() if self.system else []
            paths += [layout.current, layout.previous, layout.prefix + "/bin/draftwire"]
            paths += [layout.script, layout.versions]
            if not keep_config:  # the record last: who is cut off asks once more
                paths += STATE_FOLDERS if self.system else ()
                paths += ours[1:]
            for path in paths:
                disk.remove(path)
        disk.remove(layout.lock)
        for folder in ("/bin", "/etc", ""):
            disk.remove_if_empty(layout.prefix + folder)
        for name in disk.children(layout.prefix):
            self.say(f"left: {layout.prefix}/{name}")
        if self.system:
            self.service.reload()

    def _recorded(self) -> list[str]:
        """Return the files outside the prefix; only ones that we could have written."""
        ours = {*SYSTEM_FILES.values(), WANTED_BY}
        said = self._record().get("system")
        return sorted(ours & {str(p) for p in (said if isinstance(said, list) else ())})

    def _record(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.disk.read(self.layout.record) or b"{}"))
        except (ValueError, TypeError, RecursionError):
            return {}

    def _write_record(self, places: list[str]) -> None:
        record: dict[str, Any] = {"schema": "draftwire.installed/1", "system": places}
        if not self.system:
            record["prefix_only"] = True
        text = json.dumps(record, indent=2) + "\n"
        self.disk.write(self.layout.record, text.encode("ascii"))

    def status(self) -> dict[str, Any]:
        """Return which versions are there, and what was written outside the prefix."""
        layout = self.layout
        return {
            "schema": "draftwire.installed/1",
            "prefix": layout.prefix,
            "current": self._current() or None,
            "previous": self._previous() or None,
            "key": self.disk.read(layout.key).decode("ascii", "replace").strip() or None,
            "system": [place for place in self._recorded() if self.disk.exists(place)],
        }

    def verify(self) -> int:
        """Compare what is installed with the manifest; return how many files differ."""
        folder = self.layout.current
        try:
            manifest = json.loads(self.disk.read(folder + "/manifest.json").decode("utf-8"))
            files = dict(manifest["files"])
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise InstallError("nothing sound is installed here", BUNDLE) from exc
        wrong = 0
        for name, entry in sorted(files.items()):
            if name.endswith(".whl"):
                continue
            data = self.disk.read(f"{folder}/{name}")
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                self.say(f"differs: {folder}/{name}")
                wrong += 1
        return wrong

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.disk.dry:
            yield
            return
        self.disk.folder(self.layout.prefix)
        with open(str(self.disk.real(self.layout.lock)), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise InstallError("another installation is running", BOARD) from exc
            yield
