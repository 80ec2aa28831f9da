"""From a path to a backend: which engine a target needs, and its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Loads targets that run side by side in one process."""

    # "onnx" for target packages, "hf" for checkpoint and adapter folders, "auto" to look
    # which one a path is; the path ``kit`` is the conformance kit's own target
    backend: str = "auto"
    slots: int = 16  # sessions of each target at the same time
    context: int | None = None  # most tokens of a session; None takes each target's own
    threads: int | None = None  # of an engine; None takes its default
    device: str | None = None  # torch's, for ``hf``
    dtype: str | None = None  # torch's, for ``hf``
    numerics: str | None = None  # "exact", "close"; None is what suits the target's dtype
    # "beside" one base, whose tensors all its versions share, "merged": a whole model for
    # each, or "auto": beside but for packages so small that it does not pay
    adapters: str = "auto"
    _store: WeightStore = field(default_factory=WeightStore)

    def __post_init__(self) -> None:
        for what, value, known in (
            ("backend", self.backend, BACKENDS),
            ("way to run adapters", self.adapters, ADAPTERS),
        ):
            if value not in known:
                hint = f"one of {', '.join(known)}"
                raise ConfigError(f"unknown {what} {value!r}", hint=hint)
        self._bases: HFBases | None = None

    def __call__(self, path: Path) -> TargetBackend:
        """Load the target at ``path``.

        Raises:
            ConfigError: It is neither a package nor a checkpoint, or an option or a
                library does not fit.
            ModelError: It is damaged or unfit to verify drafts.
        """
        kind = self.backend if self.backend != "auto" else _kind(path)
        shared: dict[str, Any] = {"slots": self.slots, "context": self.context}
        if kind == "kit":
            from draftwire.verifier.kit.target import KitTarget

            return KitTarget(**shared)
        shared.update(threads=self.threads, numerics=self.numerics)
        if kind == "onnx":
            package = load_target(path)
            file = (package.base or package).files.get("weights.safetensors")
            small = file is not None and file.bytes < _BESIDE_BYTES
            beside = self.adapters == "beside" or self.adapters == "auto" and not small
            return OnnxTarget(package, store=self._store, beside=beside, **shared)
        from draftwire.verifier.backends.hf_target import HFBases, HFTarget

        if self._bases is None and self.adapters != "merged":
            self._bases = HFBases()
        return HFTarget(
            path, device=self.device, dtype=self.dtype, bases=self._bases, **shared
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
