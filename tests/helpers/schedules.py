"""Independent oracles for the simulator: brute force, and a two-page event simulation.

Nothing here shares code with ``draftwire.bench.sim``: plain loops over time.
"""

import math
import random


def rights(rate, count, seed):
    """Draw which drafts are right, each for itself."""
    rng = random.Random(seed)
    return [rng.random() < rate for _ in range(count)]


def least_time(right, draft, cost, up, down, most, horizon, at_once=1):
    """Try everything, in whole ticks: the least time in which the text is committed.

    Every tick the server, when idle, may start a forward over any number of drafts that
    have arrived, or wait; the device, when idle, may draft behind any context it has, or
    wait, and may drop at any tick what it is doing; a draft says ``at_once`` positions, of
    which those before the first wrong one are of use. A breadth-first search over all
    states, one tick a level.
    """
    n = len(right)
    # State: committed, server (remaining ticks, drafts taken in; 0 when idle),
    # device (position at work, ticks done; -1 when idle), known to the device,
    # `have`: right drafts the device holds beyond what it knows, as a set,
    # in the air up: (ticks left, position), arrived at the server: set of positions,
    # in the air down: (ticks left, committed).
    begin = (0, (0, 0), (-1, 0), 0, frozenset(), (), frozenset(), ())
    level = {begin}
    for tick in range(horizon):
        following = set()
        for state in level:
            for move in _choices(state, right, cost, most):
                after = _tick(move, right, draft, up, down, at_once)
                if after[0] >= n:
                    return tick + 1
                following.add(after)
        level = following
    raise AssertionError("the horizon is too near")


def _choices(state, right, cost, most):
    committed, server, device, known, have, air_up, arrived, air_down = state
    servers = [server]
    if server[0] == 0:
        m = 0
        while True:
            if committed + m < len(right) and m + 1 <= most:
                servers.append((cost(m + 1), m))
            if m + 2 > most or committed + m not in arrived:
                break
            m += 1
    devices = [device, (-1, 0)]
    # Behind what it knows, or behind a right draft of its own.
    for place in {known, *(p + 1 for p in have if p + 1 >= known)}:
        if place < len(right) and right[place] and place not in have:
            if device[0] != place:
                devices.append((place, 0))
    for s in servers:
        for d in devices:
            yield (committed, s, d, known, have, air_up, arrived, air_down)


def _tick(state, right, draft, up, down, at_once):
    committed, server, device, known, have, air_up, arrived, air_down = state
    air_up = [(t - 1, p) for t, p in air_up]
    air_down = [(t - 1, c) for t, c in air_down]
    if device[0] >= 0:
        place, done = device[0], device[1] + 1
        if done == draft:
            for said in range(place, min(place + at_once, len(right))):
                if not right[said]:
                    break
                have = have | {said}
                air_up.append((up, said))
            device = (-1, 0)
        else:
            device = (place, done)
    if server[0]:
        left, m = server[0] - 1, server[1]
        if not left:
            committed += m + 1
            air_down.append((down, committed))
            m = 0
        server = (left, m)
    arrived = arrived | {p for t, p in air_up if t == 0}
    for t, c in air_down:
        if t == 0:
            known = max(known, c)
    arrived = frozenset(p for p in arrived if p >= committed)
    have = frozenset(p for p in have if p >= known - 1)
    air_up = tuple(sorted({(t, p) for t, p in air_up if t > 0}))
    air_down = tuple((t, c) for t, c in air_down if t > 0)
    return committed, server, device, known, have, air_up, arrived, air_down


def await_time(right, draft, forward, rtt, block):
    """Stop and wait: time for each token."""
    time, committed = 0.0, 0
    while committed < len(right):
        time += block * draft + rtt + forward
        m = 0
        while m < block and committed + m < len(right) and right[committed + m]:
            m += 1
        committed += m + 1
    return time / committed


def race_time(right, draft, forward, rtt, most=16, at_once=True):
    """The race: time for each token.

    The server runs forward after forward, each with the drafts that have arrived and
    extend the text. The device drafts on and on; a commit that contradicts it, or is
    ahead of it, makes it start again behind the committed text, at once or (as a real
    drafter) when the forward at work has ended.
    """
    way = rtt / 2
    committed, now = 0, 0.0
    place, clock, good = 0, 0.0, True  # the device: next position, time, context right
    drafts, news, read = [], [], 0  # (done, position, right), (arrival, committed)
    while committed < len(right):
        until = now - way
        while True:
            arrival = news[read][0] if read < len(news) else math.inf
            done = clock + draft
            if done <= min(arrival, until):
                good = good and place < len(right) and right[place]
                drafts.append((done, place, good))
                place, clock = place + 1, done
            elif arrival <= until:
                text = news[read][1]
                read += 1
                wrong = next((p for _, p, ok in drafts if not ok), math.inf)
                if place < text or wrong < text:
                    place, good = text, True
                    clock = arrival if at_once else max(arrival, done)
                    drafts.clear()
            else:
                break
        here = {p for t, p, ok in drafts if ok and t + way <= now + 1e-9}
        m = 0
        while m < most and committed + m in here:
            m += 1
        now += forward
        committed += m + 1
        drafts = [d for d in drafts if d[1] >= committed - 1 or not d[2]]
        news.append((now + way, committed))
    return now / committed
