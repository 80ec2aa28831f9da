"""Our sampling inside vLLM's workers: rows become one-hot before vLLM's samplers see them.

Where the shared noise decides, vLLM's own greedy sampler and rejection sampler do the rest.
Rows of other clients of the engine stay as they are. With a speculative config vLLM's V1
runner takes no custom logits processors, so the samplers' ``forward`` is wrapped; its V2
runner takes one (:mod:`.v2`).

On a CPU the rows are decided by :mod:`draftwire.sampling` itself, up to the first draft
that is rejected; on a device all rows of a step at once, in torch, without a copy back.
"""

from __future__ import annotations

from typing import Any, Iterable, NamedTuple, Sequence

import torch

from draftwire.errors import ModelError
from draftwire.sampling import SamplingParams, make_decider
from draftwire.sampling.philox import M0, M1, MASK, Domain, round_keys
from draftwire.sampling.scheme import Decider
from draftwire.verifier.backends.vllm import KEY


class Ours(NamedTuple):
    """How a stream of ours is sampled, and the cloud's half of its scheme."""

    params: SamplingParams
    vocab_size: int
    decider: Decider

    @property
    def greedy(self) -> bool:
        """vLLM's own arg-max is what it wants."""
        return self.params.scheme in ("greedy", "argmax")


class Extension:
    """Mixed into vLLM's worker by ``worker_extension_cls``."""

    model_runner: Any

    def draftwire_install(self) -> str:
        """Find our way into the runner; return which it is."""
        if not hasattr(self.model_runner, "speculator"):
            _wrap(self.model_runner)
            return "V1"
        from draftwire.verifier.backends.vllm import v2

        v2.install(self.model_runner)
        return "V2"


def _wrap(runner: Any) -> None:
    """Let our noise see the rows before the V1 runner's samplers do."""
    known: dict[str, Ours | None] = {}
    plain, rejecting = runner.sampler.forward, runner.rejection_sampler.forward

    def apply(logits: Any, counts: Sequence[int] | None, drafts: Any) -> None:
        batch, row, groups = runner.input_batch, 0, []
        for i, name in enumerate(batch.req_ids[: batch.num_reqs]):
            n = 0 if counts is None else int(counts[i])
            if name not in known:
                if len(known) > 4096:
                    known.clear()
                known[name] = ours_of(runner.requests[name].sampling_params)
            ours = known[name]
            if ours is not None:
                ids = drafts[row - i : row - i + n] if n else ()
                groups.append((row, ids, ours, int(batch.num_tokens_no_spec[i])))
            row += n + 1
        mark(logits, groups)

    def sample(logits: Any, sampling_metadata: Any, *args: Any, **more: Any) -> Any:
        if not more.get("predict_bonus_token"):  # a part of what `reject` has seen
            apply(logits, None, None)
        return plain(logits, sampling_metadata, *args, **more)

    def reject(metadata: Any, draft_probs: Any, logits: Any, more: Any) -> Any:
        apply(logits, metadata.num_draft_tokens, metadata.draft_token_ids)
        return rejecting(metadata, draft_probs, logits, more)

    runner.sampler.forward, runner.rejection_sampler.forward = sample, reject


def ours_of(sampling: Any) -> Ours | None:
    """Return how a request of vLLM is sampled, or None for one that is not of ours."""
    told = (getattr(sampling, "extra_args", None) or {}).get(KEY)
    if told is None:
        return None
    fields, vocab_size, _ = told
    params = SamplingParams(**fields)
    return Ours(params, vocab_size, make_decider(params, vocab_size))


def mark(logits: Any, groups: Iterable[tuple[int, Any, Ours, int]]) -> None:
    """Make rows of ours in ``logits`` (``(rows, vocab)``, any device) one-hot.

    A group is a stream: its first row, the drafts that stand after it (a row for each), how
    it is sampled, and the position of the token that its first row is for.
    """
    rows: list[int] = []
    params: list[SamplingParams] = []
    positions: list[int] = []
    for row, drafts, ours, start in groups:
        n = len(drafts)
        if logits.shape[1] > ours.vocab_size:
            logits[row : row + n + 1, ours.vocab_size :] = -torch.inf
        if ours.greedy:
            continue
        if logits.is_cpu or ours.params.scheme != "coupled":
            _decide(logits[row : row + n + 1], [int(t) for t in drafts], ours, start)
        else:
            rows += range(row, row + n + 1)
            params += [ours.params] * (n + 1)
            positions += range(start, start + n + 1)
    if rows:
        at = torch.tensor(rows, device=logits.device)
        won = winners(logits[at].double(), params, positions)
        logits[at] = -torch.inf
        logits[at, won] = 0.0


def _decide(rows: Any, drafts: list[int], ours: Ours, start: int) -> None:
    """Decide in numpy, as far as it matters."""
    for j in range(len(drafts) + 1):
        logits = rows[j, : ours.vocab_size].float().cpu().numpy()[None]
        try:
            token = ours.decider.decide((), b"", logits, start + j).token
        except ModelError:
            return  # not numbers: the engine counts them, and the stream ends
        rows[j] = -torch.inf
        rows[j, token] = 0.0
        if j < len(drafts) and token != drafts[j]:
            return


def winners(
    logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]
) -> torch.Tensor:
    """Return who wins the race of each row, as ``draftwire.sampling.coupled`` has it.

    ``logits`` are ``(rows, vocab)`` float64 on any device (-inf: may not be); ``positions``
    are absolute. The answer is ``(rows,)`` int64.
    """
    won = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, p in enumerate(params):
        k = p.top_k if 0 < p.top_k < logits.shape[1] else 0
        groups.setdefault((k, p.top_p < 1), []).append(i)
    for (k, nucleus), rows in groups.items():
        mine = [params[i] for i in rows]
        at = torch.tensor(rows, device=logits.device)
        scores = logits[at]
        column = scores.new_tensor([[p.temperature, p.top_p] for p in mine])
        weights = torch.exp(scores / column[:, :1] - scores.amax(1, True) / column[:, :1])
        ids = None
        if k or nucleus:
            # Likeliest first, ties by id; top-k cuts, then top-p measures what is left.
            weights, ids = torch.sort(weights, dim=1, descending=True, stable=True)
            if k:
                weights, ids = weights[:, :k], ids[:, :k]
            sums = weights.cumsum(1)
            goal = column[:, 1:] * sums[:, -1:] * (1 - 1e-12)
            before = torch.cat([torch.zeros_like(sums[:, :1]), sums[:, :-1]], 1)
            weights = torch.where((before < goal) | (column[:, 1:] >= 1), weights, 0.0)
        times = _noise(mine, [positions[i] for i in rows], ids, scores) / weights
        best = times.argmin(1, keepdim=True)
        if ids is not None:
            # Equal times go to the smaller id.
            equal = times == times.gather(1, best)
            best = torch.where(equal, ids, scores.shape[1]).amin(1, keepdim=True)
        won[at] = best[:, 0]
    return won


def _noise(
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    ids: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """Return exponential noise ``(rows, ids)`` of the ids, or of all of them.

    Source: :mod:`draftwire.sampling.philox`; 64-bit products wrap, their halves are right.
    """
    device, width = like.device, like.shape[1]
    if ids is None:
        cells = torch.arange((width + 1) // 2, device=device).expand(len(params), -1)
    else:
        cells = ids >> 1
    moments = [p.moment(at) for p, at in zip(params, positions)]
    keys_of_rounds = zip(*(round_keys(p.seed) for p in params))
    rows = [
        [[m & MASK for m in moments], [m >> 32 & MASK for m in moments]],
        *([list(words) for words in zip(*keys)] for keys in keys_of_rounds),
    ]
    numbers = torch.tensor(rows, device=device, dtype=torch.int64)[..., None]
    c0, c1 = cells, numbers[0, 0].expand_as(cells)
    c2, c3 = numbers[0, 1].expand_as(cells), torch.full_like(cells, int(Domain.COUPLED))
    for k0, k1 in numbers[1:]:
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = (
            (p1 >> 32 & MASK) ^ c1 ^ k0,
            p1 & MASK,
            (p0 >> 32 & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
    if ids is None:
        high = torch.stack([c0, c2], 2).flatten(1)[:, :width]
        low = torch.stack([c1, c3], 2).flatten(1)[:, :width]
    else:
        odd = (ids & 1).bool()
        high, low = torch.where(odd, c2, c0), torch.where(odd, c3, c1)
    unit = ((high >> 5).double() * 2.0**26 + (low >> 6).double() + 1.0) * 2.0**-53
    return (-torch.log(unit)).clamp_min(2.0**-54)
