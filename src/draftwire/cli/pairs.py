"""``draftwire pairs``: drafts and targets that are known to fit."""

from draftwire.cli.pull import register_pairs as register

__all__ = ["register"]
