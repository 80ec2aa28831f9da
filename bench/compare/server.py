"""A verifier whose target keeps a profile's time: a process of its own, for ``bench``.

``python -m draftwire.bench.compare.server`` reads one line of JSON from stdin that says
what to serve, answers with one line (its address, or why not), and serves until stdin
ends: it never outlives the program that wanted it. It listens on loopback, behind a
token.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Collection, Sequence

from draftwire.bench.child import Child, answer, be_child
from draftwire.bench.compare.carried import carrying
from draftwire.bench.compare.pace import paced, paced_draft
from draftwire.bench.sim.cloud import EXIT_LAYERS, ForwardCost, TextBackend, helping
from draftwire.bench.sim.facts import Profile, find
from draftwire.bench.sim.run import cloud_step_s
from draftwire.bench.sim.texts import PlayedDraft, Text, TextTarget
from draftwire.errors import TransportError
from draftwire.packages import load_draft, load_target
from draftwire.runtime.engines.draft_model import DraftModel
from draftwire.verifier.backends.loading import Loader
from draftwire.verifier.beside import Drafts, Model
from draftwire.verifier.serving.accounts import parse_account
from draftwire.verifier.serving.limits import Limits
from draftwire.verifier.serving.process import Options, serve

if TYPE_CHECKING:
    from draftwire.verifier.backends.base import TargetBackend

_START_S = 90.0
_MAX_BLOCK = 255


@dataclass
class PacedLoader(Loader):
    """Loads targets as the verifier does, and paces or plays them."""

    profile: Profile | None = None  # whose time they keep; None leaves them as they are
    # what they play instead of running a model; None runs it
    targets: Sequence[TextTarget] | None = None

    def __call__(self, path: Path) -> TargetBackend:
        """Load the target at ``path``; raises as :class:`Loader`."""
        backend: TargetBackend
        profile, layers = self.profile, EXIT_LAYERS
        if self.targets is not None:
            exits = () if profile is None else profile.exits
            package = load_target(path)
            backend = TextBackend.of(package, exits, self.targets, self.slots)
        else:
            backend = super().__call__(path)
            layers = load_target(path).shape.layers if backend.exits else 1
        if profile is None:
            return backend
        return paced(backend, ForwardCost.of(profile), layers)


def _work(wanted: dict[str, Any]) -> None:
    """Serve until stdin ends."""
    # The line was short of nothing: whatever follows on stdin is its end.
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    texts, helps = wanted["texts"], wanted["helps"]
    loader = PacedLoader(
        threads=wanted["threads"],
        profile=None if wanted["profile"] is None else find(wanted["profile"]),
        targets=None if texts is None else played(texts),
    )
    options = Options(
        targets=(Path(wanted["target"]),),
        loader=loader,
        port=0,
        accounts=(parse_account(wanted["token"], "the bench"),),
        limits=helping(helps, Limits(block=_MAX_BLOCK)),
        impatient="patience" not in helps,
        draft=_draft(wanted["draft"], loader) if "draft" in helps else None,
        drain_s=0.5,
    )
    with carrying(wanted["carried"]):
        serve(options, lambda service: answer({"url": service.url}))


def played(texts: Sequence[Any]) -> list[TextTarget]:
    """Return the targets of texts, or of what JSON made of them."""
    found = [one if isinstance(one, Text) else Text.of(one) for one in texts]
    return [TextTarget(text, number) for number, text in enumerate(found)]


def _draft(path: str, loader: PacedLoader) -> Callable[[Any], Drafts]:
    """Return what makes drafts beside the target, in the profile's time."""
    package = load_draft(path)

    def make() -> Model:
        model: Model
        if loader.targets is None:
            model = DraftModel.load(package, threads=loader.threads)
        else:
            model = PlayedDraft(loader.targets)
        if loader.profile is not None:
            paced_draft(model, ForwardCost(cloud_step_s(loader.profile)))
        return model

    return lambda backend: Drafts(make, package.vocab_size, package.context)


def _end_with_stdin() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class PacedVerifier(Child):
    """A running one; a context manager.

    Args:
        target: Target package.
        profile: Name or file of a timing profile, or None for the model's own time.
        texts: What to play instead of running the model, or None.
        carried: Sizes of :func:`~draftwire.bench.compare.carried.carried_scheme`.
        threads: Of the engine.
        helps: What it does beside judging drafts, see
            :class:`~draftwire.bench.sim.schemes.Scheme`.
        draft: Draft package that drafts beside the target, where that is one of them.

    Attributes:
        port: On loopback.
        token: That devices need.

    Raises:
        TransportError: It did not start; the message is its own.
    """

    def __init__(
        self,
        target: Path,
        *,
        profile: str | None = None,
        texts: Sequence[Text] | None = None,
        carried: Sequence[int] = (),
        threads: int = 1,
        helps: Collection[str] = (),
        draft: Path | None = None,
    ) -> None:
        self.token = secrets.token_urlsafe(24)
        super().__init__("draftwire.bench.compare.server", "the verifier", TransportError)
        wanted = {
            "target": str(target),
            "profile": profile,
            "texts": None if texts is None else [asdict(one) for one in texts],
            "carried": list(carried),
            "threads": threads,
            "helps": sorted(helps),
            "draft": None if draft is None else str(draft),
            "token": self.token,
        }
        url = self.begin(wanted, _START_S)["url"]
        self.port = int(str(url).rpartition(":")[2].rstrip("/"))


if __name__ == "__main__":
    sys.exit(be_child(_work))
