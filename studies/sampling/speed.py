"""What choosing a token costs at real vocabularies, without any model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from draftwire.sampling import SamplingParams, make_decider, make_proposer, shape_for

CASES: dict[str, dict[str, float | int | str]] = {
    "greedy": {"scheme": "greedy", "temperature": 0.0},
    "coupled": {"noise": "sparse"},  # as auto has it at these vocabularies
    "coupled, philox noise": {},
    "coupled, top-k 50": {"top_k": 50},
    "coupled, top-p 0.95": {"top_p": 0.95},
    "coupled, min-p 0.05": {"min_p": 0.05},
    "coupled, top-k 50, penalties": {"top_k": 50, "repetition_penalty": 1.2},
    "match": {"scheme": "match"},
    "match, top-p 0.95": {"scheme": "match", "top_p": 0.95},
}
_ROUNDS = 40
_BATCH = 64


def sampling_speed(vocabularies: Sequence[int]) -> list[dict[str, object]]:
    """Return a row for each vocabulary and case: medians in processor milliseconds.

    Logits are drawn with a few likely tokens and a long tail. ``batch_ms`` is a
    verifier's batch of 64 rows, one after another.
    """
    rows: list[dict[str, object]] = []
    for size in vocabularies:
        rng = np.random.default_rng(0)
        logits = rng.gumbel(0, 2.2, (16, size)).astype(np.float32)
        logits[:, rng.integers(0, size, 5)] += 12
        for name, case in CASES.items():
            times = _case(logits, case)
            rows.append({"vocabulary": size, "case": name, **times})
    return rows


def _case(logits: np.ndarray, case: dict[str, float | int | str]) -> dict[str, float]:
    size = logits.shape[1]
    params = SamplingParams(
        **{"scheme": "coupled", "temperature": 0.8, "seed": 3, **case}  # type: ignore[arg-type]
    )
    decider = make_decider(params, size)
    proposer = make_proposer(params, size, insight=True)

    shape = shape_for(params, size, 0)
    if shape is not None:  # behind a text of 2,000 tokens, about as many different ones
        shape.follow(np.random.default_rng(1).integers(0, size, 2000).tolist())

    def rows(i: int) -> np.ndarray:
        row = logits[i % 16][None]
        return row if shape is None else shape.rows(row)

    def decide(i: int) -> None:
        decider.decide([], b"", rows(i), i)

    def batch(i: int) -> None:
        for row in range(_BATCH):
            decide(i * _BATCH + row)

    return {
        "decide_ms": _median_ms(decide, _ROUNDS),
        "propose_ms": _median_ms(lambda i: proposer.propose(rows(i)[0], i), _ROUNDS),
        "batch_ms": _median_ms(batch, 3),
    }


def _median_ms(call: Callable[[int], object], rounds: int) -> float:
    times = []
    for i in range(rounds):
        start = time.thread_time()  # others on the machine are not asked
        call(i)
        times.append(time.thread_time() - start)
    return sorted(times)[rounds // 2] * 1e3


def render(rows: Sequence[dict[str, object]]) -> str:
    """Return the table for people."""
    lines = [f"{'vocabulary':>10}  {'case':28} {'device':>8} {'cloud':>8} {'64 rows':>8}"]
    for row in rows:
        times = [row[key] for key in ("propose_ms", "decide_ms", "batch_ms")]
        numbers = " ".join(f"{value:8.3f}" for value in times)
        lines.append(f"{row['vocabulary']:>10}  {row['case']:28} {numbers}")
    return "\n".join(lines)
