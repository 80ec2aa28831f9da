"""From a path to a backend: which engine a target needs, and its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from draftwire.errors import ConfigError
from draftwire.packages import load_target
from draftwire.verifier.backends.onnx_target import OnnxTarget, WeightStore

if TYPE_CHECKING:
    from draftwire.verifier.backends.base import TargetBackend
    from draftwire.verifier.backends.hf_target import HFBases

BACKENDS = ("auto", "onnx", "hf")
ADAPTERS = ("auto", "beside", "merged")
# Below this many bytes of a package's weights a model for each version takes less than
# two narrow products more in every layer cost (python -m studies.versions --backend onnx).
_BESIDE_BYTES = 32 << 20


@dataclass
class Loader:
    """Loads targets that run side by side in one process.

    Attributes:
        backend: ``"onnx"`` for target packages, ``"hf"`` for checkpoint and adapter
            folders, ``"auto"`` to look which one a path is; the path ``kit`` is the
            conformance kit's own target.
        slots: Sessions of each target at the same time.
        context: Most tokens of a session; None takes each target's own.
        threads: Of an engine; None takes its default.
        device: Torch device, for ``hf``.
        dtype: Torch dtype, for ``hf``.
        numerics: ``"exact"``, ``"close"``, or None for what suits the target's dtype.
        adapters: ``"beside"`` one base, whose tensors all its versions share,
            ``"merged"``: a whole model for each, or ``"auto"``: beside but for packages
            so small that it does not pay.
    """

    backend: str = "auto"
    slots: int = 16
    context: int | None = None
    threads: int | None = None
    device: str | None = None
    dtype: str | None = None
    numerics: str | None = None
    adapters: str = "auto"
    _store: WeightStore = field(default_factory=WeightStore)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(
                f"unknown backend {self.backend!r}",
                hint=f"one of {', '.join(BACKENDS)}",
            )
        if self.adapters not in ADAPTERS:
            raise ConfigError(
                f"unknown way to run adapters {self.adapters!r}",
                hint=f"one of {', '.join(ADAPTERS)}",
            )
        self._bases: HFBases | None = None

    def __call__(self, path: Path) -> TargetBackend:
        """Load the target at ``path``.

        Raises:
            ConfigError: It is neither a package nor a checkpoint, or an option or a
                library does not fit.
            ModelError: It is damaged or unfit to verify drafts.
        """
        kind = self.backend if self.backend != "auto" else _kind(path)
        if kind == "kit":
            from draftwire.verifier.kit.target import KitTarget

            return KitTarget(slots=self.slots, context=self.context)
        if kind == "onnx":
            package = load_target(path)
            file = (package.base or package).files.get("weights.safetensors")
            small = file is not None and file.bytes < _BESIDE_BYTES
            return OnnxTarget(
                package,
                slots=self.slots,
                context=self.context,
                threads=self.threads,
                store=self._store,
                numerics=self.numerics,
                beside=self.adapters == "beside" or self.adapters == "auto" and not small,
            )
        from draftwire.verifier.backends.hf_target import HFBases, HFTarget

        if self._bases is None and self.adapters != "merged":
            self._bases = HFBases()
        return HFTarget(
            path,
            slots=self.slots,
            context=self.context,
            threads=self.threads,
            device=self.device,
            dtype=self.dtype,
            numerics=self.numerics,
            bases=self._bases,
        )


def _kind(path: Path) -> str:
    if str(path) == "kit" and not path.exists():
        return "kit"
    if not path.is_dir():
        raise ConfigError(f"there is no target at {path}", hint="check the path")
    if (path / "target.json").is_file():
        return "onnx"
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return "hf"
    raise ConfigError(
        f"{path} is neither a target package (target.json) nor a checkpoint (config.json)",
        hint="`draftwire export package --role target` makes a package of a checkpoint",
    )
