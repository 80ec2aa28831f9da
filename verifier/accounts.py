"""Who may use a verifier, and how much of it: the token file and its limits.

One line a token; what follows the token limits all connections that show it together::

    # the arm in hall 2
    9f3k...  name=arm sessions=2 context=1024 blocks_per_s=50 bytes_per_s=20000

``sessions`` are streams at the same time, ``context`` the longest sequence in tokens.
The two rates are kept by reading more slowly, as the network would; who runs far ahead
of them is told so and shown out.
"""

from __future__ import annotations

import hmac
import logging
import re
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Callable, Sequence

from draftwire.errors import ConfigError, RefusedError

__all__ = [
    "Account",
    "Accounts",
    "LimitError",
    "Usage",
    "parse_account",
    "read_accounts",
]

log = logging.getLogger("draftwire.verifier")

BURST_S = 2.0  # a rate may be exceeded by what it allows in this time
AHEAD_S = 10.0  # who would have to wait longer than this is shown out
_MIN_TOKEN = 16  # characters
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class LimitError(RefusedError):
    """An account has used up what it allows."""

    code = "limit"


@dataclass(frozen=True)
class Account:
    """One token and what it allows; None is no limit beyond the verifier's own.

    Attributes:
        token: What devices show.
        name: For logs, metrics and error messages.
        sessions: Streams at the same time.
        context: Longest sequence in tokens.
        blocks_per_s: Blocks a second, over :data:`BURST_S`.
        bytes_per_s: Message bytes a second from the devices, likewise.
    """

    token: str
    name: str = "default"
    sessions: int | None = None
    context: int | None = None
    blocks_per_s: float | None = None
    bytes_per_s: float | None = None


class _Rate:
    """A token bucket that lends: it says how long to wait for what was taken."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._burst = max(1.0, rate * BURST_S)
        self._left = self._burst
        self._at: float | None = None

    def take(self, amount: float, now: float) -> float:
        """Take ``amount``; return the seconds until it is covered."""
        if self._at is not None:
            self._left = min(self._burst, self._left + (now - self._at) * self.rate)
        self._at = now
        self._left -= amount
        return max(0.0, -self._left / self.rate)


class Usage:
    """What the devices of one account use now.

    Attributes:
        account: Its limits.
        connections: Open connections.
        streams: Running streams.
        paused_s: Seconds that its devices were made to wait.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.connections = 0
        self.streams = 0
        self.paused_s = 0.0
        rates = (account.blocks_per_s, account.bytes_per_s)
        self._rates = [None if rate is None else _Rate(rate) for rate in rates]

    def check_share(self) -> None:
        """Refuse a further stream when there are as many as allowed.

        Raises:
            LimitError: There are.
        """
        allowed = self.account.sessions
        if allowed is not None and self.streams >= allowed:
            raise LimitError(
                f"token {self.account.name!r} allows {allowed} streams at the same time",
                hint="end one of them; one whose link is lost ends within a minute",
            )

    def pace(self, frame_bytes: int, blocks: int, now: float) -> float:
        """Count a frame; return the seconds to wait before the next is read.

        Args:
            frame_bytes: Its length.
            blocks: 1 for a block, 0 for other messages.
            now: Monotonic seconds.

        Raises:
            LimitError: That would be longer than :data:`AHEAD_S`.
        """
        wait = 0.0
        words = ("blocks_per_s", "bytes_per_s")
        for rate, amount, word in zip(self._rates, (blocks, frame_bytes), words):
            if rate is None or not amount:
                continue
            seconds = rate.take(amount, now)
            if seconds > AHEAD_S:
                raise LimitError(
                    f"token {self.account.name!r} has {word}={rate.rate:g}, and its "
                    f"devices are {seconds:.0f} s ahead of that",
                    hint="send less, or raise it in the verifier's token file",
                )
            wait = max(wait, seconds)
        self.paused_s += wait
        return wait


class Accounts:
    """Finds the account of a token, in a time that tells nothing about the tokens.

    Args:
        accounts: Those who may connect; none at all lets everyone in, without limits.
    """

    def __init__(self, accounts: Sequence[Account] = ()) -> None:
        self.open = not accounts
        self.all = tuple(Usage(a) for a in (accounts or (Account("", "everyone"),)))
        self._tokens = [usage.account.token.encode("utf-8") for usage in self.all]

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
        for usage, known in zip(self.all, self._tokens):  # always all of them
            if hmac.compare_digest(given, known):
                found = usage
        return found if scheme.lower() == "bearer" else None


def read_accounts(path: Path) -> tuple[Account, ...]:
    """Return the accounts in a token file; warn when others can read it.

    Raises:
        ConfigError: It cannot be read, or a line is wrong.
    """
    hint = f"make one: draftwire verifier token --out {path}"
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the token file {path}: {error}", hint=hint
        ) from error
    found: list[Account] = []
    for number, line in enumerate(lines, 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        name = "default" if not found else f"line{number}"
        account = _account(words, name, f"{path}, line {number}")
        for other in found:
            if other.token == account.token:
                raise ConfigError(f"{path}, line {number}: this token was there before")
            if other.name == account.name:
                raise ConfigError(f"{path}, line {number}: the name {other.name} is taken")
        found.append(account)
    if not found:
        raise ConfigError(f"the token file {path} holds no token", hint=hint)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        log.warning("other users can read the token file %s: chmod 600 %s", path, path)
    return tuple(found)


def parse_account(line: str, where: str) -> Account:
    """Return the account of one line of a token file.

    Args:
        line: ``TOKEN [KEY=VALUE ...]``, without a comment.
        where: It stands, for complaints.

    Raises:
        ConfigError: The line is wrong.
    """
    return _account(line.split(), "default", where)


def _account(words: Sequence[str], name: str, where: str) -> Account:
    token, *rest = words
    if len(token) < _MIN_TOKEN or token.partition("=")[0] in _READERS:
        raise ConfigError(
            f"{where}: a line begins with a token of at least {_MIN_TOKEN} characters",
            hint="write TOKEN name=WHO sessions=N; `draftwire verifier token` makes one",
        )
    values: dict[str, object] = {}
    for word in rest:
        key, equals, text = word.partition("=")
        if not equals or key not in _READERS:
            raise ConfigError(
                f"{where}: there is no limit {key!r}",
                hint="known: " + ", ".join(f"{k}=..." for k in _READERS),
            )
        if key in values:
            raise ConfigError(f"{where}: {key} is there twice")
        read, wanted = _READERS[key]
        try:
            values[key] = read(text)
        except ValueError:
            raise ConfigError(f"{where}: {key}={text} will not do", hint=wanted) from None
    return Account(token, **{"name": name, **values})  # type: ignore[arg-type]


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError
    return text


def _whole(text: str, least: int = 1) -> int:
    if not text.isdecimal() or not least <= int(text) <= 1 << 24:
        raise ValueError
    return int(text)


def _rate(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 1e12:
        raise ValueError
    return value


# How to read each limit, and what is wanted.
_READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "name": (_name, "a name has up to 32 letters, digits, '.', '_' and '-'"),
    "sessions": (_whole, "a whole number from 1"),
    "context": (lambda text: _whole(text, 2), "a whole number from 2"),
    "blocks_per_s": (_rate, "a number from 0.01"),
    "bytes_per_s": (_rate, "a number from 0.01"),
}
assert set(_READERS) == {f.name for f in fields(Account)} - {"token"}
