"""Drafts that the user was shown before they were judged (``offline="draft"``)."""

from __future__ import annotations

from typing import Sequence

from draftwire.runtime.edge.actions import Action, Emit, Revise, Token
from draftwire.runtime.edge.in_flight import common

__all__ = ["Guesses"]


class Guesses:
    """The unverified tokens on the user's screen.

    Attributes:
        ids: They stand behind the committed text.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []

    def show(self, ids: Sequence[int]) -> list[Action]:
        """Show more of them."""
        self.ids += ids
        tokens = tuple(Token(i, "unverified") for i in ids)
        return [Emit(tokens)] if tokens else []

    def settle(
        self, tokens: Sequence[Token], before: int, drafts: Sequence[int]
    ) -> list[Action]:
        """Tell the user of new text.

        Args:
            tokens: They are final now.
            before: Length of the text before them.
            drafts: What the session believes will follow them.
        """
        ids = [token.id for token in tokens]
        same = common(self.ids, ids)
        rest = self.ids[len(ids) :] if same == len(ids) else []
        actions: list[Action] = []
        if len(self.ids) > same + len(rest) or rest != list(drafts[: len(rest)]):
            actions.append(Revise(before + same))
            rest = []
        if tokens:
            actions.append(Emit(tuple(tokens), same))
        self.ids = rest
        return actions
