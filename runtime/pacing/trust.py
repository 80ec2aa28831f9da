"""What of the verifier's helps has proved to be of use, over all streams.

How far an early exit is believed where it contradicts the draft, and what second choices
bring that were sent with drafts.
"""

from __future__ import annotations

# Exits that were right against a draft, and the draft's doubt where it was, before any: an
# exit speaks where the draft errs, and what is hard for the one is hard for the other.
_PRIOR = (0.5, 1.0)
_LEAST = 0.02  # of a probability
_FIRST = 2.0  # tokens that second choices brought, and should have, before any were sent
_FADE = 0.01  # of what is known of them, a verdict
_MEMORY = 0.995  # of what a verdict said, a verdict later: targets are replaced


class Trust:
    """Learns from the verdicts which of the two was right, over all streams.

    A draft that is right with probability ``p`` by its own account doubts itself at odds of
    ``(1 - p) / p``. An exit that says otherwise multiplies them by a factor ``m``. Of all
    contradictions, those where the exit was right are to those where the draft was, each
    weighed by its doubt, as ``m`` to 1.
    """

    def __init__(self) -> None:
        self._exits = self._drafts = 0.0  # beyond the prior

    @staticmethod
    def doubt(confidence: float | None) -> float:
        """Return at what odds a draft doubts itself; even ones where it says nothing."""
        sure = 0.5 if confidence is None else confidence
        sure = min(max(sure, _LEAST), 1 - _LEAST)
        return (1 - sure) / sure

    def odds(self, doubt: float) -> float:
        """Return the odds of an exit that contradicts a draft of such ``doubt``."""
        return doubt * (_PRIOR[0] + self._exits) / (_PRIOR[1] + self._drafts)

    def judged(self, doubt: float, exit_right: bool, draft_right: bool) -> None:
        """Note what a verdict said of a contradiction."""
        self._exits = _MEMORY * self._exits + exit_right
        self._drafts = _MEMORY * self._drafts + doubt * draft_right


class Seconds:
    """What second choices bring, of what was expected of them.

    Drafts may come too late, and a verifier's rows may be too dear for it to judge more.
    What was sent fades, so that they are tried again.
    """

    def __init__(self) -> None:
        self._expected = self._came = _FIRST

    @property
    def share(self) -> float:
        """Of the tokens that they should bring, what counts as brought, 0 to 1: a shortfall
        by half may be luck, and is none."""
        return min(1.0, 2.0 * self._came / self._expected)

    def sent(self, tokens: float) -> None:
        """Note what the leaves of a block should bring."""
        self._expected += tokens

    def judged(self, came: bool) -> None:
        """Note whether a verdict has a token that one of them brought."""
        self._came += came
        self._expected += _FADE * (_FIRST - self._expected)
        self._came += _FADE * (_FIRST - self._came)
