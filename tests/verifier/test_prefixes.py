"""The next turn sends and reads what is new; what is gone is sent and read again."""

import dataclasses

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

from draftwire.transport.messages import Block, Commit, Error, Open, Opened
from draftwire.transport.text_hash import TextHash
from draftwire.verifier.serving.limits import Limits

PROMPT = [5, 6, 7, 8] * 10


async def turn(dev, context, rest, count=8, stream=0):
    """Open with ``context`` named and ``rest`` sent; return the answer."""
    digest = TextHash(context).digest(16)
    request = Open(
        tuple(rest), "greedy", 0.0, 0, 1.0, 0, count, prefix=digest,
        prefix_length=len(context),
    )  # fmt: skip
    await dev.say(request, stream)
    return await dev.hear()


def read(backend):
    return sum(n for sizes in backend.sizes for _, n, rows in sizes if not rows)


async def test_a_prompt_that_streams_share_at_once_is_read_once():
    backend = ArithmeticBackend()
    async with serving(backend, accounts=two_accounts()) as service:
        async with greeted(service, **shown(A)) as dev:
            for number in range(3):
                prompt = (*PROMPT, 9, number)
                await dev.say(Open(prompt, "greedy", 0.0, 0, 1.0, 0, 8), number)
                answer = await dev.hear()
                assert answer.reused == (number > 0) * (len(PROMPT) + 1)
                await dev.say(Block(0, 0, ()), number)
                commit = await dev.hear()
                assert (commit.token,) == tuple(continuation(prompt, 1))
            assert read(backend) <= len(PROMPT) + 1
            async with greeted(service, **shown(B)) as other:
                await other.say(Open((*PROMPT, 9), "greedy", 0.0, 0, 1.0, 0, 8))
                assert (await other.hear()).reused == 0, "what a stranger has read"


async def test_many_sessions_read_a_system_prompt_once_in_bounded_memory():
    """Sessions come, talk for longer than the prompt is, and go; strangers come too."""
    backend, system = ArithmeticBackend(slots=4), [5, 6, 7, 8] * 20
    async with serving(backend, accounts=two_accounts()) as service:
        prefixes, served = service.kept.prefixes, service.registry.all[0]
        for number in range(24):
            async with device(service, **shown(A)) as dev:
                await dev.greet(capabilities=("prefix",))
                prompt = [*system, 9, number]
                text, _ = await dev.generate(prompt, 90)  # longer than what is shared
                assert text == continuation(prompt, 90)
            if number % 4 == 3:  # a stranger's own texts need slots as well
                async with greeted(service, **shown(B)) as other:
                    await other.generate([3, number] * 10, 8)
            assert prefixes.slots(served) <= 4 and len(prefixes) <= 8 + 8
        strangers = 6 * 20
        assert read(backend) <= len(system) + strangers + 24 * 3
        assert served.tally.prefix_copied >= 20 * len(system) and prefixes.evicted > 0
        # Gone with everything that held it, it is read again, once, and nobody is told.
        while prefixes.give_up_slot(served):
            pass
        before = read(backend)
        for number in (30, 31):
            async with greeted(service, **shown(A)) as dev:
                prompt = [*system, 9, number]
                assert (await dev.generate(prompt, 4))[0] == continuation(prompt, 4)
        assert len(system) < read(backend) - before <= len(system) + 6


async def test_what_is_not_there_is_asked_for():
    async with serving(limits=Limits(prefixes=1)) as service, device(service) as dev:
        await dev.greet(capabilities=("prefix",))
        await dev.generate(PROMPT, 8)
        for context in (PROMPT + [1], PROMPT[1:], [9] * 200):
            answer = await turn(dev, context, [3])
            assert isinstance(answer, Error) and not answer.fatal
            assert answer.code == "prefix"
        assert isinstance(await turn(dev, PROMPT[:20], [3]), Opened)
        await dev.generate([2] * 30, 8, stream=1)  # there is room for one text
        assert (await turn(dev, PROMPT, [3], stream=2)).code == "prefix"
        # What a running stream begins with may be named as well.
        assert isinstance(await turn(dev, PROMPT[:20], [3], stream=2), Opened)
    async with serving(limits=Limits(prefixes=0)) as service, device(service) as dev:
        welcome = await dev.greet(capabilities=("prefix",))
        assert "prefix" not in welcome.capabilities
        await dev.generate(PROMPT, 8)
        assert (await turn(dev, PROMPT, [3])).code == "prefix"


async def test_nobody_else_may_name_a_text():
    async with serving(accounts=two_accounts()) as service:
        async with device(service, **shown(A)) as one:
            await one.greet(capabilities=("prefix",))
            await one.generate(PROMPT, 8)
        async with device(service, **shown(B)) as other:
            await other.greet(capabilities=("prefix",))
            assert (await turn(other, PROMPT, [3])).code == "prefix"
            await other.say(Open((*PROMPT, 3), "greedy", 0.0, 0, 1.0, 0, 8))
            assert (await other.hear()).reused == 0
        async with device(service, **shown(A)) as again:
            await again.greet(capabilities=("prefix",))
            assert (await turn(again, PROMPT, [3])).reused == len(PROMPT)


async def test_brief_opens_lean_on_their_own_connection_and_token_alone():
    settings = ("greedy", 0.0, 0, 1.0, 7, 8)
    plain = Open(tuple(PROMPT), *settings, stop_ids=(200,), brief=True)

    async def asked(dev, request, stream=0):
        await dev.say(request, stream)
        return await dev.hear()

    async with serving(accounts=two_accounts()) as service:
        async with device(service, **shown(A)) as dev:
            await dev.greet(capabilities=("prefix", "brief"))
            text, _ = await dev.generate(PROMPT, 8)
            assert isinstance(await asked(dev, plain), Opened)
            assert (await dev.go_on(PROMPT, [], 0))[0] == text
            again = dev.codec.encode(plain, 1)
            assert len(again) == 11 + len(PROMPT) * 6 // 8  # nothing else is said
            known = [*PROMPT, *text]
            named = dataclasses.replace(
                plain, prompt=(9,), prefix=TextHash(known).digest(16),
                prefix_length=len(known),
            )  # fmt: skip
            answer = await asked(dev, named)
            assert isinstance(answer, Opened) and answer.reused >= len(known) - 1
            turned = dev.codec.encode(named, 1)
        for token in (A, B):
            async with device(service, **shown(token)) as other:
                await other.greet(capabilities=("prefix", "brief"))
                for frame in (again, turned):  # what was said elsewhere is not known here
                    await other.socket.send(frame)
                    answer = await other.hear()
                    assert (answer.code, answer.fatal) == ("prefix", False)
                await other.say(dataclasses.replace(named, brief=False), 1)
                answer = await other.hear()
                mine = isinstance(answer, Opened)
                assert mine if token == A else answer.code == "prefix"
        async with device(service, **shown(A)) as plainly:
            await plainly.greet(capabilities=("prefix",))
            await plainly.socket.send(again)
            assert (await plainly.hear()).code == "protocol"


async def test_a_slot_that_others_need_is_given_up_and_the_ids_stay():
    backend = ArithmeticBackend(slots=1)
    async with serving(backend) as service, device(service) as dev:
        await dev.greet(capabilities=("prefix",))
        await dev.generate(PROMPT, 8)
        assert service.kept.prefixes.slots(service.registry.all[0]) == 1
        assert isinstance(await dev.open([2], 4, 1), Opened)
        assert (
            service.kept.prefixes.slots(service.registry.all[0]) == 0
            and len(service.kept.prefixes) == 1
        )
        answer = await turn(dev, PROMPT, [3], stream=2)
        assert (answer.code, answer.fatal) == ("busy", False)
        await dev.go_on([2], [], 0, stream=1)
        answer = await turn(dev, PROMPT, [3], stream=2)
        assert isinstance(answer, Opened) and answer.reused == 0
        await dev.say(Block(0, 0, ()), 2)
        commit = await dev.hear()
        assert isinstance(commit, Commit)
        assert [commit.token] == continuation([*PROMPT, 3], 1)
