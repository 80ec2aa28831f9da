"""The ports of the driver as they are live."""

import asyncio

from draftwire.clock import LoopClock


def test_a_loop_that_is_stopped_ends_what_still_waits_in_it():
    clock = LoopClock(asyncio.new_event_loop())
    waits = clock.loop.create_task(asyncio.sleep(3600))
    clock.post(clock.loop.stop)
    clock.run()
    assert waits.cancelled() and clock.loop.is_closed()
