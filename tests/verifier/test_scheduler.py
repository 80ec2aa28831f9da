"""The scheduler: batching, turns, failures, withdrawal. Virtual time, and one thread."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from verifier_lab import ask, live

from draftwire.clock import VirtualClock
from draftwire.errors import ConfigError, ModelError, RefusedError
from draftwire.packages import Exit
from draftwire.verifier.backends.base import SlotInput, SlotTarget
from draftwire.verifier.executor import VirtualExecutor
from draftwire.verifier.scheduler import Scheduler

VOCAB = 16


class FakeBackend(SlotTarget):
    """Row for a token is its value everywhere."""

    name, version, exits = "fake", "v1", ()

    def __init__(self, slots=8, context=4096):
        super().__init__(slots, context, VOCAB)
        self.batches = []
        self.poison = None  # a token that breaks any forward it is in
        self.error = MemoryError("no memory")

    def run(self, frame, tell):
        batch = frame.items
        self.batches.append([(i.slot, i.start, len(i)) for i in batch])
        if any(self.poison in i.tokens for i in batch):
            raise self.error
        rows = [
            np.repeat(i.tokens[len(i) - i.rows :, None], VOCAB, 1).astype(np.float32)
            for i in batch
        ]
        for number, _ in enumerate(self.exits if tell else ()):
            tell(number, rows)
        return rows


def block(slot, start, tokens, rows=None):
    tokens = np.asarray(tokens, np.int64)
    return SlotInput(slot, start, tokens, len(tokens) if rows is None else rows)


class Lab:
    """A scheduler in virtual time: a forward takes a second, a prompt one more a token."""

    def __init__(self, backend=None, fractions=(), **options):
        self.backend = backend or FakeBackend()
        self.clock = VirtualClock()
        self.executor = VirtualExecutor(
            self.backend,
            self.clock,
            lambda parts, prefill: 1.0 + prefill * sum(len(p) for p in parts),
            fractions,
        )
        self.scheduler = Scheduler(self.backend, self.executor, self.clock, **options)
        self.answers = {}

    def submit(self, name, item, then=(), **options):
        """Submit an item, and when it is answered the next of ``then``."""

        def done(answer):
            assert not inside and name not in self.answers
            self.answers[name] = answer
            if then:
                self.submit((name, len(then)), then[0], then[1:])

        inside = [True]
        request = self.scheduler.submit(item, done=done, **options)
        inside.clear()
        return request

    def hold(self):
        """Put one block into a forward, so that others must wait."""
        self.submit("held", block(self.backend.allocate(), 0, [1]))
        self.clock.run(lambda: not self.executor.over)
        self.backend.batches.clear()


def test_waiting_blocks_share_one_forward():
    lab = Lab()
    lab.hold()
    slots = [lab.backend.allocate() for _ in range(3)]
    for s in slots:
        lab.submit(s, block(s, 0, range(s, s + s)))
    lab.clock.run()
    assert lab.backend.batches == [[(s, 0, s) for s in slots]]
    for s in slots:
        answer = lab.answers[s]
        assert answer.rows[:, 0].tolist() == list(range(s, s + s))
        assert (answer.queue_s, answer.compute_s) == (1.0, 1.0)
    counters = lab.scheduler.counters
    assert counters.batch_sizes == {1: 1, 3: 1}
    assert counters.forwards == 2
    assert lab.executor.busy_s == counters.compute_s == 2.0


def test_what_happens_at_the_same_moment_goes_into_the_same_forward():
    lab = Lab()
    first, second = lab.backend.allocate(), lab.backend.allocate()

    def go_on(answer):
        lab.submit("again", block(first, 1, [2]))

    lab.scheduler.submit(block(first, 0, [1]), done=go_on)
    lab.clock.call_at(1.0, lab.submit, "other", block(second, 0, [3]))
    lab.clock.run()
    assert lab.backend.batches == [[(first, 0, 1)], [(second, 0, 1), (first, 1, 1)]]


def test_a_long_prompt_takes_turns_with_blocks():
    lab = Lab(chunk=4, max_tokens=8)
    lab.hold()
    reader, writer = lab.backend.allocate(), lab.backend.allocate()
    lab.submit("prompt", block(reader, 0, [1] * 10, rows=2), prefill=True)
    first, *others = [block(writer, n, [n]) for n in range(3)]
    lab.submit("first", first, others)
    lab.clock.run()
    kinds = [batch[0][0] for batch in lab.backend.batches]
    assert kinds == [reader, writer, reader, writer, reader, writer]
    assert [b[0][1:] for b in lab.backend.batches[::2]] == [(0, 4), (4, 4), (8, 2)]
    assert lab.answers["prompt"].rows.shape == (2, VOCAB)
    assert lab.answers["prompt"].compute_s == 3 + 10
    assert lab.scheduler.counters.prefill_forwards == 3


def test_rows_that_span_two_chunks_come_back_whole():
    lab = Lab(chunk=4)
    request = lab.submit("x", block(lab.backend.allocate(), 0, range(10), rows=5))
    lab.clock.run()
    assert lab.answers["x"].rows[:, 0].tolist() == [5, 6, 7, 8, 9]
    assert request.forwards == 3


def test_round_robin_within_the_token_cap():
    lab = Lab(chunk=4, max_tokens=8)
    lab.hold()
    greedy, a, b, c = [lab.backend.allocate() for _ in range(4)]
    first, *others = [block(greedy, 4 * n, [1] * 4) for n in range(3)]
    lab.submit("first", first, others)
    for slot in (a, b, c):
        lab.submit(f"slot {slot}", block(slot, 0, [2] * 4))
    lab.clock.run()
    served = [[slot for slot, _, _ in batch] for batch in lab.backend.batches]
    assert served == [[greedy, a], [b, c], [greedy], [greedy]]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("no memory"), "fake v1 failed: MemoryError: no memory"),
        (ModelError("the engine says no"), "the engine says no"),
        # whatever class an engine borrows, it is not the device that may try again
        (RefusedError("so busy"), "fake v1 failed: RefusedError: so busy"),
        (ConfigError("odd"), "fake v1 failed: ConfigError: odd"),
    ],
)
def test_a_poisoned_request_fails_alone_and_the_rest_are_served(error, sentence):
    lab = Lab()
    lab.backend.poison, lab.backend.error = 13, error
    lab.hold()
    good, bad, gone = [lab.backend.allocate() for _ in range(3)]
    requests = [
        lab.submit("good", block(good, 0, [5])),
        lab.submit("bad", block(bad, 0, [13])),
        lab.submit("gone", block(gone, 0, [6])),
    ]
    lab.clock.call_at(1.5, requests[2].withdraw)
    lab.clock.run()
    answer = lab.answers["bad"]
    assert type(answer) is ModelError and sentence in str(answer)
    assert lab.answers["good"].rows[0, 0] == 5 and "gone" not in lab.answers
    assert [len(batch) for batch in lab.backend.batches] == [3, 1, 1]
    assert [r.forwards for r in requests] == [2, 2, 1]
    assert lab.scheduler.counters.failed == 1
    lab.submit("next", block(bad, 0, [4]))
    lab.clock.run()
    assert lab.answers["next"].rows[0, 0] == 4


@pytest.mark.parametrize(
    ("item", "complaint"),
    [
        (block(0, 1, [1]), "start at position 1"),
        (block(0, 0, [VOCAB]), "outside the vocabulary"),
        (block(0, 0, [1] * 5), "context of 4"),
        (block(0, 0, []), "0 tokens"),
        (block(1, 0, [1]), "not in use"),
    ],
)
def test_what_does_not_fit_its_slot_is_refused(item, complaint):
    lab = Lab(FakeBackend(slots=2, context=4))
    lab.backend.allocate()
    lab.submit("x", item)
    lab.clock.run()
    assert isinstance(lab.answers["x"], ModelError) and complaint in str(lab.answers["x"])


def test_a_withdrawn_request_never_runs():
    lab = Lab()
    lab.hold()
    slot = lab.backend.allocate()
    first = lab.submit("first", block(slot, 0, [3]))
    first.withdraw()
    first.withdraw()
    lab.submit("second", block(slot, 0, [4]))
    assert lab.scheduler.waiting == 2  # the held one and the second
    lab.clock.run()
    assert "first" not in lab.answers and lab.answers["second"].rows[0, 0] == 4
    assert lab.backend.batches == [[(slot, 0, 1)]]
    assert lab.scheduler.counters.cancelled == 1 and first.forwards == 0


def test_a_slot_is_not_reused_while_a_forward_still_writes_to_it():
    lab = Lab(FakeBackend(slots=1))
    lab.hold()
    lab.scheduler.release(0)
    with pytest.raises(RefusedError, match="busy"):
        lab.backend.allocate()
    lab.clock.run(lambda: "held" in lab.answers)
    assert "has ended" in str(lab.answers["held"]) and lab.clock.now() < 1.0
    lab.clock.run()
    assert lab.backend.allocate() == 0


def test_too_many_waiting_requests_are_refused_and_close_fails_the_rest():
    lab = Lab(max_waiting=2)
    lab.hold()
    slot = lab.backend.allocate()
    lab.submit("waits", block(slot, 0, [3]))
    lab.submit("third", block(slot, 0, [4]))
    lab.clock.run(lambda: "third" in lab.answers)
    assert "2 requests wait" in str(lab.answers["third"])
    lab.scheduler.close()
    lab.submit("late", block(slot, 0, [4]))
    lab.clock.run()
    for name in ("held", "waits", "late"):
        assert type(lab.answers[name]) is RefusedError
        assert "shutting down" in str(lab.answers[name])
    assert lab.backend.batches == []


def test_exits_speak_at_their_time_and_a_forward_nobody_wants_is_broken_off():
    lab = Lab(fractions=(0.25, 0.5))
    lab.backend.exits = (Exit(1, 0.5, 0.9), Exit(2, 0.5, 0.9))
    slot, other = lab.backend.allocate(), lab.backend.allocate()
    heard = []

    def listen(number, rows):
        heard.append((number, lab.clock.now(), rows[0, 0]))

    lab.submit("x", block(slot, 0, [3]), on_exit=listen)
    request = lab.submit("y", block(other, 0, [4]), on_exit=lambda *_: None)
    lab.clock.run()
    assert heard == [(0, 0.25, 3), (1, 0.5, 3)] and lab.clock.now() == 1.0
    # one of two is withdrawn, then both
    lab.submit("z", block(slot, 1, [5]), on_exit=listen)
    request = lab.submit("w", block(other, 1, [6]), on_exit=listen)
    lab.clock.call_at(1.1, request.withdraw)
    lab.clock.run()
    assert heard[2:] == [(0, 1.25, 5), (1, 1.5, 5)] and "z" in lab.answers
    request = lab.submit("v", block(slot, 2, [7]), on_exit=listen)
    lab.clock.call_at(2.3, request.withdraw)
    lab.clock.call_at(2.4, lab.submit, "next", block(other, 1, [8]))
    lab.clock.run()
    assert heard[4:] == [(0, 2.25, 7)]
    assert request.forwards == 1 and lab.answers["next"].queue_s == pytest.approx(0.1)
    assert lab.clock.now() == 3.5


@pytest.mark.parametrize("error", [MemoryError("no memory"), SystemExit()])
async def test_on_a_thread_it_is_the_same_scheduler(error):
    backend = FakeBackend()
    backend.poison, backend.error = 13, error
    gate = threading.Event()
    run, threads = backend.forward, []

    def forward(batch):
        threads.append(threading.current_thread().name)
        assert gate.wait(10)
        return run(batch)

    backend.forward = forward

    scheduler = live(backend)
    slots = [backend.allocate() for _ in range(3)]
    first = ask(scheduler, block(slots[0], 0, [1]))
    while not threads:
        await asyncio.sleep(0)
    good, bad = (
        ask(scheduler, block(slots[1], 0, [5])),
        ask(scheduler, block(slots[2], 0, [13])),
    )
    assert backend.batches == []
    gate.set()
    assert (await first).rows[0, 0] == 1 and (await good).rows[0, 0] == 5
    with pytest.raises(ModelError, match=type(error).__name__):
        await bad
    assert [len(batch) for batch in backend.batches] == [1, 2, 1, 1]
    scheduler.close()
    with pytest.raises(RefusedError, match="shutting down"):
        await ask(scheduler, block(slots[0], 1, [4]))
    assert all("draftwire-target" in name for name in threads)


async def test_large_judgements_run_beside_the_loop_and_small_ones_in_place():
    executor = live(FakeBackend()).executor
    found = asyncio.Queue()
    for size in (10, 10**6):
        executor.judge(threading.current_thread, size, found.put_nowait)
    here = threading.current_thread()
    assert found.get_nowait() is here
    assert await found.get() is not here
    executor.judge(lambda: 1 // 0, 10**6, found.put_nowait)
    assert isinstance(await found.get(), ZeroDivisionError)
    executor.close()
