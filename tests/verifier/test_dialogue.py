"""Several streams on one connection, over a real socket; and what tells that it works."""

import asyncio
import threading

from verifier_lab import (
    ArithmeticBackend,
    device,
    greeted,
    serving,
)

from draftwire.transport.messages import (
    Block,
    Bye,
    Commit,
    Error,
    Finish,
    Opened,
    Progress,
)
from draftwire.verifier.serving.limits import Limits


async def test_a_close_by_the_device_tells_that_it_has_seen_the_end():
    async with serving() as service:
        for cut in (False, True):
            async with greeted(service) as dev:
                assert (await dev.generate([4], 6))[1] is Finish.LENGTH
                if cut:
                    dev.cut()
            while service.connections:
                await asyncio.sleep(0.002)
            assert len(service.kept) == int(cut)


async def test_a_target_that_works_says_so_and_one_that_hangs_does_not():
    backend = ArithmeticBackend(slots=4)
    right, hangs = backend.forward, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(batch):
        if any(item.rows for item in batch):
            while hangs.is_set():
                asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.04), loop).result()
        return right(batch)

    backend.forward = slow
    limits = Limits(progress_s=0.1)
    async with serving(backend, limits=limits) as service, device(service) as dev:
        assert (await dev.greet()).progress_ms == 100
        await dev.open([1] * 250, 5)  # read in several forwards
        await dev.say(Block(0, 0, ()))
        said = []
        while isinstance(message := await dev.hear(), Progress):
            said.append(message)
        assert isinstance(message, Commit)
        for progress in said:
            assert progress.work >= 1 and progress.activity != "idle"
        hangs.set()
        await dev.say(Block(0, 1, ()))
        await asyncio.sleep(0.5)
        assert dev.frames.empty()
        hangs.clear()
        assert isinstance(await dev.hear(), Commit)
        await dev.say(Block(0, 0, (9,)))  # all of it is text already
        answer = await dev.hear()
        assert answer == Progress("idle", answer.epoch, 2, 0)


async def test_a_slot_that_is_on_its_way_back_is_worth_a_moment():
    """A device that cancels and asks again need not wait as for a full verifier."""
    backend = ArithmeticBackend(slots=1)
    backend.gate = threading.Event()
    async with serving(backend) as service:
        async with greeted(service) as dev, device(service) as other:
            assert isinstance(await dev.open([4], 20, 0), Opened)
            await dev.say(Block(0, 0, (1, 2)), 0)
            await other.greet()
            full = await other.open([5], 20)
            assert (full.code, full.fatal) == ("busy", False) and full.retry_after_ms >= 500
            while not service.registry.all[0].driven._batch:
                await asyncio.sleep(0.001)
            await dev.say(Bye(), 0)
            assert isinstance(await dev.hear(), Bye)
            soon = await dev.open([6], 20, 1)
            assert (soon.code, soon.fatal) == ("busy", False) and soon.retry_after_ms < 500
            backend.gate.set()
            while isinstance(opened := await dev.open([6], 20, 1), Error):
                await asyncio.sleep(0.01)
            assert isinstance(opened, Opened)
