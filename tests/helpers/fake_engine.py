"""An engine that keeps streams itself, in virtual time, as vLLM was seen to behave.

The first step of a stream is its prompt and brings a token; a step brings several; what is
pushed while a step runs counts for the next one; ids get a suffix; a stream that has lost
its cache decodes a token that nobody asked for; answers of two steps may come as one; the
engine dies with all that it holds, and comes back. Pushes and closings are messages: they
come late, and cross with what the engine has decided.
"""

from __future__ import annotations

from collections import Counter

from cached_target import FAMILY, CachedTarget

from draftwire.errors import ModelError, RefusedError
from draftwire.sampling import make_decider
from draftwire.verifier.backends.streaming import Run, Step
from draftwire.verifier.backends.vllm.wish import Wish

SCHEMES = ("greedy", "coupled", "match", "argmax")


class FakeRun(Run):
    def __init__(self, engine, order, *ways):
        super().__init__(order, *ways)
        self.engine = engine
        self.text = list(order.tokens)
        self.wish = Wish()
        self.read = self.lost = self.gone = False
        self.decider = make_decider(order.params, engine.vocab_size)
        self.kept = []  # tokens of a step that waits to be told with the next

    def push(self, push):
        assert not self._deaf  # the engine may have ended it, and not told so yet
        assert push.base >= len(self.order.tokens)
        self.engine.later(lambda: self.wish.take(push))

    def close(self):
        assert not self._deaf
        super().close()
        self.engine.later(lambda: self.engine.drop(self))

    @property
    def over(self):
        written = len(self.text) - len(self.order.tokens)
        stopped = written > 0 and self.text[-1] in self.order.stop_ids
        return stopped or len(self.text) >= self.order.end

    def wants(self):
        """Tell whether it takes part in the next step."""
        self.wish.settle(self.text, len(self.text))
        ready = not self.read or self.lost or not self.wish.holds(len(self.text))
        return ready and not self.over

    def judged(self):
        """Return the drafts that the coming step looks at."""
        if not self.read or self.lost:
            return []
        most = min(self.engine.most, self.order.end - len(self.text))
        return self.wish.drafts(len(self.text), most)


class FakeEngine:
    """A stream backend on a virtual clock.

    Args:
        clock: When things happen.
        rng: Draws everything that varies.
        step_s: Seconds of a step, about.
        most: Drafts that a step judges at most.
        odd: How often something odd happens, of a hundred steps.

    Attributes:
        steps: How many ran.
        ran: How many steps each run had, by the run.
        unasked: Tokens that nobody asked for, first steps apart.
        merged: Answers of two steps that came as one.
        deaths: Times that it died.
        trouble: Called before each step with the runs in it; what it raises ends them.
    """

    name, version, family, bos_id, eos_ids = "hashed", "v1", FAMILY, None, ()
    numerics, logit_error, exits = "unstated", 0.0, ()
    schemes, noises = SCHEMES, ("philox",)

    def __init__(self, clock, rng, *, vocab_size, context, salt, step_s, most, odd):
        self.clock, self.rng, self.step_s = clock, rng, step_s
        self.model = CachedTarget(vocab_size, slots=1, context=context, salt=salt)
        self.id = self.model.id
        self.vocab_size, self.slots, self.context = vocab_size, 8, context
        self.most, self.odd = most, odd
        self.runs = {}  # by their id with its suffix
        self.number = self.steps = self.unasked = self.merged = self.deaths = 0
        self.ran = Counter()
        self.stepping = self.down = False
        self.full_until = self.mute_until = 0.0
        self.trouble = lambda runs: None
        self.rows_after, self.text = self.model.rows_after, self.model.text

    # -- the verifier's side

    def open(self, order, clock, on_step, on_end):
        if self.clock.now_s < self.full_until:
            raise RefusedError("planted: there is no room")
        assert clock is self.clock and len(order.tokens) < order.end <= self.context
        run = FakeRun(self, order, clock, on_step, on_end)
        self.number += 1
        name = f"stream-{self.number}-{self.rng.getrandbits(32):08x}"
        self.later(lambda: self.runs.setdefault(name, run))
        return run

    def close(self):
        self.down = True

    def later(self, what):
        """A message to the engine: in order, after a moment."""

        def come():
            what()
            self.wake()

        self.clock.call_at(self.clock.now_s + 1e-4, come)

    def drop(self, run):
        run.gone = True
        self.runs = {name: r for name, r in self.runs.items() if r is not run}

    # -- the engine's side

    def wake(self):
        if self.stepping or self.down or not any(run.wants() for run in self.runs.values()):
            return
        self.stepping = True
        late = max(0.0, self.mute_until - self.clock.now_s)
        seconds = late + self.step_s * self.rng.uniform(0.5, 1.5)
        if self.rng.randrange(100) < self.odd:  # memory is short
            self.runs[self.rng.choice(sorted(self.runs))].lost = True
        batch = [(r, r.wish.epoch, r.judged()) for r in self.runs.values() if r.wants()]
        self.clock.call_at(self.clock.now_s + seconds, self.stepped, batch, seconds)

    def stepped(self, batch, seconds):
        self.stepping = False
        if self.down:
            return
        self.steps += 1
        try:
            self.trouble([run for run, *_ in batch])
        except ValueError as error:
            for run, *_ in batch:
                self.end(run, ModelError(f"a step failed: {error}"), False)
            batch = []
        for run, epoch, drafts in batch:
            if not run.gone:
                self.decide(run, epoch, drafts, seconds)
        self.wake()

    def decide(self, run, epoch, drafts, seconds):
        before = len(run.text)
        self.unasked += run.lost and run.wish.holds(before)
        run.read, run.lost = True, False
        self.ran[run] += 1
        new = []
        for draft in [*drafts, None]:
            row = self.rows_after(run.text)[None]
            token = run.decider.decide((), b"", row, len(run.text)).token
            run.text.append(token)
            new.append(token)
            if run.over or token != draft:
                break
        if run.over:
            self.drop(run)
        new = [*run.kept, *new]
        idle = not (drafts or run.kept or run.over or run.wish.holds(len(run.text)))
        if idle and self.rng.randrange(100) < self.odd:
            run.kept = new  # nobody reads: they are told together
            self.merged += 1
            self.clock.call_at(self.clock.now_s + 2 * self.step_s, self.flush, run)
            return
        if run.kept and drafts:  # what was kept comes first, and by itself
            kept = Step(tuple(run.kept), 0, epoch, 0.0, seconds, self.steps)
            run.say(kept)
            new = new[len(run.kept) :]
        run.kept = []
        step = Step(tuple(new), len(drafts), epoch, 0.0, seconds, self.steps)
        run.say(step)

    def flush(self, run):
        if run.kept:
            run.say(Step(tuple(run.kept)))
            run.kept = []

    def end(self, run, error, again):
        self.drop(run)
        run.end(error, again)

    def die(self, for_s):
        """The process is gone, with all that it held; another one starts."""
        self.deaths += 1
        runs, self.runs = list(self.runs.values()), {}
        self.down = True
        for run in runs:
            self.end(run, ModelError("planted: the engine is dead"), True)
        self.clock.call_at(self.clock.now_s + for_s, self.live)

    def live(self):
        self.down = False
        self.wake()
