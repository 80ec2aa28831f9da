"""The reference family of draftwire: ``reference.draft``, ``v1.target`` to ``v3.target``."""
