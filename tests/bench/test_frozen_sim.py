"""Simulated tables are those of ``tests/golden/frozen_sim_v1.json``, to six digits.

A change that moves them says so and why; ``tests/helpers/frozen.py`` writes them anew.
"""

import frozen
import pytest


def test_every_cell_is_where_it_was():
    lines = frozen.moved(frozen.read(frozen.SIM), frozen.measure_sim())
    if lines:
        pytest.fail(f"{len(lines)} moved:\n" + "\n".join(lines), pytrace=False)
