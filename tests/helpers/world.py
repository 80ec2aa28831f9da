"""Both sessions in virtual time: a hash for a target, luck for a draft, faults at will.

The target is a hash of the text so far, the draft guesses it with some luck, and the
network delivers frames in order but at any time, or loses the link with all that is on
its way. ``check_history`` runs one random history and holds it to laws 1 and 2.
"""

import hashlib
from collections import deque

import numpy as np

from draftwire.runtime.actions import Draft, Emit, Finished, Revise, Send
from draftwire.runtime.controller import FixedLength
from draftwire.runtime.edge_session import EdgeSession
from draftwire.runtime.mode import Mode
from draftwire.sampling import SamplingParams, make_decider, make_proposer
from draftwire.transport.codec import Codec
from draftwire.transport.messages import Block, Open, Opened, Resume
from draftwire.verifier.target_session import TargetSession

VOCAB = 23
STOP_AND_WAIT = Mode(preempt=frozenset())
MECHANISMS = {
    "stop-and-wait": [STOP_AND_WAIT],
    "pipeline": [
        Mode.of(pipeline=2),
        Mode.of(pipeline=3, cut=True),
        Mode.of(pipeline=2, preempt="off", batch=2),
    ],
    "preempt": [
        Mode.of(preempt="guess"),
        Mode.of(preempt="exits"),
        Mode.of(preempt="guess,exits,outcomes"),
        Mode.of(pipeline=2, preempt="guess,exits"),
        Mode.of(pipeline=3, preempt="exits,outcomes", cut=True),
    ],
    "race": [
        Mode.of("latency"),
        Mode.of("latency", preempt="guess,exits"),
        Mode.of("latency", batch=1),
    ],
}


def target_logits(sequence, salt):
    """Logits that depend on the whole sequence, as a real model's do."""
    digest = hashlib.sha256(bytes(salt) + bytes(sequence)).digest()
    return np.frombuffer(digest[:VOCAB], np.uint8).astype(np.float32) / 40


def target_only(prompt, params, salt, count, context, stops):
    """Plain decoding: one forward, one token."""
    decider = make_decider(params, VOCAB)
    sequence = list(prompt)
    while len(sequence) < min(context, len(prompt) + count):
        row = target_logits(sequence, salt)[None]
        sequence.append(decider.decide([], b"", row, len(sequence)).token)
        if sequence[-1] in stops:
            break
    return sequence[len(prompt) :]


class World:
    """One device, one verifier, two pipes; ``step`` does one enabled thing."""

    def __init__(
        self,
        prompt,
        params,
        salt,
        *,
        k,
        count,
        context,
        stops,
        luck,
        rng,
        cuts=0,
        offline=False,
        mode=STOP_AND_WAIT,
        controller=None,
    ):
        self.cuts, self.keeps, self.attached = cuts, None, True
        self.params, self.salt, self.luck, self.rng = params, salt, luck, rng
        self.codec = Codec(VOCAB)
        self.edge = EdgeSession(
            prompt,
            params=params,
            proposer=make_proposer(params, VOCAB),
            controller=controller or FixedLength(k),
            max_new_tokens=count,
            context=context,
            stop_ids=stops,
            guess_offline=offline,
            mode=mode,
        )
        self.glimpses = self.forwards = 0
        self.context = context
        self.cloud = None
        self.up, self.down = deque(), deque()
        self.sequence, self.order, self.todo = [], None, 0
        self.shown, self.finish, self.work = [], None, None
        self.guessed = []
        self.act(self.edge.start())

    def act(self, actions):
        for action in actions:
            if isinstance(action, Send):
                self.up.append(self.codec.encode(action.message))
            elif isinstance(action, Draft):
                self.sequence[action.valid :] = action.tokens
                self.order, self.todo = action, action.count
            elif isinstance(action, Emit):
                assert self.finish is None
                ids = [t.id for t in action.tokens]
                if action.tokens[0].kind == "unverified":
                    assert not self.attached
                    self.guessed += ids
                    continue
                seen, fresh = ids[: action.shown], ids[action.shown :]
                assert self.guessed[: len(seen)] == seen
                del self.guessed[: len(seen)]
                assert not (fresh and self.guessed)
                self.shown += ids
            elif isinstance(action, Revise):
                keep = action.position - len(self.shown)
                assert 0 <= keep < len(self.guessed)
                del self.guessed[keep:]
            elif isinstance(action, Finished):
                self.finish = action.reason

    def enabled(self):
        found = []
        if self.todo:
            found.append(self.draft)
        if self.cuts and self.attached:
            found.append(self.cut)
        if not self.attached:
            found.append(self.restore)
        if self.up:
            found.append(self.deliver_up)
        if self.down:
            found.append(self.deliver_down)
        if self.cloud is not None and self.work is None:
            self.work = self.cloud.poll()
        if self.work is not None:
            found.append(self.compute)
            if self.glimpses < 2:
                found.append(self.glimpse)
        return found

    def cut(self):
        """Lose the link, with every frame that is on its way."""
        self.cuts -= 1
        self.attached = False
        self.up.clear()
        self.down.clear()
        self.work = None
        if self.cloud is not None:
            self.cloud.detach(cached=bool(self.rng.random() < 0.5))
            self.keeps, self.cloud = self.cloud, None
        if self.rng.random() < 0.3:
            self.keeps = None  # restarted, expired or out of memory
        self.act(self.edge.link_lost())

    def restore(self):
        self.attached = True
        self.act(self.edge.link_up(resume=True))

    def draft(self):
        self.todo -= 1
        logits = target_logits(self.sequence, self.salt)
        if self.rng.random() > self.luck:
            logits = self.rng.normal(0, 2, VOCAB).astype(np.float32)
        proposer = make_proposer(self.params, VOCAB)
        proposal = proposer.propose(logits, len(self.sequence))
        if self.rng.random() < 0.9:
            proposal = proposal._replace(
                confidence=float(self.rng.random()),
                runner_up=int(self.rng.integers(VOCAB)),
            )
        self.sequence.append(proposal.token)
        branch = self.order.branch
        self.act(self.edge.drafted(branch, proposal))

    def deliver_up(self):
        message = self.codec.decode(self.up.popleft())
        if isinstance(message, Open):
            self.cloud = TargetSession(
                message, vocab_size=VOCAB, context=self.context, max_block=255
            )
            opened = Opened(message.stream, b"12345678", b"0123456789abcdef")
            self.down.append(self.codec.encode(opened))
        elif isinstance(message, Resume):
            if self.keeps is None:
                self.act(self.edge.link_up(resume=False))  # told: session unknown
                return
            self.cloud, self.keeps = self.keeps, None
            self.down.append(self.codec.encode(self.cloud.resume(message.position)))
        elif isinstance(message, Block):
            self.down.extend(map(self.codec.encode, self.cloud.receive(message)))

    def deliver_down(self):
        self.act(self.edge.message(self.codec.decode(self.down.popleft())))

    def rows(self, work):
        text = [*self.prompt_and_text(), *work.drafts]
        end = work.start + len(work.tokens)
        assert list(work.tokens) == list(text[work.start : end])
        rows = [
            target_logits(text[: end - work.rows + 1 + j], self.salt)
            for j in range(work.rows)
        ]
        return np.array(rows, np.float32).reshape(work.rows, VOCAB)

    def glimpse(self):
        """An early exit, right or wrong, sure or not."""
        self.glimpses += 1
        rows = self.rows(self.work)
        if self.rng.random() < 0.4:
            rows = self.rng.normal(0, 2, rows.shape).astype(np.float32)
        heard = self.cloud.glimpse(self.work, rows, self.rng.choice([0.0, 0.3]))
        self.down.extend(map(self.codec.encode, heard))

    def compute(self):
        work, self.work, self.glimpses = self.work, None, 0
        self.forwards += not work.prefill
        answers = self.cloud.complete(work, self.rows(work))
        self.down.extend(map(self.codec.encode, answers))

    def prompt_and_text(self):
        return list(self.cloud._tokens)


class Moody(FixedLength):
    """A controller that changes its mind, and is off at times."""

    def __init__(self, k, rng, off):
        super().__init__(k)
        self.rng, self.k, self.off = rng, k, off

    def limit(self):
        return int(self.rng.integers(0 if self.off else 1, self.k + 1))

    def enough(self, block):
        return bool(self.rng.random() < 0.1)


def check_history(seed, mechanism=None):
    """Run the history that ``seed`` names, and assert what must hold."""
    rng = np.random.default_rng(seed)
    if mechanism is None:
        mechanism = str(rng.choice(list(MECHANISMS)))
    modes = MECHANISMS[mechanism]
    mode = modes[rng.integers(len(modes))]
    sampled = bool(rng.random() < 0.5)
    params = SamplingParams(
        "coupled" if sampled else "greedy",
        0.9 if sampled else 0.0,
        0,
        float(rng.choice([1.0, 0.8])),
        int(seed),
    )
    prompt = rng.integers(0, VOCAB, rng.integers(1, 9)).tolist()
    count = int(rng.integers(1, 41))
    context = len(prompt) + int(rng.integers(1, 46))
    stops = [3] if rng.random() < 0.5 else []
    salt = rng.bytes(4)
    world = World(
        prompt,
        params,
        salt,
        k=int(rng.integers(1, 8)),
        count=count,
        context=context,
        stops=stops,
        luck=float(rng.choice([0, 0.5, 0.9, 1])),
        rng=rng,
        cuts=int(rng.choice([0, 0, 1, 5])),
        offline=bool(rng.random() < 0.5),
        mode=mode,
    )
    moody = rng.random() < 0.3
    if moody:
        k = int(rng.integers(1, 8))
        world.edge._controller = Moody(k, rng, off=bool(rng.random() < 0.5))
    cuts = world.cuts
    for _ in range(5000):
        moves = world.enabled()
        if world.finish is not None or not moves:
            break
        moves[rng.integers(len(moves))]()
    expected = target_only(prompt, params, salt, count, context, stops)
    assert world.shown == expected, seed
    assert list(world.edge.committed) == expected, seed
    ended = bool(stops) and expected[-1] in stops
    assert world.finish == ("stop" if ended else "length"), seed
    counts = world.edge.counts
    assert counts.tokens == len(expected) and counts.accepted <= counts.drafted, seed
    assert all(
        a <= j for a, j in zip(counts.accepted_by_position, counts.judged_by_position)
    ), seed
    assert world.guessed == [], seed
    if cuts:
        return
    assert counts.rounds == world.cloud.counts.forwards, seed
    assert counts.accepted == world.cloud.counts.accepted, seed
    assert world.forwards <= len(expected), seed  # never later than plain decoding
    if world.luck == 1 and not stops and mode == STOP_AND_WAIT and not moody:
        k = world.edge._controller.limit()
        assert counts.rounds == -(-len(expected) // (k + 1)), seed
