"""The session's power meter, and the account of each stream's joules.

What the device does at a moment is the account's phase: ``prefill`` (the draft reads the
prompt), ``draft``, ``transmit``, ``verify-wait`` (a block is out, nothing else to do),
``wait`` (for a link or an answer of another kind) and ``idle``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Union, cast

from draftwire.errors import BoardError, ConfigError

if TYPE_CHECKING:
    from draftwire.energy.account.account import Account, ModelSource
    from draftwire.energy.account.meter import Meter


EnergyChoice = Union[str, "Meter", "ModelSource"]
OFF = "energy accounting was switched off"


class PowerMeter:
    """The power source that a session was asked for; one meter for all streams.

    ``choice`` is ``"auto"`` (the best source there is), ``"off"``, a source by name (see
    ``draftwire energy sources``), ``"model:draft=6,wait=3"`` (watts by phase from the
    user), a meter, or a model of watts. Without one, ``why_null`` says why.

    Raises:
        ConfigError: The choice is not understood.
        SensorError: A source that was named cannot be read.
    """

    def __init__(self, choice: EnergyChoice = "auto") -> None:
        self._meter: Meter | None = None
        self._model: ModelSource | None = None
        self._own = False
        self.why_null = ""
        if not isinstance(choice, str):
            if hasattr(choice, "watts"):
                self._model = cast("ModelSource", choice)
            else:
                self._meter = choice
        elif choice == "off":
            self.why_null = OFF
        elif choice.startswith("model:"):
            self._model = _parse_model(choice)
        else:
            self._open(choice)

    def _open(self, choice: str) -> None:
        from draftwire.boards.profiles import find_profile, load_profiles
        from draftwire.energy.rails import RailTable
        from draftwire.energy.sources.choose import open_meter

        profiles = load_profiles()
        tables = [RailTable.from_dict(p.name, p.rails) for p in profiles.values()]
        try:
            found = find_profile(profiles=profiles)
            board = None if found.profile.generic else found.profile.name
            self._meter = open_meter(tables, board=board, name=choice)
            self._meter.start()
            self._own = True
        except BoardError as exc:
            if choice != "auto":
                raise
            self.why_null = f"{exc}; see `draftwire energy sources`"

    @property
    def measures(self) -> bool:
        return self._meter is not None or self._model is not None

    def account(self) -> StreamAccount:
        """Return the account of a new stream, started."""
        from draftwire.energy.account.account import Account

        return StreamAccount(
            Account(self._meter, model=self._model, why=self.why_null or OFF)
        )

    def close(self) -> None:
        """Stop the meter, if it is this object's own."""
        if self._own and self._meter is not None:
            self._meter.close()


class StreamAccount:
    """Follows what the device does during one stream; starts ``account``."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._reading = True
        self._now = "prefill"
        account.start(self._now)

    @property
    def measures(self) -> bool:
        """True when there is a meter or a model of watts."""
        return self.account.meter is not None or self.account.model is not None

    def close(self) -> None:
        self.account.close_now()

    def sending(self) -> None:
        self._phase("transmit")

    def settle(self, *, drafting: bool, waiting: bool) -> None:
        """Note what the device does now: drafting, or waiting for the verifier."""
        if drafting:
            self._phase("prefill" if self._reading else "draft")
        else:
            self._phase("verify-wait" if waiting else "wait")

    def proposal(self) -> None:
        """Note that a token was drafted: the prompt is read."""
        if self._reading:
            self._reading = False
            self._phase("draft")

    def link_lost(self) -> None:
        self._phase("wait")

    def _phase(self, name: str) -> None:
        if name != self._now:
            self._now = name
            self.account.phase(name)


def _parse_model(choice: str) -> ModelSource:
    from draftwire.energy.account.account import ModelSource

    watts = {}
    for part in choice[len("model:") :].split(","):
        phase, equals, number = part.partition("=")
        try:
            watts[phase.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals or not phase.strip():
            raise ConfigError(
                f"{choice!r} is not a model of watts",
                hint="for example model:prefill=9,draft=6,transmit=4,verify-wait=3,wait=3",
            )
    return ModelSource("flags", watts, origin="given by the user")
