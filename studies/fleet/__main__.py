"""``python -m studies.fleet``: verifiers for up to 100,000 devices, in virtual time.

For each way to decode: the fewest verifiers on which 95 of 100 texts keep their time, with
the devices spread by the gateway's own ring; what they run, hold and cost; and what it
means that one of them dies. Assumptions: :mod:`studies.fleet.machine`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections import Counter
from typing import Any

import numpy as np

from draftwire.verifier.gateway.fleet import SPARE, Ring
from studies.command import Say, markdown, start
from studies.fleet.machine import MODES, Board, Load, World, simulate

_SIMULATED = 40  # verifiers of a fleet, at most
_MARGIN = 0.8  # of the time that texts may take: near its limit a queue grows by chance
SCHEMA = "draftwire.study.fleet/1"


def spread(verifiers: int, devices: int, *, bounded: bool) -> Counter[str]:
    """Return how many devices each verifier gets, by the ring and by the gateway's rule.

    Args:
        verifiers: Names on the ring.
        devices: Random sessions.
        bounded: Nobody gets more than 1.25 times the mean of the moment.
    """
    ring = Ring(f"ws://10.1.{i // 256}.{i % 256}:8765" for i in range(verifiers))
    keys = np.random.default_rng(7).integers(0, 256, (devices, 4), np.uint8)
    found: Counter[str] = Counter(dict.fromkeys(ring.names, 0))
    for n, key in enumerate(keys):
        most = math.ceil(SPARE * (n + 1) / verifiers) if bounded else devices
        order = ring.order(key.tobytes())
        name = next((name for name in order if found[name] < most), ring.names[0])
        found[name] += 1
    return found


def most_devices(world: World, mode: str) -> int:
    """Return how many devices one verifier bears, to within 3 %; 0: not even one."""

    def bears(devices: int) -> bool:
        out = simulate(world, mode, devices, devices)
        in_time = out.slow_token_s() <= _MARGIN * world.load.slow_s
        return in_time and out.peak_kv_bytes <= world.server.kv_bytes

    low, high = 0, 64
    while bears(high):
        low, high = high, 2 * high
    while high - low > max(1, 0.03 * low):
        middle = (low + high) // 2
        low, high = (middle, high) if bears(middle) else (low, middle)
    return low


def study(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Make the document of the flags."""
    board = Board(acceptance=args.acceptance, block=args.block, rtt_s=args.rtt_ms / 1e3)
    load = Load(slow_s=args.token_ms / 1e3)
    world = World(board=board, load=load, seconds=args.seconds)
    rows = []
    for mode in MODES:
        most = most_devices(world, mode)
        say(f"{mode}: {most} devices a verifier")
        rows += [_row(world, mode, devices, most) for devices in args.devices]
    balance = []
    for verifiers in (10, 100, 1000):
        plain, bound = (
            max(spread(verifiers, 100_000, bounded=b).values()) * verifiers / 100_000
            for b in (False, True)
        )
        balance.append({"verifiers": verifiers, "ring": plain, "bounded": bound})
        say(f"{verifiers} verifiers: the fullest has {plain:.2f}, {bound:.2f} of the mean")
    assumed = dataclasses.asdict(world)
    del assumed["seconds"]
    return {"schema": SCHEMA, "assumed": assumed, "rows": rows, "balance": balance}


def _row(world: World, mode: str, devices: int, most: int) -> dict[str, Any]:
    """Simulate a whole fleet: each verifier with the devices that the ring gives it."""
    server, load, seconds = world.server, world.load, world.seconds
    row: dict[str, Any] = {"mode": mode, "devices": devices, "verifiers": None}
    if not most:
        return row
    verifiers = math.ceil(devices / most)
    while True:  # the fullest one must bear its share
        shares = spread(verifiers, devices, bounded=True)
        if max(shares.values()) <= most or verifiers > devices:
            break
        verifiers = max(verifiers + 1, math.ceil(verifiers * 1.05))
    # Of a large fleet every so many, the fullest among them: they differ by their share.
    sizes = sorted(shares.values(), reverse=True)[:: math.ceil(verifiers / _SIMULATED)]
    outcomes = [simulate(world, mode, n, seed) for seed, n in enumerate(sizes)]
    of_all = devices / sum(sizes)
    tokens = of_all * sum(out.tokens for out in outcomes)
    forwards = of_all * sum(out.forwards for out in outcomes)
    token_s = np.concatenate([out.token_s for out in outcomes])
    # One more, so that the others bear what one leaves that dies.
    cost = server.hour * (verifiers + 1) * seconds / 3600 / tokens * 1e6
    lost = max(shares.values())
    text_s = load.text * float(np.mean(token_s))
    running = text_s / (text_s + load.think_s)  # share of devices with a text under way
    row.update(
        verifiers=verifiers,
        per_verifier=most,
        tokens_per_s=tokens / seconds,
        tokens_per_forward=tokens / forwards,
        forwards_per_s=forwards / seconds,
        busy=sum(out.busy_s for out in outcomes) / seconds / len(outcomes),
        token_ms_median=1e3 * float(np.median(token_s)),
        token_ms_p95=1e3 * float(np.quantile(token_s, 0.95)),
        kv_gb_peak=max(out.peak_kv_bytes for out in outcomes) / 1e9,
        dollars_per_million=cost,
        moved_by_a_death=lost / devices,
        # Texts that run there are read anew elsewhere: prompt and half of the text.
        reread_tokens=round(lost * running * (load.prompt + load.text / 2)),
    )
    return row


_COLUMNS = {
    "way": "{mode}",
    "devices": "{devices:,}",
    "verifiers": "{verifiers}",
    "devices each": "{per_verifier}",
    "tokens/s": "{tokens_per_s:,.0f}",
    "a forward": "{tokens_per_forward:.1f}",
    "forwards/s": "{forwards_per_s:,.0f}",
    "busy": "{busy:.2f}",
    "ms a token, median, p95": "{token_ms_median:.1f}, {token_ms_p95:.1f}",
    "KV, most": "{kv_gb_peak:.1f} GB",
    "$ a million tokens": "{dollars_per_million:.2f}",
}


def render(document: dict[str, Any]) -> str:
    """Return the document as tables."""
    cells = []
    for row in document["rows"]:
        forms = list(_COLUMNS.values())
        if row["verifiers"] is None:
            forms[2:] = ["cannot keep the time"]
        cells.append([form.format(**row) for form in forms])
    parts = [
        (row["verifiers"], f"{row['ring']:.2f}", f"{row['bounded']:.2f}")
        for row in document["balance"]
    ]
    heads = ["verifiers", "the fullest, ring alone", "with the bound"]
    lines = [*markdown(list(_COLUMNS), cells), "", *markdown(heads, parts), ""]
    most = max(row["devices"] for row in document["rows"])
    for row in document["rows"]:
        if row["verifiers"] is not None and row["devices"] == most:
            lines.append(
                f"{row['mode']}: a verifier that dies moves {row['moved_by_a_death']:.2%} "
                f"of the devices, and {row['reread_tokens']:,} tokens are read again"
            )
    return "\n".join(lines)


FLAGS = """
--devices N,N:counts =1000,10000,100000  in the fleet
--seconds S:positive =30   of virtual time
--token-ms MS:positive =60  a token, which 95 of 100 texts keep
--rtt-ms MS:positive =40   median round trip
--acceptance P:share =0.75  of a drafted token
--block N =4               drafted tokens of a block
"""


if __name__ == "__main__":
    question = "Verifiers for up to 100,000 devices, in virtual time."
    sys.exit(start("studies.fleet", question, FLAGS, study, render))
