"""Who may use a verifier, and how much of it: the token file and its limits.

One line a token; what follows the token limits all connections that show it together::

    # the arm in hall 2
    9f3k...  name=arm sessions=2 context=1024 blocks_per_s=50 bytes_per_s=20000

``sessions`` are streams at the same time, ``context`` the longest sequence in tokens.
The rates are kept by reading more slowly, as the network would; who runs far ahead of
blocks or bytes is told so and shown out. Tokens without ``sessions`` share what there is:
none takes more than its fair share while another waits, nor the last places beyond it.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import re
import secrets
import stat
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Callable, Sequence

from draftwire.errors import ConfigError, RefusedError
from draftwire.io import read_token_text, writing
from draftwire.verifier.serving.limits import Rate, Refusal

log = logging.getLogger("draftwire.verifier")

BURST_S = 2.0  # a rate may be exceeded by what it allows in this time
AHEAD_S = 10.0  # who would have to wait longer than this is shown out
FRAMES_PER_S = 4000.0
WAITS_S = 60.0  # who asked so lately may still wait for a place
_MIN_TOKEN = 16  # characters
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")


@dataclass(frozen=True)
class Account:
    """One token and what it allows; None is no limit beyond the verifier's own."""

    token: str  # what devices show
    name: str = "default"  # for logs, metrics and error messages
    sessions: int | None = None  # streams at the same time
    context: int | None = None  # longest sequence in tokens
    blocks_per_s: float | None = None  # blocks a second, over :data:`BURST_S`
    bytes_per_s: float | None = None  # message bytes a second from the devices, likewise
    # frames of any kind a second, by default :data:`FRAMES_PER_S`
    frames_per_s: float | None = None


class Usage:
    """What the devices of one account use now."""

    def __init__(self, account: Account, house: Accounts | None = None) -> None:
        self._house = house
        self.connections = 0  # open connections
        self.streams = 0  # running streams
        self.streams_of: Counter[object] = Counter()  # those of each target
        self.paused_s = 0.0  # seconds that its devices were made to wait
        self.revoked = False  # its token is not in the token file any more
        self._asked_s = -WAITS_S
        self.limit(account)

    def limit(self, account: Account) -> None:
        """Let other limits hold from now on."""
        self.account = account
        rates = (account.blocks_per_s, account.bytes_per_s)
        self._rates = [None if r is None else Rate(r, r * BURST_S) for r in rates]
        frames_per_s = account.frames_per_s or FRAMES_PER_S
        self.frame_rate = Rate(frames_per_s, frames_per_s / 2)  # over all its connections

    def check_share(self, served: object, slots: int, now: float) -> None:
        """Refuse a further stream of a target with ``slots``, if all that may are there.

        Raises:
            RefusedError: They are.
        """
        allowed = self.account.sessions
        if allowed is not None and self.streams >= allowed:
            raise Refusal(
                "limit",
                f"token {self.account.name!r} allows {allowed} streams at the same time",
                "end one of them; one whose link is lost ends within a minute",
            )
        if not self.may_have(slots, lambda usage: usage.streams_of[served], now):
            raise RefusedError(
                f"the target is busy: token {self.account.name!r} has its share of it",
                hint="try again later, or set sessions=N for it in the token file",
            )

    def may_have(
        self,
        places: int,  # that there are
        taken: Callable[[Usage], int],  # how many an account has
        now: float,
    ) -> bool:
        """Return whether one more place leaves the other accounts their fair share.

        It will come back for one, so from now on others leave it a share too.
        """
        self._asked_s = now
        everyone = () if self._house is None else self._house.all
        if len(everyone) < 2 or self.account.sessions is not None:
            return True
        others = [u for u in everyone if u is not self]
        active = sum(taken(u) > 0 or now - u._asked_s < WAITS_S for u in others)
        if taken(self) < places // max(2, 1 + active) or not taken(self):
            return True
        return places - sum(map(taken, everyone)) > max(1, places // 8)

    def pace(self, frame_bytes: int, blocks: int, now: float) -> float:
        """Count a frame of so many bytes, and ``blocks`` (1, or 0 for other messages).

        Returns:
            Seconds to wait before the next is read.

        Raises:
            Refusal: That would be longer than :data:`AHEAD_S`.
        """
        wait = 0.0
        words = ("blocks_per_s", "bytes_per_s")
        for rate, amount, word in zip(self._rates, (blocks, frame_bytes), words):
            if rate is None or not amount:
                continue
            seconds = rate.take(amount, now)
            if seconds > AHEAD_S:
                raise Refusal(
                    "limit",
                    f"token {self.account.name!r} has {word}={rate.rate:g}, and its "
                    f"devices are {seconds:.0f} s ahead of that",
                    "send less, or raise it in the verifier's token file",
                )
            wait = max(wait, seconds)
        self.paused_s += wait
        return wait


class Accounts:
    """Finds the account of a token, in a time that tells nothing about the tokens.

    No accounts at all let everyone in, without limits.
    """

    def __init__(self, accounts: Sequence[Account] = ()) -> None:
        self.open = not accounts
        self.all: tuple[Usage, ...] = ()
        self.update(accounts or (Account("", "everyone"),))

    def update(self, accounts: Sequence[Account]) -> None:
        """Let ``accounts`` connect and no others; those that are gone are revoked."""
        known = {usage.account.token: usage for usage in self.all}
        for account in accounts:
            if account.token in known and known[account.token].account != account:
                known[account.token].limit(account)
        self.all = tuple(
            known.pop(a.token) if a.token in known else Usage(a, self) for a in accounts
        )
        for usage in known.values():
            usage.revoked = True

    @classmethod
    def of(cls, token: str | None) -> Accounts:
        """Return the accounts of a verifier with one token, or with none."""
        return cls(() if token is None else (Account(token),))

    def find(self, headers: Sequence[str]) -> Usage | None:
        """Return whose ``Authorization`` headers these are, or None."""
        if self.open:
            return self.all[0]
        if len(headers) != 1:
            return None
        scheme, _, token = headers[0].partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        found = None
        for usage in self.all:  # always all of them
            if hmac.compare_digest(given, usage.account.token.encode("utf-8")):
                found = usage
        return found if scheme.lower() == "bearer" else None


# ---- the token file


def read_accounts(path: Path) -> tuple[Account, ...]:
    """Return the accounts in a token file; warn when others can read it.

    Raises:
        ConfigError: It cannot be read, or a line is wrong.
    """
    hint = f"make one: draftwire verifier token --out {path}"
    lines = read_token_text(path, hint).splitlines()
    found: list[Account] = []
    for number, line in enumerate(lines, 1):
        line, where = line.split("#", 1)[0].strip(), f"{path}, line {number}"
        if not line:
            continue
        account = parse_account(line, where, f"line{number}" if found else "default")
        for other in found:
            if other.token == account.token:
                raise ConfigError(f"{where}: this token was there before")
            if other.name == account.name:
                raise ConfigError(f"{where}: the name {other.name} is taken")
        found.append(account)
    if not found:
        raise ConfigError(f"the token file {path} holds no token", hint=hint)
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("other users can read the token file %s: chmod 600 %s", path, path)
    return tuple(found)


_WHOLE, _NUMBER = (int, "a whole number"), (float, "a number")
_MOST = 1 << 40
_LIMITS: dict[str, tuple[Any, str, float]] = {  # how to read them, and the least
    "name": (str, "a name has up to 32 letters, digits, '.', '_' and '-'", 0),
    "sessions": (*_WHOLE, 1),
    "context": (*_WHOLE, 2),
    "blocks_per_s": (*_NUMBER, 0.01),
    "bytes_per_s": (*_NUMBER, 0.01),
    "frames_per_s": (*_NUMBER, 0.01),
}
assert set(_LIMITS) == {f.name for f in fields(Account)} - {"token"}


def parse_account(line: str, where: str, name: str = "default") -> Account:
    """Return the account of a line of a token file: ``TOKEN [KEY=VALUE ...]``.

    ``where`` it stands is for complaints; ``name`` is that of a line without one.

    Raises:
        ConfigError: The line is wrong.
    """
    token, *rest = line.split()
    if len(token) < _MIN_TOKEN or token.partition("=")[0] in _LIMITS:
        raise ConfigError(
            f"{where}: a line begins with a token of at least {_MIN_TOKEN} characters",
            hint="write TOKEN name=WHO sessions=N; `draftwire verifier token` makes one",
        )
    values: dict[str, Any] = {}
    for word in rest:
        key, equals, text = word.partition("=")
        if not equals or key not in _LIMITS:
            raise ConfigError(
                f"{where}: there is no limit {key!r}",
                hint="known: " + ", ".join(f"{k}=..." for k in _LIMITS),
            )
        if key in values:
            raise ConfigError(f"{where}: {key} is there twice")
        kind, wanted, least = _LIMITS[key]
        try:
            values[key] = kind(text)
            fits = _NAME.fullmatch(text) if kind is str else least <= values[key] <= _MOST
        except ValueError:
            fits = False
        if not fits or (kind is not str and "_" in text):
            hint = wanted if kind is str else f"{wanted} from {least:g}"
            raise ConfigError(f"{where}: {key}={text} will not do", hint=hint)
    return Account(token, **{"name": name, **values})


def make_token_line(limits: str = "") -> str:
    """Return a line of a token file: a new random token of 256 bits, then ``limits``.

    Raises:
        ConfigError: A limit is unknown or out of range.
    """
    line = f"{secrets.token_urlsafe(32)} {limits}".strip()
    parse_account(line, "--limits")
    return line


def write_token_file(path: Path, line: str, *, append: bool = False) -> None:
    """Write a token's line to ``path``, readable by its owner alone.

    ``append`` adds it to the tokens that are there; otherwise there must be none.

    Raises:
        ConfigError: There is something at ``path``, or it cannot be written, or the
            line does not go with those that are there.
        OutputError: The disk is full; what was there is as before.
    """
    text = line + "\n"
    if append and path.exists():
        known = read_accounts(path)  # says what is wrong with it, if anything
        name = parse_account(line, "the new line").name
        if name in {account.name for account in known}:
            raise ConfigError(
                f"there is a token of the name {name} in {path} already",
                hint="give another one: --limits name=WHO",
            )
        if not path.read_bytes().endswith(b"\n"):
            text = "\n" + text
    flags = os.O_APPEND if append else os.O_EXCL
    with writing(path), contextlib.ExitStack() as half:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
        except FileExistsError as error:
            raise ConfigError(
                f"there is something at {path} already",
                hint="add to it with --append, or choose another name",
            ) from error
        size = os.fstat(handle).st_size
        half.callback(os.truncate, path, size) if size else half.callback(path.unlink)
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(text)
        half.pop_all()
