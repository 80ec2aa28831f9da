"""Boards: what each one is, how to know it, and what to mend before a draft runs.

Every fact about a board is data in a file of ``profiles/``, with its source; ``detect``
says what a machine is, ``doctor`` whether a draft would run there. This package imports
none of the others.
"""
