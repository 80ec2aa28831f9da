"""Files written whole or not at all; JSON read; tables, hints, times and sizes as text."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    TypeVar,
)

from draftwire.errors import ConfigError, OutputError, PackageError

if TYPE_CHECKING:
    import subprocess

_T = TypeVar("_T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # there is no room for a file
_DEEPEST = 200  # of JSON: what walks a value later does not come to Python's own limit
_DEEP = f"it is nested more than {_DEEPEST} deep"
_SCRATCH = ".draftwire-"
_WIDTH = 100  # of sentences in columns
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where draftwire keeps what it can make or fetch again."""
    own = environ.get("CACHE_DIRECTORY", "").split(":")[0]  # the service's
    home = environ.get("XDG_CACHE_HOME") or os.path.join(
        environ.get("HOME") or environ.get("TMPDIR", "/tmp"), ".cache"
    )
    return Path(own) if own else Path(home) / "draftwire"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path that this gives: it takes the place of ``path`` at the end.

    Readers see all of it or nothing, and an exception leaves what was there before. A pipe
    or a device is written in place: there is nothing to rename (OSError: the file cannot be
    written).
    """
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()


@contextlib.contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """Give a new folder in ``folder``, which is made, and remove it at the end.

    Each is locked while its process lives: those that killed ones left behind go first.
    """
    import shutil  # where something large is made

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(_SCRATCH + 12 * "[0-9a-f]"):
        with _locked(left, wait=False) as ours:
            if ours:
                shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as held:
        while True:
            scratch = folder / f"{_SCRATCH}{os.urandom(6).hex()}"
            with writing(folder):
                scratch.mkdir()
            held.enter_context(_locked(scratch, wait=True))
            if scratch.is_dir():  # nobody took it for left behind meanwhile
                break
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock on a folder; False where another has it, or there are no locks."""
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
        else:
            yield True


def read_text(path: Path, most: int, what: str) -> str:
    """Return the text of a file of at most ``most`` bytes (PackageError: it is missing, too
    long, or cannot be read as ``what``)."""
    try:
        if path.stat().st_size > most:
            raise PackageError(f"{path} is too long for {what}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise PackageError(f"there is no {path.name} in {path.parent}") from exc
    except (OSError, ValueError) as exc:
        raise PackageError(f"{path} cannot be read as {what}: {exc}") from exc


def read_token_text(path: Path, hint: str) -> str:
    """Return what a token file holds (ConfigError: it cannot be read; ``hint`` says what to
    do then, unless it is there for others alone)."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        if isinstance(exc, PermissionError):
            hint = f"it is read as user {os.geteuid()}: chown {os.geteuid()} {path}"
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(f"cannot read the token file {path}: {why}", hint=hint) from exc


def parse_json(
    data: str | bytes, once: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Return what a JSON text says; bytes are UTF-8. ``once`` makes an object of its pairs.

    A ValueError in words for what is none, and for what is nested more than 200 deep.
    """
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        value = json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError(_DEEP) from None
    level = [value] if text.count("[") + text.count("{") > _DEEPEST else []
    for _ in range(_DEEPEST):
        inside = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for some in inside for v in some if isinstance(v, (dict, list))]
    if level:
        raise ValueError(_DEEP)
    return value


def environment(**more: str) -> dict[str, str]:
    """Return ours and ``more``, so that a child finds this very package."""
    home = str(Path(__file__).absolute().parents[1])
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([home, *path]), **more}


def end_child(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Ask a process to end, and end it where it does not; harmless when it has."""
    import subprocess  # where there is a process

    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a loop of its own; Ctrl-C cancels it, so that it can clean up,
    and is raised. So do SIGTERM and SIGHUP where a handler of ours would raise anywhere.

    It is cancelled again until it ends: ``asyncio.wait_for`` may lose one before Python
    3.12, when what it waits for comes at the same time.
    """
    import asyncio  # where there is something to run
    import signal

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    came: list[signal.Signals] = []

    async def cancellable() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel(number: signal.Signals) -> None:
            assert task is not None
            came.append(number)
            task.cancel()
            loop.call_later(1.0, cancel, number)

        for number in numbers:
            if number is signal.SIGINT or callable(before[number]):
                loop.add_signal_handler(number, cancel, number)
        return await work

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if came and came[0] is not signal.SIGINT:
            raise SystemExit(128 + came[0]) from None
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was not Python's
                signal.signal(number, handler)


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds (ConfigError: it cannot be read, or is none)."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as handle:
            return dict(tomllib.load(handle))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what the system refuses (OutputError: the disk is full; ConfigError: ``path``
    cannot be written)."""
    try:
        yield
    except OSError as exc:
        what = f"cannot write {path}: {exc.strerror or exc}"
        if exc.errno in FULL:
            raise OutputError(what) from exc
        raise ConfigError(what, hint="name another place") from exc


def write_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Let ``make`` write a file that takes the place of ``path``, see :func:`replacing`
    and :func:`writing`."""
    with writing(path), replacing(path) as temporary:
        make(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; errors as of :func:`writing`."""

    def put(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_whole(path, put)


def align(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> str:
    """Return rows as columns; those of ``left`` stand to the left, others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table: the first column to the left, others to the right, - for None."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    rule = ["-" * max(map(len, column)) for column in zip(*cells)]
    return align([cells[0], rule, *cells[1:]])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def labelled(label: str, text: str, *, width: int = 12) -> str:
    """Return ``label`` and ``text`` in two columns, the text folded in its own."""
    return wrapped(text, " " * (width + 1), f"{label:<{width}} ")


def wrapped(text: str, indent: str = "  ", first: str = "") -> str:
    """Return ``text`` folded behind ``first``, later lines indented."""
    import textwrap  # where there is something to fold

    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def list_of(values: Iterable[Any]) -> str:
    """Return the values with commas, or ``"none"``."""
    return ", ".join(str(value) for value in values) or "none"


def did_you_mean(
    name: str, known: Iterable[str], otherwise: str = "", *, cutoff: float = 0.6
) -> str:
    """Return the hint that names what of ``known`` is nearest; if none, ``otherwise``."""
    import difflib  # when somebody has misspelt something

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {close[0]}?" if close else otherwise


def parse_seconds(text: str, *, zero: bool = False) -> float:
    """Parse ``500ms``, ``60s``, ``5m``, ``2h`` or a number of seconds (ConfigError: it is
    something else, or not positive (0 with ``zero`` is taken))."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text)
    try:
        value = float(match.group(1)) * _SECONDS[match.group(2)]  # type: ignore[union-attr]
    except (AttributeError, KeyError, ValueError) as exc:
        raise ConfigError(f"{text!r} is no time", hint="e.g. 500ms, 60s, 5m") from exc
    if not (value > 0 or zero and value == 0) or not math.isfinite(value):
        raise ConfigError(f"{text!r} is not a positive time")
    return value


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``"1.20.1+cu12"`` is ``(1, 20, 1)``."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def quantity(value: float | None, half: float | None, unit: str = "J") -> str:
    """Return a value rounded to what its uncertainty leaves of it: ``1350 +- 14 J``."""
    if value is None:
        return "-"
    if half is None or not half > 0 or not math.isfinite(half):
        return significant(value, unit)
    digits = 1 - math.floor(math.log10(half))  # two digits of the uncertainty
    half = round(half, digits)
    places = max(digits, 0)
    if places > 4 and unit[:1] in "JW":
        return quantity(value * 1e3, half * 1e3, "m" + unit)
    return f"{round(value, digits):.{places}f} +- {half:.{places}f} {unit}"


def significant(value: float | None, unit: str = "J") -> str:
    """Return three digits of a value in a fitting unit: ``4.05 mJ``."""
    if value is None:
        return "-"
    for factor, prefix in ((1.0, ""), (1e3, "m"), (1e6, "u")):
        if abs(value) * factor >= 1 or prefix == "u" or value == 0:
            text = f"{value:.0f}" if abs(value) >= 1e3 else f"{value * factor:.3g}"
            return f"{text} {prefix}{unit}"
    return f"{value:g} {unit}"
