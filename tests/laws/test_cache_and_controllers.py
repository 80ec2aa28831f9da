"""Law 1 with a suffix cache and with every controller: the target's own text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pieces import target_only

import draftwire
from draftwire.cli._local_verifier import local_verifier
from draftwire.errors import ConfigError
from draftwire.packages import load_draft, load_tokenizer
from draftwire.runtime.drafter import Drafter
from draftwire.runtime.edge.actions import Draft
from draftwire.runtime.pacing.suffix_cache import SuffixCache
from draftwire.sampling import SamplingParams, make_proposer
from draftwire.verifier.backends.onnx_target import OnnxTarget

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
MODELS = ROOT / "models"
COUNT = 32
LAWS = {"greedy": (0.0, 1.0), "coupled": (0.8, 0.95)}
# A loop, a list and plain prose: much to repeat, and nothing.
PROMPTS = (
    "one two three four one two three four one two three four one",
    "The king said to the king, and the king said to the king, and",
    "Once upon a time there was a king who",
)


WAYS = (
    {"controller": "auto", "objective": "cost"},
    {},
    {"controller": "auto:energy", "pipeline": 3, "preempt": "guess,outcomes"},
    {"controller": "fixed:6", "pipeline": 2},
)


@pytest.mark.parametrize("law", LAWS)
def test_the_reference_family_with_a_cache(law, tmp_path):
    temperature, top_p = LAWS[law]
    backend = OnnxTarget(MODELS / "v1.target", threads=1)
    draft = load_draft(MODELS / "reference.draft")
    tokenizer = load_tokenizer(draft.tokenizer_path)
    path = tmp_path / "cache"
    lines: list[str] = []
    recalled = 0
    with local_verifier([MODELS / "v1.target"]) as (url, token):
        for again in range(2):
            with draftwire.connect(
                url, draft=draft, token=token, suffix_cache=path, energy="off"
            ) as session:
                for seed, (text, way) in enumerate(zip(PROMPTS, WAYS[again * 2 :] * 2)):
                    chunks = session.generate(
                        text, max_new_tokens=COUNT, temperature=temperature, top_p=top_p,
                        seed=seed, explain=lines.append, **way,
                    )  # fmt: skip
                    found = [t.id for chunk in chunks for t in chunk.tokens]
                    prompt = tokenizer.encode(text, bos_id=draft.bos_id)
                    params = SamplingParams(law, temperature, 0, top_p, seed)
                    assert found == target_only(backend, prompt, params, COUNT), (text, way)
                    link = session.report["link"]
                    assert link["rtt_ms"] is None or link["rtt_ms"] >= 0
                    recalled += link["suffix_cache"]["recalled"]
                    wanted = way.get("controller", "fixed:4")
                    if way.get("objective") == "cost":  # the objective is said once
                        wanted = "auto:cost"
                    assert session.report["mode"]["controller"] == wanted
            assert path.stat().st_size > 100
    assert recalled > 0, "the second session knows the text of the first"
    assert lines and all("\n" not in line and line for line in lines)


def test_budgets_need_watts():
    with local_verifier([FIXTURES / "tiny.target"]) as (url, token):
        tiny = FIXTURES / "tiny.draft"
        with draftwire.connect(url, draft=tiny, token=token, energy="off") as session:
            with pytest.raises(ConfigError, match="power source"):
                session.generate([1, 2, 3], controller="auto", max_watts=5.0)
        watts = "model:prefill=9,draft=9,transmit=4,verify-wait=3,wait=3"
        with draftwire.connect(url, draft=tiny, token=token, energy=watts) as session:
            for _ in session.generate(
                [1, 2, 3],
                controller="auto",
                max_watts=2.0,
                max_new_tokens=24,
                ignore_eos=True,
            ):
                pass
            assert any("budget" in w for w in session.report["warnings"])
        with pytest.raises(ConfigError, match="damaged"):
            draftwire.connect(
                url, draft=tiny, token=token, suffix_cache=FIXTURES / "make_tiny.py"
            )


class Luck:
    """A draft model of dice that checks what it is fed."""

    def __init__(self, vocab, seed):
        self.rng = np.random.default_rng(seed)
        self.vocab, self.length, self.fed = vocab, 0, []

    def forward(self, tokens):
        self.fed[self.length :] = tokens
        self.length = len(self.fed)
        return self.rng.normal(0, 3, self.vocab).astype(np.float32)

    def rewind(self, length):
        self.length = length
        del self.fed[length:]


def test_the_model_reads_what_the_cache_gave():
    """Random drafts: the sequence that the drafter holds is the one it proposed."""
    vocab, text = 50, [*range(20), 41, 42, 43]
    cache = SuffixCache(vocab)
    cache.begin(text)
    model, got, recalled = Luck(vocab, 1), [], 0
    drafter = Drafter(model, vocab)
    params = SamplingParams("greedy", 0.0)
    drafter.begin(1, make_proposer(params, vocab), cache)
    prompt = (*text, *range(12))
    drafter.submit(1, Draft(1, 0, prompt, 40))
    while (step := drafter.step()) is not None:
        if step.proposal is not None:
            got.append(step.proposal.token)
            recalled += not step.fed
    assert len(got) == 40 and recalled >= 8 and got[:8] == list(range(12, 20))
    assert recalled < 40, "the cache came to its end"
    assert model.fed == [*prompt, *got][: len(model.fed)]
