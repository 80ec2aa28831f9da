"""When the board had better not draft.

Rest: where the draft beside the target is quick and the board slow, what the board sends is
never needed: nothing is gained by it but heat. Then it rests, and tries again now and then,
since links and boards change.

Hush: in a race, a draft step that the next verdict would probably void, or that is hardly
ever of use, is not begun. A verdict voids what contradicts the tokens that it speaks of:
over a long way that is one, for the drafts come after it. A step at work is not cut short;
where the drafts already reach so far that the next is hardly of use, and news are due
before a step would end, the board waits for them: then it begins at once where the news
say, instead of half a step later.
"""

from __future__ import annotations

_WINDOW = 64  # drafts of the verifier's need that are looked at together
_SHARE = 0.1  # of them that the board must have saved
_FIRST, _LONGEST = 128, 4096  # tokens of text: the first rest, and the longest


class Rest:
    """What a stream knows of it; ``tokens`` of its text came while the board rested."""

    def __init__(self) -> None:
        self.tokens = 0
        self._until = 0
        self._next = _FIRST
        self._seen: tuple[int, int] | None = None  # where the present window began

    def passed(self, length: int, tokens: int) -> None:
        """Text has come; it is ``length`` tokens long now."""
        if length - tokens < self._until:
            self.tokens += tokens

    def told(self, wanted: int, spared: int, length: int) -> None:
        """Take in what the verifier says: drafts it had need of so far, and the board's."""
        if length < self._until:
            self._seen = None  # what it said of this time is no news
            return
        before = self._seen = self._seen or (wanted, spared)
        needed, saved = wanted - before[0], spared - before[1]
        if needed < _WINDOW:
            return
        self._seen = wanted, spared
        if saved >= _SHARE * needed:
            self._next = _FIRST
            return
        self._until, self._next = length + self._next, min(2 * self._next, _LONGEST)

    def lasts(self, length: int) -> bool:
        """Return whether the board has nothing to draft behind so much text."""
        return length < self._until


_WORTH = 0.2  # chance of being of use, below which a step is not begun
_NEVER = 0.01  # likewise, long before the next news
_LATE = 0.5  # of a forward: news that are so late are not waited for
_NEW = 0.2  # weight of the newest verdict
_PRIOR = (4.0, 3.0)  # drafts judged and right, before any were


class Hush:
    """What a stream knows of when news come, and of how its drafts fare."""

    def __init__(self) -> None:
        self._judged, self._right = _PRIOR
        self._news_s = self._forward_s = 0.0
        self._reach = 1.0  # tokens that a verdict speaks of: the drafts it had, and one
        # What a verdict took of late: by whether drafts were there when the one before it
        # came. A patient verifier waits for them, so that news come later where none are.
        self._took_s: dict[bool, float] = {}
        self._ready = True

    def verdict(
        self,
        now_s: float,
        took_s: float,
        right: int,
        stands: bool,
        ready: bool,
        drafts: int,
    ) -> None:
        """Note a verdict on so many drafts, what it took, and how many were right.

        ``stands``: the branch does, and others of it are out, where ``ready``.
        """
        fresh, ready = right + (not stands), stands and ready
        fade = 0.98**fresh
        self._judged = fade * self._judged + fresh
        self._right = fade * self._right + right
        self._took_s[self._ready], self._ready = took_s, ready
        self._reach += _NEW * (drafts + 1 - self._reach)
        self._forward_s = self._took_s.get(ready, took_s)
        self._news_s = now_s + self._forward_s

    def until_s(self, now_s: float, step_s: float, ahead: int) -> float:
        """Return until when no step (of ``step_s``) is worth beginning ``ahead`` drafts
        beyond the text; ``now_s``: one is."""
        end_s = self._news_s + _LATE * self._forward_s
        right = min(self._right / max(self._judged, 1e-9), 1.0)
        soon = now_s + step_s > self._news_s + 1e-9
        void = right**ahead < _NEVER or (soon and right ** min(ahead, self._reach) < _WORTH)
        return end_s if void and now_s < end_s else now_s
