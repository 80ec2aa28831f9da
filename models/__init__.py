"""draftwire's reference family: ``reference.draft``, ``v1.target`` to ``v3.target``."""
