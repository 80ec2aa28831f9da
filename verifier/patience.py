"""Patience: when the next forward of a race should wait for drafts that are on their way.

A race begins its next forward at once. Where the device's drafts come a moment later, that
forward has little to judge and the drafts wait for its end. A forward that is held back
until they have come commits more; what it costs is the hold.

The law stays: no token comes later than by streaming from the cloud. A stream may hold a
forward back only to where streaming would have begun it (``due_s``): on credit of time
that its drafts have gained already. In a batch every stream must have that credit.

The rule is a decision table: the best that can be done where each draft is right with the
same chance, found once for each pace of a stream (:class:`Table`). It weighs the tokens of
this forward, what is left over for the next one, and the hold at the price of what the
stream makes in that time.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from functools import partial
from statistics import median
from typing import Callable, NamedTuple, Sequence

import numpy as np

from draftwire.verifier.rows import Share

_SLACK = 1.5  # drafts may be late by half of the hold, or as late as of late
_LEAST = 0.05  # tokens that a hold must gain, for forecasts are none too sure
_TABLES = 64  # that are kept: some 100 KB each
_ROWS, _MOST = 8, 47  # batches that a forward counts, and 7 drafts; the most drafts
# How far the table goes: tokens that the text is ahead of the device; drafts that the
# device is ahead of the text, in those that a forward counts.
_BEHIND, _AHEAD = 12, 1.6
_UNIT = 4  # parts of a step that it tells apart
_COLUMNS = 40  # and the most of them
_STEPS = 15  # blocks whose median tells the pace
_BACKS = 7  # likewise, of those that begin anew
_PRIOR = 6.0  # drafts that the first guess at the acceptance weighs


class Table:
    """What it is worth to begin a forward, by drafts at hand and when the next ones come.

    A semi-Markov decision process. State: the drafts at hand (below 0: the text is ahead of
    the device) and the time until the next arrive. Action: wait for `k` arrivals, then go.
    Only where every draft is right goes the branch on; otherwise the device begins anew,
    and that state has the value 0. With the pace `rate`::

        value(state) = max over k of tokens(k) - rate * (wait(k) + forward) + chance that
                       all are right * value(next state)

    and `rate` is the one that makes the value of beginning anew 0 (Dinkelbach). Times are
    in steps of the device; ``rate`` is tokens a step.
    """

    def __init__(
        self,
        acceptance: float,  # chance that a draft is right if those before it are
        forward: float,  # of the target
        back: float,  # from a rejection's verdict to the first draft behind it
        batch: int,  # drafts that come at once
        leaf: float = 0.0,  # share of wrong drafts where a leaf brings one more token
    ) -> None:
        a, self.batch = acceptance, batch
        rows = min(_ROWS * batch + 7, _MOST)  # drafts that a forward counts
        ahead = int(_AHEAD * rows)
        # Far arrivals are told apart more coarsely.
        self.unit = unit = max(1 / _UNIT, back / _COLUMNS)
        columns = int(math.ceil(back / unit)) + 1
        shape = (_BEHIND + ahead + 1, columns)
        m = np.broadcast_to(np.arange(-_BEHIND, ahead + 1)[:, None], shape)
        nu = np.broadcast_to(np.arange(columns) * unit, shape)
        waits = min(int(forward) + 2, -(-rows // batch)) + 1
        tokens, times, chances, after = [], [], [], []
        for k in range(waits):
            wait = nu + (k - 1) if k else np.zeros(shape)
            judged = np.clip(m + batch * k, 0, rows)
            time = wait + forward
            came = np.where(time >= nu, np.floor(time - nu + 1e-9) + 1, 0)
            left = m + batch * came - (judged + 1)
            next_nu = nu + came - time
            # What comes until the device hears of it counts as well.
            trip = max(back - 0.5, 1.0)
            late = np.where(trip >= next_nu, np.floor(trip - next_nu + 1e-9) + 1, 0)
            chance = np.where(left + batch * late < 0, 0.0, a ** (judged + 1.0))
            column = np.clip(np.rint(next_nu / unit), 0, columns - 1)
            row = np.clip(left, -_BEHIND, ahead) + _BEHIND
            gain = (1 - a ** (judged + 1.0)) / (1 - a) + leaf * (1 - a**judged)
            gain = np.where(wait > forward + 1e-9, -1e9, gain)
            tokens.append(gain)
            times.append(time)
            chances.append(chance)
            after.append((row * columns + column).astype(np.intp))
        gains, costs, keeps, nexts = map(np.array, (tokens, times, chances, after))
        start = _BEHIND * columns + min(int(round(back / unit)), columns - 1)
        self.rate, value = 1 / forward, np.zeros(m.size)
        for _ in range(12):
            base = gains - self.rate * costs
            for _ in range(200):
                worth = base + keeps * value[nexts]
                new = worth.max(0).ravel()
                done = float(np.abs(new - value).max()) < 1e-3
                value = new
                if done:
                    break
            again = self.rate + value[start] / self._seconds(
                worth, costs, keeps, nexts, start
            )
            if abs(again - self.rate) < 1e-4 * self.rate:
                break
            self.rate = again
        # ``(states, columns, waits)``
        self.worth = np.moveaxis(worth, 0, 2).astype(np.float32)

    @staticmethod
    def _seconds(
        worth: np.ndarray, costs: np.ndarray, keeps: np.ndarray, nexts: np.ndarray, at: int
    ) -> float:
        """Return the time from one beginning anew to the next, doing what is best."""
        flat = [x.reshape(len(worth), -1) for x in (worth, costs, keeps, nexts)]
        reach, found = 1.0, 0.0
        for _ in range(200):
            k = int(flat[0][:, at].argmax())
            found += reach * float(flat[1][k, at])
            reach *= float(flat[2][k, at])
            if reach < 1e-4:
                break
            at = int(flat[3][k, at])
        return found

    def at(self, ready: int, until: float) -> np.ndarray:
        """Return what each number of waits is worth, ``(waits,)`` tokens.

        ``ready`` drafts are at hand, and the next ones come in ``until`` steps.
        """
        row = min(max(ready + _BEHIND, 0), len(self.worth) - 1)
        column = min(max(int(round(until / self.unit)), 0), self.worth.shape[1] - 1)
        found: np.ndarray = self.worth[row, column]
        return found


class Key(NamedTuple):
    """What a table is for; streams that are nearly alike share theirs."""

    acceptance: float  # see :class:`Table`, as the others
    forward: float  # in steps
    back: float  # in steps
    batch: int  # drafts that come at once
    leaf: float  # share of wrong drafts where one more token comes

    def make(self) -> Table:
        """Return the table: some milliseconds of work."""
        return Table(*self)


class Tables:
    """Tables that were made, and are to be made elsewhere: they take some milliseconds.

    ``make`` is called with what makes a table and who takes it, perhaps at once.
    """

    def __init__(
        self, make: Callable[[Callable[[], Table], Callable[[object], None]], None]
    ) -> None:
        self._make = make
        self._known: OrderedDict[Key, Table | None] = OrderedDict()

    def find(self, key: Key) -> Table | None:
        """Return a table, or None while it is not made yet."""
        if key not in self._known:
            self._known[key] = None
            self._make(key.make, partial(self._take, key))
            while len(self._known) > _TABLES:
                self._known.popitem(last=False)
        return self._known.get(key)

    def _take(self, key: Key, table: object) -> None:
        if isinstance(table, Table):
            self._known[key] = table


def _rounded(value: float) -> float:
    """Return ``value`` to some 5 %."""
    return float(1.1 ** round(math.log(max(value, 0.1)) / math.log(1.1)))


class Outlook(NamedTuple):
    """What a stream can expect of a forward that begins later."""

    acceptance: float  # chance that a draft is right if all before it are
    ready: int  # drafts at hand; below 0, the text is so far ahead of the device
    next_s: float  # when the next ones come, seconds of the clock; infinity: nobody knows
    step_s: float  # from then on they come at this interval
    back_s: float  # from a rejection's verdict to the first draft behind it
    batch: float  # so many at a time
    due_s: float  # the forward must have begun by then
    leaf: float = 0.0  # share of wrong drafts where one more token comes
    late_s: float = 0.0  # they may well come so much later

    def key(self, forward_s: float) -> Key:
        """Return whose table says what to do, where a forward takes ``forward_s``."""
        near = min(max(round(self.acceptance * 40) / 40, 0.3), 0.975)
        pace = _rounded(forward_s / self.step_s), _rounded(self.back_s / self.step_s)
        return Key(near, *pace, max(1, round(self.batch)), round(self.leaf * 8) / 8)


def hold_until(
    now_s: float, streams: Sequence[Outlook], forward_s: float, tables: Tables
) -> float:
    """Return until when the next forward shall be held back; ``now_s``: not at all.

    ``streams`` are what each of the batch can expect; a forward takes ``forward_s``, and no
    hold is longer.
    """
    end_s = min(now_s + forward_s, *(stream.due_s for stream in streams))
    known = [s for s in streams if s.next_s <= end_s and s.step_s > 0]
    if end_s <= now_s or not known:
        return now_s
    worths = []
    for s in known:
        table = tables.find(s.key(forward_s))
        if table is None:
            return now_s
        until = max(0.0, s.next_s - now_s) / s.step_s
        worths.append((s, table.at(s.ready, until), table.rate / s.step_s))
    # Who expects nothing loses what it makes meanwhile.
    others = (len(streams) - len(known)) / forward_s
    moments = {
        max(now_s, s.next_s + i * s.step_s)
        for s, worth, _ in worths
        for i in range(len(worth) - 1)
        if s.next_s + i * s.step_s <= end_s
    }
    best, at_s = -math.inf, now_s
    for when_s in sorted({now_s, *moments}):  # now comes first
        total = -others * (when_s - now_s)
        for s, worth, rate in worths:
            k = 0
            if when_s > now_s and when_s >= s.next_s - 1e-9:
                k = 1 + int((when_s - s.next_s) / s.step_s + 1e-6)
                k = min(k, len(worth) - 1)
            came_s = now_s if not k else max(now_s, s.next_s + (k - 1) * s.step_s)
            total += float(worth[k]) - rate * (when_s - came_s)
        if total > best + (_LEAST if at_s == now_s else 1e-6):
            best, at_s = total, when_s
    if at_s <= now_s:
        return now_s
    late_s = max((_SLACK - 1) * (at_s - now_s), *(s.late_s for s in known))
    return min(at_s + late_s, end_s)


class Pace:
    """How a device drafts, learned from all streams of its connection."""

    def __init__(self) -> None:
        self.right = Share(0.7, _PRIOR)  # of the drafts
        self.back_s = math.nan  # see :class:`Outlook`, as the others
        self.step_s, self.batch = math.nan, 1.0
        self.spread_s = 0.0  # from ``back_s`` to the longest, of late
        # What it drafts besides, and what it had prepared, are no measure of its pace: so
        # medians.
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._batches: deque[int] = deque(maxlen=_STEPS)
        self._backs: deque[float] = deque(maxlen=_BACKS)

    def went_on(self, seconds: float) -> None:
        """Drafts came that long after those before them."""
        self._steps.append(seconds)
        self.step_s = median(self._steps)

    def came_back(self, seconds: float) -> None:
        """Drafts came that long after the news that they begin anew behind."""
        self._backs.append(seconds)
        self.back_s = median(self._backs)
        self.spread_s = max(self._backs) - self.back_s

    def brought(self, count: int) -> None:
        """So many drafts came at once."""
        self._batches.append(count)
        self.batch = float(median(self._batches))


class Arrivals:
    """When one stream's drafts come, by those that came, at the device's ``pace``.

    Positions count from the end of the prompt.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._epoch = -1  # of the branch that has come last
        self._tip = 0  # end of what has come of it
        self._last_s = 0.0  # when it came
        self._broken: tuple[int, float] | None = None  # the commit that ended it
        self._commits: deque[tuple[int, float]] = deque(maxlen=64)  # length, when told

    def block(self, now_s: float, epoch: int, base: int, count: int, alive: int) -> None:
        """Note ``count`` drafts that came of branch ``epoch``, from position ``base`` on.

        ``alive`` is the branch that the verifier goes on with after them.
        """
        if epoch != alive:  # they contradict the text: who wrote them has heard of that
            if epoch == self._epoch and self._broken is None:
                self._broken = self._commit_beyond(base)
            return
        if epoch == self._epoch and base == self._tip:
            self.pace.went_on(now_s - self._last_s)
        else:  # the device has begun anew, behind the text as it knew it
            heard = self._broken  # an exit told it before its text has grown
            if heard is not None and base >= heard[0]:
                heard = self._commit_beyond(base - 1)
            if heard is not None:
                self.pace.came_back(now_s - heard[1])
        self.pace.brought(count)
        self._epoch, self._tip, self._last_s = epoch, base + count, now_s
        self._broken = None

    def commit(
        self, now_s: float, length: int, alive: int, told_s: float | None = None
    ) -> None:
        """Note that the text has grown to ``length``; an early exit told so at ``told_s``.
        See :meth:`block`."""
        behind = alive != self._epoch and self._broken is None
        if told_s is None or (behind and told_s + self.pace.back_s < now_s):
            told_s = now_s  # or the device did not believe it
        self._commits.append((length, told_s))
        if behind:
            self._broken = length, told_s

    def judged(self, right: int, wrong: int) -> None:
        """Note drafts that turned out so."""
        self.pace.right.add(right, right + wrong)

    def outlook(
        self, now_s: float, length: int, ready: int, due_s: float, leaf: float = 0.0
    ) -> Outlook:
        """Return what the stream can expect behind a text of ``length``."""
        next_s, pace = self._next_s(length), self.pace
        step_s, back_s = pace.step_s, pace.back_s
        if math.isnan(back_s + step_s) or now_s > next_s + 0.5 * step_s:
            next_s = math.inf  # the device pauses, or nothing is known
        right = pace.right.value
        rest = pace.batch, due_s, leaf, step_s + pace.spread_s
        return Outlook(right, ready, next_s, step_s, back_s, *rest)

    def _next_s(self, length: int) -> float:
        """Return when the first draft beyond ``length`` comes next."""
        found, anew, pace = math.inf, self._broken, self.pace
        if anew is None:
            late = max(0, length - self._tip)
            found = self._last_s + pace.step_s * (1 + late // pace.batch)
            anew = self._commit_beyond(self._tip) if late else None
        if anew is not None:  # it begins there, or where it hears of a text longer still
            for known, at_s in (anew, self._commits[-1]):
                late = max(0, length - known)
                again = at_s + pace.back_s + pace.step_s * (late // pace.batch)
                found = min(found, again)
        return found

    def _commit_beyond(self, position: int) -> tuple[int, float] | None:
        """Return the commit that made the text longer than ``position``."""
        return next((c for c in self._commits if c[0] > position), None)
