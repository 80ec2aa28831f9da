"""Lost links: who comes back goes on, with no token lost, repeated or stolen."""

from __future__ import annotations

import asyncio

import pytest
from verifier_lab import (
    A,
    ArithmeticBackend,
    B,
    continuation,
    device,
    greeted,
    serving,
    shown,
    two_accounts,
)
from websockets.exceptions import ConnectionClosed

from draftwire.transport.messages import Block, Bye, Finish, Opened, Resumed
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.serving.limits import Limits

PROMPT = [3, 1, 4]
TEXT = continuation(PROMPT, 40)


async def parked(service, count=1):
    while len(service.kept) != count:
        await asyncio.sleep(0.005)  # `run` ends a wait for ever


async def lost_after(service, rounds, **options):
    """Open, draft so many rounds, lose the link; return what the device has then."""
    async with greeted(service, **options) as dev:
        opened = await dev.open(PROMPT, 40)
        assert (len(opened.id), len(opened.secret)) == (8, 16)
        text, epoch = await dev.go_on(PROMPT, [], 0, rounds=rounds)
        dev.cut()
    return opened, text, epoch


@pytest.mark.parametrize("rounds", [0, 1, 3])
async def test_the_text_goes_on_although_its_slot_was_given_away(rounds):
    """That it does in a slot that was kept, the kit's rows ask."""
    async with serving(ArithmeticBackend(slots=1)) as service:
        opened, text, _ = await lost_after(service, rounds)
        await parked(service)
        (served,) = service.registry.all
        assert service.kept.slots(served) == 1 and service.kept.kept_bytes > 0
        async with greeted(service) as other:
            assert (await other.generate([7], 6))[0] == continuation([7], 6)
            await other.say(Bye())
        assert service.kept.slots(served) == 0
        await other.socket.wait_closed()
        async with greeted(service) as dev:
            resumed = await dev.resume(opened, len(text))
            ran, digest = len(text) and rounds, TextHash((*PROMPT, *text)).digest()
            at = resumed.epoch, len(text), ()
            assert resumed == Resumed(*at, forwards=ran, text_hash=digest)
            found = await dev.go_on(PROMPT, text, resumed.epoch)
            assert found == (TEXT, Finish.LENGTH)
            await dev.say(Bye())
            while service.kept._known:
                await asyncio.sleep(0.005)
        assert len(service.kept) == 0 and service.kept.kept_bytes == 0


@pytest.mark.parametrize("again", [1, 3])
async def test_a_finish_that_never_arrived_comes_with_the_resume(again):
    backend = ArithmeticBackend(slots=1)
    async with serving(backend) as service:
        async with greeted(service) as dev:
            opened = await dev.open(PROMPT, 4)
            await dev.say(Block(0, 0, tuple(TEXT[:3])))
            assert (await dev.hear()).finish is Finish.LENGTH
            dev.cut()
        await parked(service)
        for left in reversed(
            range(again)
        ):  # and once more, when that answer is lost as well
            async with greeted(service) as dev:
                resumed = await dev.resume(opened, 2)
                assert resumed.tokens == tuple(TEXT[2:4])
                assert resumed.finish is Finish.LENGTH
                if left == 0:  # its number is used again: its end was seen
                    text, _ = await dev.generate([9], 5)
                    assert text == continuation([9], 5)
                dev.cut()
            await parked(service)
        async with greeted(service) as dev:
            assert (await dev.resume(opened, 2)).code == "stream"


async def test_many_takeovers_at_once_leave_one_holder():
    async with serving(ArithmeticBackend(slots=1)) as service:
        async with greeted(service) as first:
            opened = await first.open(PROMPT, 40)

            async def one():
                async with greeted(service) as dev:
                    try:
                        resumed = await dev.resume(opened, 0)
                        text, _ = await dev.go_on(
                            PROMPT, list(resumed.tokens), resumed.epoch
                        )
                    except ConnectionClosed:
                        return None
                    return text

            found = await asyncio.gather(*(one() for _ in range(5)))
        assert [text for text in found if text is not None] == [TEXT]


async def test_another_target_account_or_vocabulary_does_not_get_it():
    backends = ArithmeticBackend("v1"), ArithmeticBackend("v2")
    async with serving(*backends, accounts=two_accounts()) as service:
        opened, text, _ = await lost_after(service, 1, **shown(A))
        await parked(service)
        for token, changes in (
            (A, {"target": "v1"}),
            (B, {"target": "v2"}),
            (A, {"target": "v2", "vocab_size": 45}),
        ):
            async with device(service, **shown(token)) as dev:
                await dev.greet(**changes)
                answer = await dev.resume(opened, len(text))
                assert answer.code == "stream", changes
        async with greeted(service, **shown(A)) as dev:
            assert isinstance(await dev.resume(opened, len(text)), Resumed)


async def test_it_waits_so_long_and_no_longer():
    async with serving(limits=Limits(resume_s=0.2)) as service:
        opened, _, _ = await lost_after(service, 1)
        await parked(service)
        await parked(service, 0)
        async with greeted(service) as dev:
            assert (await dev.resume(opened, 0)).code == "stream"
        assert service.kept.expired == 1


async def test_nothing_is_kept_after_a_bye_a_fault_or_without_the_capability():
    async with serving() as service:
        async with greeted(service) as dev:
            await dev.open(PROMPT, 40)
            await dev.say(Bye("cancelled"))
        async with greeted(service) as dev:
            await dev.open(PROMPT, 40)
            await dev.say(Block(0, 30, (1,)))  # a gap
            assert (await dev.hear()).code == "protocol"
        async with device(service) as dev:
            assert (await dev.greet(capabilities=())).capabilities == ()
            assert await dev.open(PROMPT, 40) == Opened()
            dev.cut()
        while service.connections:
            await asyncio.sleep(0.005)
        assert len(service.kept) == 0 and not service.kept._known
        service.registry.targets[0].backend.allocate()
    async with serving(limits=Limits(resume_s=0)) as service, device(service) as dev:
        assert (await dev.greet()).capabilities == ()


async def test_what_is_kept_is_bounded_and_the_greediest_loses_first():
    limits = Limits(parked=3)
    backend = ArithmeticBackend(slots=2)
    async with serving(backend, limits=limits, accounts=two_accounts()) as service:
        one = await lost_after(service, 1, **shown(A))
        await parked(service)
        greedy = []
        for _ in range(5):
            greedy.append(await lost_after(service, 1, **shown(B)))
            while service.connections:
                await asyncio.sleep(0.005)
        assert len(service.kept) == 3 and service.kept.evicted == 3
        assert service.kept.slots(service.registry.all[0]) <= 2
        for token, (opened, text, _), lives in (
            (A, one, True),
            (B, greedy[-1], True),
            (B, greedy[0], False),
        ):
            async with greeted(service, **shown(token)) as dev:
                answer = await dev.resume(opened, len(text))
                assert isinstance(answer, Resumed) is lives
    async with serving(limits=Limits(parked_bytes=5000)) as service:
        for _ in range(3):
            await lost_after(service, 1)
            while service.connections:
                await asyncio.sleep(0.005)
        assert len(service.kept) == 1 and service.kept.kept_bytes <= 5000


async def test_no_free_slot_is_busy_and_the_stream_waits_on():
    async with serving(ArithmeticBackend(slots=1)) as service:
        opened, text, _ = await lost_after(service, 1)
        await parked(service)
        async with greeted(service) as other, device(service) as dev:
            await other.open([7], 9)  # takes the kept slot
            await dev.greet()
            resumed = await dev.resume(opened, len(text))
            assert (resumed.code, resumed.fatal) == ("busy", False)
            await other.say(Bye())
            while not isinstance(resumed := await dev.resume(opened, len(text)), Resumed):
                await asyncio.sleep(0.01)
            assert (await dev.go_on(PROMPT, text, resumed.epoch))[0] == TEXT


async def test_a_retired_target_takes_its_waiting_streams_along():
    async with serving() as service:
        opened, _, _ = await lost_after(service, 1)
        await parked(service)
        service.registry.add(ArithmeticBackend("v2"))
        service.registry.retire(service.registry.targets[0])
        await parked(service, 0)
        async with greeted(service) as dev:
            assert (await dev.resume(opened, 0)).code == "stream"
