"""Studies on top of draftwire: run from a checkout, in no wheel, imported by nothing.

``python -m studies.evolve``, ``python -m studies.controllers``, ``python -m studies.grid``,
and ``python -m studies.family``, which makes what lies in ``models/``; each says with
``--help`` what it asks and what it takes.
"""

from importlib.util import find_spec

if find_spec("draftwire") is None:
    raise SystemExit(
        "studies: draftwire is not installed here\n"
        "hint: PYTHONPATH=src python -m studies.NAME, in a checkout"
    )
