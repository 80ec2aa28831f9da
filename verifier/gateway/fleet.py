"""The verifiers behind a gateway: who there is, how they are, and who gets what."""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import logging
import math
import secrets
import ssl
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence, Tuple
from urllib.parse import urlsplit

from draftwire.errors import ConfigError
from draftwire.io import parse_json
from draftwire.transport.dial import (
    KEY_BYTES,
    check_url,
    health_url,
    resolve,
    tls_context,
    web,
)

log = logging.getLogger("draftwire.gateway")

_FULL_S = 5.0  # at most: after a verifier without room is asked again
SPARE = 1.25  # of the mean: more connections than that are too many for one verifier
_POINTS = 128  # of each verifier: shares then differ by about 9 %, its root's inverse


class Ring:
    """Which of many verifiers a stream belongs to: consistent hashing on its id.

    The first four bytes of a stream id are its *key*: the device names them when it
    connects (``X-Session-Id``, PROTOCOL.md section 1), and a verifier lets the ids of that
    connection's streams begin with them. A key belongs to the verifier whose point follows
    it on a ring of points, so whoever knows the names of the verifiers, in whatever order,
    finds a stream without asking anybody, and one that comes or goes moves only the keys
    next to its points.

    Source: D. Karger et al., "Consistent Hashing and Random Trees", STOC 1997.
    """

    def __init__(self, names: Iterable[str], points: int = _POINTS) -> None:
        self.names = sorted(set(names))
        placed = sorted(
            (_place(f"{name}#{i}".encode()), name)
            for name in self.names
            for i in range(points)
        )
        self._places = [place for place, _ in placed]
        self._owners = [name for _, name in placed]

    def owner(self, key: bytes) -> str:
        """Return whose ``key`` is.

        Raises:
            LookupError: There are no verifiers.
        """
        return next(iter(self.order(key)))

    def order(self, key: bytes) -> Iterable[str]:
        """Yield whose ``key`` is, then who would be next if that one were gone, and so on.

        Raises:
            LookupError: There are no verifiers.
        """
        if not self._owners:
            raise LookupError("no verifiers")
        at = bisect.bisect(self._places, _place(key))
        seen: set[str] = set()
        for i in range(len(self._owners)):
            name = self._owners[(at + i) % len(self._owners)]
            if name not in seen:
                seen.add(name)
                yield name
                if len(seen) == len(self.names):
                    return

    def key_for(self, name: str) -> bytes:
        """Return a random key of ``name``; takes about as many draws as there are names."""
        while True:
            key = secrets.token_bytes(KEY_BYTES)
            if self.owner(key) == name:
                return key


def _place(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


Member = Tuple[str, str, bool]  # url, name, drain: see :class:`Replica`


@dataclass
class Replica:
    """One verifier."""

    url: str  # where it is
    name: str = ""  # in its certificate, where ``url`` has an address in its place
    drain: bool = False  # it gets no new streams
    state: str = "ok"  # ``"ok"``, ``"draining"`` or ``"down"``
    full_until: float = 0.0  # in the loop's time: it has no room until then
    connections: int = 0  # ours to it
    streams: int = 0  # opened and resumed there so far


class Fleet:
    """The verifiers behind a gateway, as they come, go and answer.

    Raises:
        ConfigError: There is none, or an address or the file is of no use.
    """

    def __init__(
        self,
        urls: Sequence[str] = (),  # those that are named once and for all
        *,
        # names more, one a line, some with the word ``drain`` behind; it is read again when
        # it has changed
        file: Path | None = None,
        # addresses whose host stands for several machines: each of them is one
        names: Sequence[str] = (),
        insecure: bool = False,  # allow plain ``ws://`` to other machines
        # for ``wss://``; None makes it from the system's trust store
        tls: ssl.SSLContext | None = None,
        health_s: float = 2.0,  # seconds between two looks at each
    ) -> None:
        if not urls and file is None and not names:
            raise ConfigError(
                "a gateway needs verifiers to pass streams on to",
                hint="name them: --to ws://127.0.0.1:8765 --to ws://127.0.0.1:8766",
            )
        for url in (*urls, *names):
            check_url(url, insecure=insecure)
        self._urls, self._file, self._names = tuple(urls), file, tuple(names)
        self._insecure, self._tls = insecure, tls
        self.health_s = health_s
        self._read: tuple[float, list[Member]] = 0.0, []  # the file, and when
        self._soon = asyncio.Event()
        self.replicas: dict[str, Replica] = {}
        self.ring = Ring(())
        if file is not None:
            self._read_file(file)
        self._adopt()

    # ---- who there is

    def _read_file(self, path: Path) -> None:
        try:
            changed = path.stat().st_mtime
            if changed == self._read[0]:
                return
            rows = []
            for line in path.read_text("utf-8").splitlines():
                words = line.partition("#")[0].split()
                if words:
                    check_url(words[0], insecure=self._insecure)
                    if words[1:] not in ([], ["drain"]):
                        raise ConfigError(
                            f"{line.strip()!r} in {path} is no verifier",
                            hint="write ws://HOST:PORT, and drain behind it for one that "
                            "shall get no new streams",
                        )
                    rows.append((words[0], "", len(words) > 1))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        self._read = changed, rows

    def _adopt(self, more: Iterable[Member] = ()) -> None:
        members = [*((url, "", False) for url in self._urls), *self._read[1], *more]
        found: dict[str, Replica] = {}
        for url, name, drain in members:
            known = self.replicas.get(url) or Replica(url)
            known.name, known.drain = name, drain
            found[url] = known
        for url in found.keys() ^ self.replicas.keys():
            log.warning("%s %s", url, "is there" if url in found else "is left out")
        if found.keys() != self.replicas.keys():
            self.ring = Ring(found)
        self.replicas = found

    async def look(self) -> None:
        """See who there is, and how they are."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            if self._file is not None:
                self._read_file(self._file)
        except ConfigError as error:  # what was there before holds until it is mended
            log.error("%s", error)
        found = [await run(None, self._look_up, name) for name in self._names]
        self._adopt([member for members in found for member in members])
        replicas = tuple(self.replicas.values())
        states = await asyncio.gather(*(run(None, self._health, r) for r in replicas))
        for replica, state in zip(replicas, states):
            if state != replica.state:
                log.warning("%s: %s, and was %s", replica.url, state, replica.state)
                replica.state = state

    def _look_up(self, name: str) -> list[Member]:
        """Return each machine of a name, as it is called on the ring."""
        uri = check_url(name, insecure=self._insecure)
        try:
            found = {address[0] for _, address in resolve(uri.host, uri.port)}
        except OSError as error:
            log.error("%s cannot be looked up: %s", uri.host, error)
            return [(r.url, r.name, False) for r in self.replicas.values() if r.name]
        shown = [f"[{host}]" if ":" in host else host for host in sorted(found)]
        parts = urlsplit(name)
        return [
            (parts._replace(netloc=f"{host}:{uri.port}").geturl(), uri.host, False)
            for host in shown
        ]

    def look_soon(self) -> None:
        """Look before the next look is due."""
        self._soon.set()

    async def pause(self) -> None:
        """Wait until the next look is due."""
        try:
            await asyncio.wait_for(self._soon.wait(), self.health_s)
            await asyncio.sleep(0.1)  # one look for all who have lost the same one
        except asyncio.TimeoutError:
            pass
        self._soon.clear()

    def _health(self, replica: Replica) -> str:
        """Ask for health; blocks."""
        uri = check_url(replica.url, insecure=True)
        opener = web(uri.host, self.context() if uri.secure else None)
        try:
            try:
                answer = opener.open(
                    health_url(replica.url), timeout=max(2.0, self.health_s)
                )
            except urllib.error.HTTPError as error:
                answer = error  # it can be read as well
            with answer:
                said = parse_json(answer.read(65536))
        except (OSError, ValueError):
            return "down"
        status = said.get("status") if isinstance(said, dict) else None
        return str(status) if status in ("ok", "draining") else "down"

    def context(self) -> ssl.SSLContext:
        """Return the TLS settings of connections to ``wss://``."""
        if self._tls is None:
            self._tls = tls_context(ca=None, cert=None, key=None)
        return self._tls

    # ---- who is to have what

    def has_no_room(self, replica: Replica, retry_after_s: float | None) -> None:
        """Note that it has turned something away, and may be asked again after a while."""
        now = asyncio.get_running_loop().time()
        replica.full_until = now + min(_FULL_S, retry_after_s or _FULL_S)

    def takes(self, replica: Replica, now: float) -> bool:
        """Return whether ``replica`` may get a new stream."""
        return replica.state == "ok" and not replica.drain and replica.full_until <= now

    def candidates(self, key: bytes, now: float) -> list[Replica]:
        """Return who may get the streams of a session, the likeliest first.

        By the ring, but for those who have much more than their share.

        Source: V. Mirrokni et al., "Consistent Hashing with Bounded Loads", SODA 2018.
        """
        order = [self.replicas[name] for name in self.ring.order(key)]
        fit = [replica for replica in order if self.takes(replica, now)]
        total = sum(replica.connections for replica in fit)
        most = math.ceil(SPARE * (total + 1) / max(1, len(fit)))
        # What has no room by our count may have some by its own.
        late = [r for r in order if r not in fit and r.state == "ok" and not r.drain]
        return sorted(fit, key=lambda replica: replica.connections >= most) + late

    def holders(self, key: bytes) -> list[Replica]:
        """Return where a stream of this key may be, the likeliest first."""
        order = [self.replicas[name] for name in self.ring.order(key)]
        return [replica for replica in order if replica.state != "down"]
