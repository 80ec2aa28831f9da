"""Today's behaviour, written down: texts and reports of live streams, simulated tables.

``tests/laws/test_frozen.py`` and ``tests/bench/test_frozen_sim.py`` compare with the two
files in ``tests/golden``. After a change that is meant to move them::

    python tests/helpers/frozen.py                    # what moved
    python tests/helpers/frozen.py --write            # both files anew
    python tests/helpers/frozen.py --write --only sim # or "live"

Writing runs every stream three times and refuses what does not come out the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))

import draftwire  # noqa: E402
from draftwire.bench.child import local_verifier  # noqa: E402
from draftwire.packages import load_draft, load_tokenizer  # noqa: E402
from draftwire.runtime.engines.draft_model import DraftModel  # noqa: E402
from draftwire.verifier.backends.base import SlotInput  # noqa: E402
from draftwire.verifier.backends.onnx_target import OnnxTarget  # noqa: E402

ABOUT = "tests/helpers/frozen.py says what this is and writes it anew"
LIVE = ROOT / "tests" / "golden" / "frozen_v1.json"
SIM = ROOT / "tests" / "golden" / "frozen_sim_v1.json"
MODELS = ROOT / "models"
DRAFT = MODELS / "reference.draft"
TARGETS = ("v1", "v2", "v3")
REPEATS = 3

# ---- live streams

PROMPTS = (
    "Once upon a time there was a king who",
    "User: Can I get a latte with oat milk please?\nAgent:",
)
COUNT, BLOCK, SEED = 24, 4, 7
_NUCLEUS = {"temperature": 0.8, "top_p": 0.95}

# Schemes that choose every token by the target alone: one text, whatever was drafted.
TARGET_ONLY = {
    "greedy": {"scheme": "greedy", "temperature": 0.0},
    "argmax": {"scheme": "argmax", "temperature": 0.0},
    "argmax at 0.8": {"scheme": "argmax", **_NUCLEUS},
    "coupled": {"scheme": "coupled", **_NUCLEUS},
    "match": {"scheme": "match", **_NUCLEUS},
}
# Schemes whose text depends on the drafts too, and on where a block ends.
REJECTION = {
    "residual": {"scheme": "residual", **_NUCLEUS},
    "qs": {"scheme": "qs", **_NUCLEUS},
    "separate": {"scheme": "separate", "temperature": 0.8, "top_k": 50},
    "separate-lossy": {"scheme": "separate-lossy", **_NUCLEUS},
}
LAWS = {**TARGET_ONLY, **REJECTION}
MODES = {
    "await": {"preempt": "off"},
    "pipeline": {"pipeline": 3},
    "guess": {"preempt": "guess"},
    "exits": {"preempt": "guess,exits"},
    "outcomes": {"preempt": "guess,outcomes"},
    "race": {"objective": "latency"},
    "auto": {"objective": "auto"},
}
FIXED = ("await", "pipeline")  # modes in which the clock decides nothing for REJECTION
LEFT_OUT = {
    "residual, qs, separate, separate-lossy x guess, exits, outcomes": "After a block "
    "that is accepted whole comes a bonus token. Whether the draft had guessed it by then "
    "is a matter of time, and decides whether it next reads one token or two at once; "
    "its int8 logits differ a little between the two, and so may the tokens drawn (qs: "
    "its threshold, too). A pipeline has no bonus and reads one at a time.",
    "residual, qs, separate, separate-lossy x race": "Refused: which drafts "
    "come in time would depend on what was drawn, and bias the text.",
}
COUNTS = (
    "prompt_tokens", "tokens", "text", "finish", "rounds", "drafted", "accepted",
    "accepted_by_position", "judged_by_position", "target_forwards", "bytes", "warnings",
)  # fmt: skip
WATTS = "model:prefill=9,draft=9,transmit=4,verify-wait=3,wait=3"
REPORTS = {
    f"{objective}, {name}": (objective, energy)
    for objective in ("cost", "latency")
    for name, energy in (("no energy", "off"), ("energy", WATTS))
}
# Keys are names of what happened to occur in the run.
_OPEN = tuple(f"energy.{of}by_phase" for of in ("", "seconds_", "watts_", "uncertainty_"))


@contextlib.contextmanager
def serve():
    """Serve the targets; yield who judges drafts alone, and who helps as by default.

    Texts must not depend on that. What is counted does: on what its forwards take, too.
    """
    paths = [MODELS / f"{name}.target" for name in TARGETS]
    alone = ["--lookup", "0", "--leaves", "0"]
    with local_verifier(paths, alone) as plain, local_verifier(paths) as helps:
        yield plain, helps


def connect(served, target, energy="off"):
    """Return a session with the reference draft."""
    url, token = served
    return draftwire.connect(
        url,
        draft=DRAFT,
        target=target,
        token=token,
        energy=energy,
        silence_s=15.0,  # a machine that is busy for a second is no lost link
    )


def stream(session, number, **options):
    """Return the ids of one stream, as the chunks bring them."""
    asked = {"objective": "cost", "max_new_tokens": COUNT, "block": BLOCK, **options}
    chunks = session.generate(PROMPTS[number], seed=SEED + number, **asked)
    return [token.id for chunk in chunks for token in chunk.tokens]


def live(served, law, target):
    """Yield ``(place in the document, value)`` of each mode of ``law`` and each prompt.

    Every stream has a session of its own: the stream's number counts in the bytes, and
    nothing of an earlier stream is still on its way out of the drafter.
    """
    for mode in MODES if law in TARGET_ONLY else FIXED:
        place = "any mode" if law in TARGET_ONLY else mode
        for number in range(len(PROMPTS)):
            with connect(served[mode != "await"], target) as session:
                ids = stream(session, number, **LAWS[law], **MODES[mode])
                report = session.report
            assert report["token_ids"] == ids
            yield ("texts", law, place, target, f"prompt {number}"), ids
            if mode == "await":
                yield ("stop_and_wait", law, target, f"prompt {number}"), counts_of(report)


def reports(served):
    """Yield ``(place in the document, keys)`` of each kind of report."""
    for name, (objective, energy) in REPORTS.items():
        with connect(served[1], "v1", energy) as session:
            stream(session, 0, objective=objective)
            yield ("report_keys", name), keys_of(session.report)


def counts_of(report):
    """Return what is the same every time of a stop-and-wait report."""
    ahead = report["preemption"]
    found = {key: report[key] for key in COUNTS}
    found["preemption"] = {k: v for k, v in ahead.items() if isinstance(v, int)}
    return found


def keys_of(value, at=""):
    """Return the dotted names of everything in a report."""
    if not isinstance(value, dict):
        return [at]
    if not value or at in _OPEN:
        return [at + ".*"]
    found = [keys_of(v, f"{at}.{k}" if at else k) for k, v in value.items()]
    return sorted(sum(found, []))


def fingerprints():
    """Return a hash of each model's logits: equal where arithmetic is the same.

    Of the draft after the prompt and after one more token: int8 kernels differ from
    processor to processor.
    """

    def digest(*arrays):
        data = b"".join(np.asarray(a, np.float32).tobytes() for a in arrays)
        return hashlib.sha256(data).hexdigest()[:16]

    package = load_draft(DRAFT)
    prompt = load_tokenizer(package.tokenizer_path).encode(PROMPTS[0], bos_id=0)
    draft = DraftModel.load(package, threads=1)
    found = {"draft": digest(draft.forward(prompt).copy(), draft.forward([5]))}
    for name in TARGETS:
        target = OnnxTarget(MODELS / f"{name}.target", threads=1)
        fresh = SlotInput(target.allocate(), 0, np.array(prompt, np.int64), 2)
        found[name] = digest(*target.forward([fresh]))
    return found


def measure_live():
    """Return the document of live streams.

    Raises:
        SystemExit: Something came out in two ways.
    """
    document = {"about": ABOUT, "left_out": LEFT_OUT, "logits": fingerprints()}
    document.update(report_keys={}, texts={}, stop_and_wait={})
    with serve() as served:
        for _ in range(REPEATS):
            cells = itertools.product(LAWS, TARGETS)
            found = [pair for cell in cells for pair in live(served, *cell)]
            for path, value in [*found, *reports(served)]:
                table = document
                for step in path[:-1]:
                    table = table.setdefault(step, {})
                if table.setdefault(path[-1], value) != value:
                    raise SystemExit(f"{path} comes out in two ways: left as it was")
    return document


# ---- simulated tables

CELLS = {
    "nano": {"profile": "nano-a100", "schemes": "all"},
    "early exits": {
        "profile": "earlyexit-nano-a100",
        "schemes": "await,earlyexit,race,ours-cost,ours-latency",
    },
    "a bad link": {
        "profile": "agx-a100-llama",
        "link": "60ms/2mbit/jitter=10ms/loss=1%/outages=4s:500ms",
        "schemes": "cloud,await,picospec,race,ours-cost,ours-latency",
    },
    "three devices": {
        "profile": "nano-a100",
        "link": "40ms/10mbit",
        "acceptance": "markov:0.7:0.5",
        "sessions": 3,
        "schemes": "cloud,await,picospec,race,ours-cost,ours-latency",
    },
    "long blocks": {
        "profile": "nano-a100",
        "link": "10ms",
        "block": "12",
        "schemes": "await,picospec,ours-cost",
    },
    "the best block": {
        "profile": "agx-a100-qwen",
        "block": "best",
        "schemes": "colocated,await,picospec",
    },
}


def measure_sim():
    """Return the document of simulated tables, numbers to six digits."""
    sys.path.append(str(ROOT))  # last: only `studies` is to be found there
    from draftwire.bench.sim.command import Question, answer, plan_of
    from draftwire.bench.sim.facts import find
    from studies.grid.grid import bound_ms

    def digits(value):
        return float(f"{value:.6g}") if isinstance(value, float) else value

    cells = {}
    for name, question in CELLS.items():
        asked = Question(streams=2, tokens=120, seed=5, **question)
        document = answer(asked)
        cells[name] = {
            row["scheme"]: {key: digits(value) for key, value in row.items()}
            for row in document["rows"]
        }
        if asked.real is None and asked.sessions == 1:
            bound = digits(bound_ms(plan_of(asked, find(asked.profile))))
            cells[name]["bound"] = {"ms_per_token": bound}
    return {"about": ABOUT, "cells": cells}


# ---- comparing and writing


def moved(old, new, at=""):
    """Return one line for everything that is not as it was."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in [*old, *(k for k in new if k not in old)]:
            where = f"{at} / {key}" if at else key
            if key not in new or key not in old:
                lines.append(f"{where}: {'new' if key in new else 'gone'}")
            else:
                lines += moved(old[key], new[key], where)
        return lines
    if old == new:
        return []
    change = ""
    if isinstance(old, list) and isinstance(new, list):
        same = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), None)
        if same is None:
            same = min(len(old), len(new))
        return [f"{at}: from item {same} on: {old[same:]} -> {new[same:]}"]
    if all(isinstance(v, (int, float)) for v in (old, new)) and old:
        if abs(new - old) <= 2e-6 * abs(old):  # the sixth digit, rounded the other way
            return []
        change = f"  ({(new - old) / abs(old):+.3%})"
    return [f"{at}: {old} -> {new}{change}"]


def read(path):
    """Return a golden document."""
    return json.loads(path.read_text(encoding="utf-8"))


def at(document, path):
    """Return what stands at a place of a document."""
    return functools.reduce(dict.__getitem__, path, document)


def render(value, depth=0):
    """Return JSON with a line for each thing a reader would compare."""
    pad = " " * depth
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict) or len(pad + flat) <= 88 or depth > 4:
        if isinstance(value, list) and value and isinstance(value[0], str) and depth < 5:
            return "[\n" + ",\n".join(f"{pad} {json.dumps(v)}" for v in value) + f"\n{pad}]"
        return flat
    lines = [f"{pad} {json.dumps(k)}: {render(v, depth + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{pad}}}"


def main():
    """Print what moved; with ``--write`` write it down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="replace the golden files")
    parser.add_argument("--only", choices=("live", "sim"), help="one of the two files")
    asked = parser.parse_args()
    for name, path, measure in (("live", LIVE, measure_live), ("sim", SIM, measure_sim)):
        if asked.only not in (None, name):
            continue
        new = measure()
        lines = moved(read(path), new) if path.exists() else ["all of it is new"]
        print(f"{path.name}: {len(lines)} moved", *lines, sep="\n  ")
        if asked.write:
            path.write_text(render(new) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
