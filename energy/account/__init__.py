"""Joules of a stretch of time: sampling, integrals, phases, and how sure they are."""
