"""An open for a machine that is tried by hand."""

from dataclasses import replace

from draftwire.transport.messages import Open


def asked(**changes):
    """Return an open, greedy unless ``changes`` say otherwise."""
    return replace(Open((1, 2, 3), "greedy", 0.0, 0, 1.0, 0, 9), **changes)
