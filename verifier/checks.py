"""The checks of the conformance kit, in the order of PROTOCOL.md."""

from __future__ import annotations

from draftwire.verifier import check_greetings, check_resume, check_streams

__all__ = ["CHECKS"]

CHECKS = (*check_greetings.CHECKS, *check_streams.CHECKS, *check_resume.CHECKS)
