"""The scheduler: batching, turns, failures, withdrawal. A fake backend, no engine."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from draftwire.errors import ModelError, RefusedError
from draftwire.verifier.backends.base import SlotInput, SlotTable
from draftwire.verifier.scheduler import Scheduler

VOCAB = 16


class FakeBackend:
    """Row for a token is its value everywhere; forwards wait for `gate` when closed."""

    name, version, exits = "fake", "v1", ()

    def __init__(self, slots=8, context=4096):
        self.table = SlotTable(slots, context, VOCAB)
        self.allocate, self.release = self.table.allocate, self.table.release
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.poison = None  # a token that breaks any forward it is in

    def forward(self, batch):
        self.entered.set()
        assert self.gate.wait(10)
        self.table.check(batch)
        self.batches.append([(i.slot, i.start, len(i)) for i in batch])
        if any(self.poison in i.tokens for i in batch):
            raise MemoryError("no memory")
        self.table.commit(batch)
        return [
            np.repeat(i.tokens[len(i) - i.rows :, None], VOCAB, 1).astype(np.float32)
            for i in batch
        ]


def block(slot, start, tokens, rows=None):
    tokens = np.asarray(tokens, np.int64)
    return SlotInput(slot, start, tokens, len(tokens) if rows is None else rows)


def run(test):
    return asyncio.run(asyncio.wait_for(test, 20))


async def hold(backend, scheduler):
    """Close the gate and put one block in the forward, so that others must wait."""
    backend.gate.clear()
    slot = backend.allocate()
    first = asyncio.ensure_future(scheduler.submit(block(slot, 0, [1])))
    while not backend.entered.is_set():
        await asyncio.sleep(0)
    backend.batches.clear()
    return first


async def queued(scheduler, *submits):
    """Submit all and return once they wait."""
    tasks = []
    for args, kwargs in submits:
        tasks.append(asyncio.ensure_future(scheduler.submit(*args, **kwargs)))
        await asyncio.sleep(0)
    return tasks


def job(item, **kwargs):
    return ((item,), kwargs)


def test_waiting_blocks_share_one_forward():
    async def test():
        backend = FakeBackend()
        scheduler = Scheduler(backend)
        first = await hold(backend, scheduler)
        slots = [backend.allocate() for _ in range(3)]
        tasks = await queued(scheduler, *(job(block(s, 0, range(s, s + s))) for s in slots))
        backend.gate.set()
        answers = await asyncio.gather(first, *tasks)
        assert backend.batches[1:] == [[(s, 0, s) for s in slots]]
        for slot, answer in zip(slots, answers[1:]):
            assert answer.rows[:, 0].tolist() == list(range(slot, slot + slot))
            assert answer.queue_s >= 0 and answer.compute_s >= 0
        assert scheduler.counters.batch_sizes == {1: 1, 3: 1}
        assert scheduler.counters.forwards == 2
        assert scheduler.counters.requests == 4
        await scheduler.close()

    run(test())


def test_a_long_prompt_takes_turns_with_blocks():
    async def test():
        backend = FakeBackend()
        scheduler = Scheduler(backend, chunk=4, max_tokens=8)
        first = await hold(backend, scheduler)
        reader, writer = backend.allocate(), backend.allocate()
        tasks = await queued(
            scheduler,
            job(block(reader, 0, [1] * 10, rows=2), prefill=True),
            *(job(block(writer, n, [n])) for n in range(3)),
        )
        backend.gate.set()
        answers = await asyncio.gather(first, *tasks)
        kinds = [batch[0][0] for batch in backend.batches[1:]]
        assert kinds == [reader, writer, reader, writer, reader, writer]
        assert [b[0][1:] for b in backend.batches[1::2]] == [(0, 4), (4, 4), (8, 2)]
        assert answers[1].rows.shape == (2, VOCAB)
        await scheduler.close()

    run(test())


def test_rows_that_span_two_chunks_come_back_whole():
    async def test():
        backend = FakeBackend()
        scheduler = Scheduler(backend, chunk=4)
        slot = backend.allocate()
        answer = await scheduler.submit(block(slot, 0, range(10), rows=5))
        assert answer.rows[:, 0].tolist() == [5, 6, 7, 8, 9]
        await scheduler.close()

    run(test())


def test_round_robin_within_the_token_cap():
    async def test():
        backend = FakeBackend()
        scheduler = Scheduler(backend, chunk=4, max_tokens=8)
        first = await hold(backend, scheduler)
        greedy, *others = [backend.allocate() for _ in range(4)]
        tasks = await queued(
            scheduler,
            *(job(block(greedy, 4 * n, [1] * 4)) for n in range(3)),
            *(job(block(slot, 0, [2] * 4)) for slot in others),
        )
        backend.gate.set()
        await asyncio.gather(first, *tasks)
        a, b, c = others
        served = [[slot for slot, _, _ in batch] for batch in backend.batches[1:]]
        assert served == [[greedy, a], [b, c], [greedy], [greedy]]
        await scheduler.close()

    run(test())


def test_a_poisoned_request_fails_alone_and_the_rest_are_served():
    async def test():
        backend = FakeBackend()
        backend.poison = 13
        scheduler = Scheduler(backend)
        first = await hold(backend, scheduler)
        good, bad = backend.allocate(), backend.allocate()
        tasks = await queued(scheduler, job(block(good, 0, [5])), job(block(bad, 0, [13])))
        backend.gate.set()
        await first
        with pytest.raises(ModelError, match="fake v1 failed: MemoryError: no memory"):
            await tasks[1]
        assert (await tasks[0]).rows[0, 0] == 5
        assert scheduler.counters.failed == 1
        assert (await scheduler.submit(block(bad, 0, [4]))).rows[0, 0] == 4
        await scheduler.close()

    run(test())


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
    async def test():
        backend = FakeBackend(slots=2, context=4)
        backend.allocate()
        scheduler = Scheduler(backend)
        with pytest.raises(ModelError, match=complaint):
            await scheduler.submit(item)
        await scheduler.close()

    run(test())


def test_a_withdrawn_request_never_runs():
    async def test():
        backend = FakeBackend()
        scheduler = Scheduler(backend)
        first = await hold(backend, scheduler)
        slot = backend.allocate()
        tasks = await queued(scheduler, job(block(slot, 0, [3])), job(block(slot, 0, [4])))
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert scheduler.waiting == 2  # the held one and the second
        backend.gate.set()
        await first
        assert (await tasks[1]).rows[0, 0] == 4
        assert backend.batches[1:] == [[(slot, 0, 1)]]
        assert scheduler.counters.cancelled == 1
        await scheduler.close()

    run(test())


def test_a_slot_is_not_reused_while_a_forward_still_writes_to_it():
    async def test():
        backend = FakeBackend(slots=1)
        scheduler = Scheduler(backend)
        first = await hold(backend, scheduler)
        scheduler.release(0)
        with pytest.raises(RefusedError, match="has ended"):
            await first
        with pytest.raises(RefusedError, match="busy"):
            backend.allocate()
        backend.gate.set()
        while scheduler._running:
            await asyncio.sleep(0.001)
        assert backend.allocate() == 0
        await scheduler.close()

    run(test())


def test_too_many_waiting_requests_are_refused_and_close_fails_the_rest():
    async def test():
        backend = FakeBackend()
        scheduler = Scheduler(backend, max_waiting=2)
        first = await hold(backend, scheduler)
        slot = backend.allocate()
        (waits,) = await queued(scheduler, job(block(slot, 0, [3])))
        with pytest.raises(RefusedError, match="2 requests wait"):
            await scheduler.submit(block(slot, 0, [4]))
        closing = asyncio.ensure_future(scheduler.close())
        with pytest.raises(RefusedError, match="shutting down"):
            await waits
        backend.gate.set()
        await closing
        with pytest.raises(RefusedError, match="shutting down"):
            await first
        with pytest.raises(RefusedError, match="shutting down"):
            await scheduler.submit(block(slot, 0, [4]))

    run(test())
