"""The targets that a verifier serves, by name and version, loaded and replaced live.

Targets come from ``--target PATH`` and from the folders inside ``--targets-dir``. That
folder is read again every few seconds and on SIGHUP, the paths on SIGHUP: a new package
is loaded beside the others, a changed one takes the place of its older self for new
connections, one that is removed from the folder is retired; one of a path serves on.
Connections keep the target they began with, so running streams go on with it; a retired
target is closed when the last of them has gone. No device has to know.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Sequence, Tuple

from draftwire.clock import LoopClock
from draftwire.errors import BusyError, ConfigError, DraftwireError, RefusedError
from draftwire.verifier.backends.base import TargetBackend
from draftwire.verifier.backends.streaming import StreamBackend, keeps_streams
from draftwire.verifier.beside import Drafts
from draftwire.verifier.executor import ThreadExecutor
from draftwire.verifier.grammars import Grammars
from draftwire.verifier.scheduler import Feeder, Scheduler
from draftwire.verifier.tally import Tally

log = logging.getLogger("draftwire.verifier")
_SOON_S = 0.05  # until a slot that the running forward writes to may be there

Stamp = Tuple[Tuple[str, int, int], ...]  # names of files, their times and sizes


@dataclass(eq=False)
class Served:
    """One target in service."""

    backend: TargetBackend | StreamBackend
    scheduler: Scheduler | Feeder  # batches its work, or feeds an engine that does
    words: frozenset[str]  # names that a device can ask for it by
    source: Path | None = None  # its folder, or None
    scanned: bool = False  # that is one of ``--targets-dir``
    drafts: Drafts | None = None  # models beside the target, or None
    tally: Tally = field(default_factory=Tally)  # what its streams did so far
    connections: int = 0  # connections that use it now
    retired: bool = False  # new connections do not get it any more

    def __post_init__(self) -> None:
        scheduler = self.scheduler  # streams that an engine keeps itself have none
        executor = scheduler.executor if isinstance(scheduler, Scheduler) else None
        self.grammars = Grammars(self.backend, executor)
        self.counters = scheduler.counters

    @property
    def driven(self) -> Scheduler:
        """The scheduler of a target whose slots are ours."""
        assert isinstance(self.scheduler, Scheduler)
        return self.scheduler

    @property
    def label(self) -> str:
        """Name and version for people."""
        return f"{self.backend.name} {self.backend.version}"

    def allocate(self) -> int:
        """Take a KV slot; see :meth:`TargetBackend.allocate`."""
        try:
            slot = self.driven.backend.allocate()
        except RefusedError as error:
            if not self.driven.frees_a_slot:
                raise
            raise BusyError(str(error), hint=error.hint, retry_after_s=_SOON_S) from None
        self.tally.slots += 1
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back, and drop what waits for it."""
        self.driven.release(slot)
        self.tally.slots -= 1


class Registry:
    """Targets in service."""

    def __init__(
        self,
        # makes a backend of a path; runs in a worker thread
        load: Callable[[Path], TargetBackend | StreamBackend],
        *,
        # keyword arguments of every :class:`Scheduler`
        scheduler: dict[str, Any] | None = None,
        # what a device gets that asks for no target; "" means the newest version that
        # shares its tokenizer
        default: str = "",
        # makes what drafts beside a target, or None
        draft: Callable[[TargetBackend], Drafts | None] | None = None,
    ) -> None:
        self._load, self._draft = load, draft
        self._options, self._default = scheduler or {}, default
        self.all: list[Served] = []  # retired ones that still serve a connection among them
        self._seen: dict[Path, Stamp] = {}  # last state that was taken in
        self._asked: dict[Path, Stamp] = {}  # likewise, of what was loaded by its path
        self._scanning: asyncio.Lock | None = None  # made inside the loop, for 3.8

    @property
    def targets(self) -> Sequence[Served]:
        """Targets that new connections can get."""
        return tuple(served for served in self.all if not served.retired)

    def add(
        self,
        backend: TargetBackend | StreamBackend,
        *,
        # the folder it comes from; its name without suffix is a further name to be asked by
        source: Path | None = None,
        scanned: bool = False,  # that is one of ``--targets-dir``
        replace: bool = False,  # retire what came from there before
    ) -> Served:
        """Put a backend into service.

        Raises:
            ConfigError: Another target has its name and version.
        """
        label = (backend.name, backend.version)
        came = (source, scanned)
        same = [s for s in self.targets if replace and (s.source, s.scanned) == came]
        for old in self.targets:
            if old not in same and (old.backend.name, old.backend.version) == label:
                raise ConfigError(
                    f"two targets are called {old.label}",
                    hint="give one of them another version when exporting it",
                )
        for old in same:
            self.retire(old)
        stem = "" if source is None else source.name.replace(".target", "")
        words = {*label, ":".join(label), *((stem, f"{stem}.target") if stem else ())}
        clock = LoopClock(asyncio.get_running_loop())
        scheduler: Scheduler | Feeder
        drafts = None
        if keeps_streams(backend):
            scheduler = Feeder(backend, clock)
        else:
            executor = ThreadExecutor(backend, clock)
            scheduler = Scheduler(backend, executor, clock, **self._options)
            drafts = None if self._draft is None else self._draft(backend)
        served = Served(backend, scheduler, frozenset(words), source, scanned, drafts)
        self.all.append(served)
        log.info("serving %s (%s)", served.label, backend.id[:12])
        return served

    async def load(
        self, path: Path, *, scanned: bool = False, replace: bool = False
    ) -> Served:
        """Load the target at ``path`` in a worker thread; put it into service, see add.

        Raises:
            DraftwireError: It does not load, or another has its name and version.
        """
        if not scanned:
            self._asked[path] = _stamp(path)
        loop = asyncio.get_running_loop()
        backend = await loop.run_in_executor(None, self._load, path)
        return self.add(backend, source=path, scanned=scanned, replace=replace)

    async def reload(self) -> None:
        """Take in what has changed of the targets that were loaded by their paths.

        One that is gone or does not load any more goes on as it was.
        """
        for path, seen in tuple(self._asked.items()):
            if _stamp(path) != seen:
                await self._take_in(path, "keeping %s as it was: %s %s")

    async def _take_in(self, path: Path, trouble: str, *, scanned: bool = False) -> None:
        """Load what may take the place of another; ``trouble`` is for the log."""
        try:
            await self.load(path, scanned=scanned, replace=True)
        except DraftwireError as error:
            log.error(trouble, path.name, error, error.hint)

    def retire(self, served: Served) -> None:
        """Give ``served`` to no new connection, and close it when unused."""
        if not served.retired:
            served.retired = True
            log.info("retiring %s (%s)", served.label, served.backend.id[:12])
            self._sweep()

    def find(self, wanted: str, tokenizer: str) -> Served:
        """Return the target that a device asks for by name, version or package name.

        "" means the default, which ``tokenizer``, its fingerprint, helps to choose.

        Raises:
            RefusedError: There is none, or several go by that name.
        """
        wanted = wanted or self._default
        hits = [s for s in self.targets if not wanted or wanted in s.words]
        if not hits:
            raise RefusedError(
                f"there is no target {wanted!r} here, there are: {self.listing()}"
                if wanted
                else "no target is loaded here yet",
                hint="ask for one of those, or leave the target out to get the newest",
            )
        fit = [s for s in hits if s.backend.family.tokenizer == tokenizer] or hits
        # Several versions go by one name: that means the newest of them.
        return max(fit, key=lambda s: _natural(s.backend.version))

    def listing(self) -> str:
        """Names and versions in service, for people."""
        return ", ".join(sorted(s.label for s in self.targets)) or "none"

    def enter(self, served: Served) -> None:
        """Count a connection in."""
        served.connections += 1

    def leave(self, served: Served) -> None:
        """Count a connection out."""
        served.connections -= 1
        self._sweep()

    def _sweep(self) -> None:
        for served in list(self.all):
            if served.retired and not served.connections:
                self.all.remove(served)
                served.scheduler.close()

    async def scan(self, folder: Path) -> None:
        """Bring the targets in line with the packages in ``folder``.

        A package that does not load is reported once and tried again when it changes.
        """
        if self._scanning is None:
            self._scanning = asyncio.Lock()
        async with self._scanning:
            found = _packages(folder)
            for served in self.targets:
                if served.scanned and served.source not in found:
                    self.retire(served)
            self._seen = {p: s for p, s in self._seen.items() if p in found}
            for path, stamp in sorted(found.items()):
                if self._seen.get(path) != stamp:
                    self._seen[path] = stamp
                    await self._take_in(path, "cannot serve %s: %s %s", scanned=True)

    def close(self) -> None:
        """Close every scheduler."""
        targets, self.all = self.all, []
        for served in targets:
            served.retired = True
            served.scheduler.close()


def _stamp(path: Path) -> Stamp:
    """Return what changes when the target at ``path`` does: a package's manifest is
    written last, a checkpoint has none.
    """
    manifest = path / "target.json"
    found = []
    try:
        files = [manifest] if manifest.is_file() else sorted(path.iterdir())
        for file in files:
            stat = file.stat()
            found.append((file.name, stat.st_mtime_ns, stat.st_size))
    except OSError:
        pass
    return tuple(found)


def _packages(folder: Path) -> dict[Path, Stamp]:
    """Return the target packages in ``folder`` with their manifests' stamps."""
    try:
        paths = [p for p in folder.iterdir() if (p / "target.json").is_file()]
    except OSError as error:
        raise ConfigError(
            f"the targets folder {folder} cannot be read: {error.strerror}"
        ) from error
    # Half-written packages begin with a dot.
    named = [p for p in paths if p.suffix == ".target" and p.name[0] != "."]
    return {path: _stamp(path) for path in named}


def _natural(version: str) -> list[tuple[int, str]]:
    """Sort key that puts v10 after v9."""
    parts = re.findall(r"\d+|\D+", version)
    return [(int(p), "") if p.isdigit() else (-1, p) for p in parts]
