"""Boards: what each one is, how to know it, and which rails it can measure.

Every fact about a board is data in a ``*.toml`` file of this folder, with its source;
``profiles`` reads them.  This room imports none of the others.
"""
