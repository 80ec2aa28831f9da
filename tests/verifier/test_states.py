"""The stream's table of states: what PROTOCOL.md shows is what runs.

Run as a program, this writes the picture into PROTOCOL.md.
"""

from __future__ import annotations

import enum
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from opens import asked, promised

from draftwire.errors import ConfigError, ModelError, ProtocolError
from draftwire.runtime.edge.machine import TABLE as DEVICE
from draftwire.transport.messages import Block, Commit, Finish
from draftwire.transport.states import after
from draftwire.verifier import target_session
from draftwire.verifier.states import TABLE, State
from draftwire.verifier.target_session import TargetSession

PROTOCOL = Path(__file__).resolve().parents[2] / "transport" / "PROTOCOL.md"


def diagram(table):
    """Return a picture of ``table``: a line for each transition, grouped by state."""
    rows = []
    for (state, event), found in table.items():
        states = [found] if not isinstance(found, frozenset) else found
        order = list(type(state))
        names = [s.name for s in sorted(states, key=order.index)]
        rows.append((state.name, event, " or ".join(names)))
    first = max(len(name) for name, _, _ in rows) + 2
    width = max(len(event) for _, event, _ in rows) + 3
    lines, shown = [], ""
    for name, event, following in rows:
        head = "" if name == shown else name
        lines.append(f"{head:{first}}{event + ' ':.<{width}} {following}")
        shown = name
    return "\n".join(lines)


def fill(text, name, table):
    """Return ``text`` with the picture between the comments for ``name``, in one place."""
    place = rf"(<!-- states: {re.escape(name)} -->\n).*?(<!-- end -->)"
    picture = f"\\1```\n{diagram(table)}\n```\n\\2"
    filled, count = re.subn(place, picture, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{count} places for the states of {name!r}, not one")
    return filled


def written():
    text = fill(PROTOCOL.read_text(encoding="utf-8"), "device", DEVICE)
    return fill(text, "verifier", TABLE)


def test_protocol_md_shows_the_table_that_runs():
    assert written() == PROTOCOL.read_text(encoding="utf-8"), f"run python {__file__}"


class Light(enum.Enum):
    RED = 1
    GREEN = 2


LIGHTS = {
    (Light.RED, "wait"): frozenset({Light.GREEN, Light.RED}),
    (Light.RED, "break"): Light.RED,
    (Light.GREEN, "wait"): Light.RED,
}


def test_a_table_is_stepped_and_drawn():
    assert diagram(LIGHTS) == (
        "RED    wait ... RED or GREEN\n       break .. RED\nGREEN  wait ... RED"
    )
    assert after(LIGHTS, Light.GREEN, "wait") is Light.RED
    assert after(LIGHTS, Light.RED, "wait", Light.GREEN) is Light.GREEN
    for state, event, to in (
        (Light.GREEN, "break", None),
        (Light.GREEN, "wait", Light.GREEN),
        (Light.RED, "wait", None),
    ):
        with pytest.raises(ValueError):
            after(LIGHTS, state, event, to)
    with pytest.raises(ValueError, match="0 places"):
        fill("nothing", "lights", LIGHTS)


V = 9


def session(**changes):
    base = dict(prompt=(1, 2, 3), max_new_tokens=6)
    request = asked(**{**base, **changes})
    return TargetSession(request, promised(V, max_block=4))


def one_hot(*tokens):
    rows = np.zeros((len(tokens), V), np.float32)
    rows[np.arange(len(tokens)), tokens] = 1
    return rows


def test_a_stream_goes_through_its_states():
    found = session()
    assert found.state is State.READING
    reading = found.poll()
    assert found.poll() is None  # one thing at a time
    found.receive(Block(0, 0, (3,)))
    assert found.complete(reading, one_hot()) == [] and found.state is State.WAITING
    work = found.poll()
    assert found.state is State.JUDGING
    found.complete(work, one_hot(3, 4))
    assert found.state is State.WAITING
    with pytest.raises(ValueError, match="not under way"):
        found.complete(work, one_hot(3, 4))
    with pytest.raises(ValueError, match="'< resume' cannot happen while WAITING"):
        found.resume(0)
    found.receive(Block(0, 2, (5,)))
    work = found.poll()
    found.detach(cached=True)
    found.detach(cached=True)
    assert found.state is State.PARKED and found.poll() is None
    with pytest.raises(ValueError, match="not under way"):
        found.complete(work, one_hot(5, 4))
    with pytest.raises(ValueError, match="'< block' cannot happen while PARKED"):
        found.receive(Block(0, 2, (5,)))
    found.resume(2)
    assert found.state is State.WAITING
    found.detach(cached=False)
    found.resume(2)
    assert found.state is State.READING
    found.complete(found.poll(), one_hot())
    found.receive(Block(found.epoch, 2, (5, 5, 5, 5)))
    (commit,) = found.complete(found.poll(), one_hot(5, 5, 5, 5))
    assert commit.finish is Finish.LENGTH and found.state is State.ENDED
    assert found.receive(Block(found.epoch, 9, (1,))) == []
    found.detach(cached=False)
    assert found.resume(4).tokens == (5, 5) and found.state is State.ENDED


def test_every_line_of_the_table_can_happen_and_nothing_else_does(monkeypatch):
    """A walk at random through everything that a device and a target can do."""
    seen, rng = set(), np.random.default_rng(4)

    def note(table, state, event, to=None):
        found = after(table, state, event, to)
        seen.add((state, event, found))
        return found

    monkeypatch.setattr(target_session, "after", note)
    for _ in range(600):
        found = session(
            scheme="separate",
            temperature=1.0,
            max_new_tokens=3,
            stop_ids=(3,) * int(rng.integers(2)),
            prompt=(1,) * int(rng.integers(1, 4)),
            seed=int(rng.integers(1 << 32)),
        )
        work = None
        for _ in range(30):
            try:
                move = rng.integers(6)
                if move < 2 and found.state is not State.PARKED:
                    held = len(found.committed())
                    owed = found.state is State.OWED
                    drafts = int(held + owed + 1 < 3)
                    found.receive(
                        Block(
                            found.epoch,
                            held + owed,
                            (int(rng.integers(V)),) * drafts,
                            b"\xff\xff\xff" * drafts,
                            correction=3 if owed else None,
                        )
                    )
                elif move == 2:
                    work = found.poll() or work
                elif move == 3 and work is not None:
                    rows = rng.normal(0, 3, (work.rows, V)).astype(np.float32)
                    found.complete(work, rows)
                    work = None
                elif move == 4:
                    found.detach(cached=bool(rng.random() < 0.5))
                    work = None
                    if rng.random() < 0.7:
                        found.resume(int(rng.integers(len(found.committed()) + 1)))
            except ProtocolError:
                break
    drawn = set()
    for (state, event), following in TABLE.items():
        following = following if isinstance(following, frozenset) else {following}
        drawn |= {(state, event, to) for to in following}
    assert seen == drawn


@pytest.mark.parametrize("scheme", ["residual", "qs", "separate"])
def test_a_race_of_a_scheme_that_may_not_is_refused(scheme):
    drawn = {"scheme": scheme, "temperature": 1.0}
    with pytest.raises(ConfigError, match="cannot race"):
        session(objective="latency", **drawn)
    found = session(**drawn)
    assert found.receive(Block(0, 0, (), race=True)) == []
    with pytest.raises(ConfigError, match="cannot race"):
        found.receive(Block(0, 0, (3,), race=True))


# ---- edges of the windows


@pytest.mark.parametrize("ahead", [0, 1, 127, 128, 255])
@pytest.mark.parametrize("epoch", [0, 100, 200])
def test_half_of_the_epochs_are_dead(epoch, ahead):
    found = session()
    for number in range(0, epoch + 1, 100):
        found.receive(Block(number, 0, ()))
    assert found.epoch == epoch
    found.receive(Block((epoch + ahead) & 0xFF, 0, (3,)))
    dead = ahead >= 128
    assert found.ready == (not dead)
    assert found.epoch == (epoch if dead else (epoch + ahead) & 0xFF)


@pytest.mark.parametrize(("base", "fits"), [(2, True), (3, True), (4, False)])
def test_evidence_ends_with_the_text(base, fits):
    found = session(scheme="separate", temperature=1.0, max_new_tokens=5)
    while len(found.committed()) < base:
        if found.state is State.READING:
            found.complete(found.poll(), one_hot())
        found.receive(Block(found.epoch, len(found.committed()), ()))
        found.complete(found.poll(), one_hot(1))
    block = Block(found.epoch, base, (1,), b"\xff\xff\xff")
    if fits:
        found.receive(block)
    else:
        with pytest.raises(ProtocolError, match="beyond the end"):
            found.receive(block)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 2])
def test_logits_that_are_no_numbers_are_an_error_that_says_where(bad, row):
    found = session()
    found.receive(Block(0, 0, (3, 4)))
    found.complete(found.poll(), one_hot())
    work = found.poll()
    rows = one_hot(3, 4, 5)
    rows[row, slice(None) if bad == -np.inf else 7] = bad
    assert found.foresee(work, rows, 0.0) is None
    with pytest.raises(ModelError, match=f"target t v1 .* for position {row} of the text"):
        found.complete(work, rows)
    fine = one_hot(3, 4, 5)
    fine[:, 8] = -np.inf  # an id that is impossible
    (commit,) = found.complete(work, fine)
    assert isinstance(commit, Commit) and (commit.accepted, commit.token) == (2, 5)


if __name__ == "__main__":
    PROTOCOL.write_text(written(), encoding="utf-8")
    sys.exit(0)
