"""Hugging Face checkpoints: which shape they have, and their weights, checked; or a model
of transformers, which runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from draftwire.errors import ConfigError, ModelError
from draftwire.export.sources.architecture import Architecture, read_architecture
from draftwire.io import parse_json
from draftwire.packages import DraftPackage, TargetPackage
from draftwire.tensors import TensorFile
from draftwire.tokenizer import first_token

MAX_JSON = 64 << 20  # bytes; tokenizer.json is the largest one read
INDEX = "model.safetensors.index.json"
# Buffers that old versions of transformers saved beside the parameters.
_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config, tensors and tokenizer fit each other."""

    folder: Path  # where it lies
    architecture: Architecture  # its shape
    parameters: Mapping[str, TensorFile]  # for each parameter the file that holds it
    bos_id: int | None  # what a prompt starts with, or None
    eos_ids: tuple[int, ...]  # what ends a text

    @property
    def name(self) -> str:
        """The folder's name without ``.hf``."""
        return self.folder.name.removesuffix(".hf")

    @property
    def tokenizer(self) -> Path:
        """Its ``tokenizer.json``."""
        return self.folder / "tokenizer.json"

    def having(self, **changes: Any) -> Checkpoint:
        """Return the same model with these fields of its architecture."""
        return replace(self, architecture=replace(self.architecture, **changes))

    def cut(self, context: int) -> Checkpoint:
        """Return the same model with at most ``context`` positions."""
        return self.having(context=min(context, self.architecture.context))

    def __contains__(self, name: str) -> bool:
        return name in self.parameters

    def weight(self, name: str) -> NDArray[np.float32]:
        """Return a parameter as float32; a ModelError where it holds values that are not
        finite.
        """
        values = self.parameters[name].read(name)
        require_finite(
            f"{self.folder.name}: {name} holds values", np.isfinite(values).all()
        )
        return values


def require_finite(what: str, finite: Any) -> None:
    """Refuse (ModelError) weights or logits that are not finite."""
    if not finite:
        raise ModelError(
            f"{what} that are not finite",
            hint="the checkpoint is damaged, or its training diverged",
        )


def load_checkpoint(folder: str | Path, *, context: int | None = None) -> Checkpoint:
    """Read a Hugging Face directory of a family that is known here.

    A ConfigError where ``folder`` is none, or ``context`` does not fit; a ModelError where
    the checkpoint is damaged or not of a shape known here.
    """
    folder = Path(folder)
    config = read_config(folder)
    architecture = read_architecture(folder.name, config, context=context)
    require_tokenizer(folder)
    parameters = _check(folder, architecture, open_weights(folder))
    bos_id, eos_ids = special_ids(folder, config, architecture.vocab_size)
    return Checkpoint(folder, architecture, parameters, bos_id, eos_ids)


def require_tokenizer(folder: Path) -> None:
    """Refuse (ModelError) a model directory without ``tokenizer.json``."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder.name} has no tokenizer.json",
            hint="save it there: AutoTokenizer.from_pretrained(...)."
            "save_pretrained(DIR), with a fast tokenizer",
        )


def made_of(package: DraftPackage | TargetPackage) -> dict[str, Any]:
    """Return what a manifest says of how a package, or its base, was made."""
    made = (getattr(package, "base", None) or package).raw.get("made")
    return made if isinstance(made, dict) else {}


def config_of(package: DraftPackage | TargetPackage) -> dict[str, Any]:
    """Return the config that a package's model was made with; a ModelError where its
    manifest does not carry it.
    """
    config = made_of(package).get("config")
    if not isinstance(config, dict):
        raise ModelError(
            f"{package.path.name} says nothing of its shape",
            hint="give the Hugging Face directory that it was exported from",
        )
    return dict(config)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model directory's ``config.json``; a ConfigError where there is none, a
    ModelError where it is not JSON.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"there is no model directory at {folder}",
            hint="give a local Hugging Face directory; nothing is downloaded",
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} has no config.json, so it is no model directory",
            hint="give the folder that save_pretrained wrote",
        )
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model directory; a ModelError where it is too
    long, not JSON or no object.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelError(f"{where} is too long")
        found = parse_json(path.read_bytes())
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        again = "copy or download the file again"
        raise ModelError(f"{where} is not JSON", hint=again) from exc
    if not isinstance(found, dict):
        raise ModelError(f"{where} is no JSON object")
    return found


def open_weights(folder: Path) -> dict[str, TensorFile]:
    """Return the file of each tensor, from one file or from shards; a ModelError where
    there are no safetensors weights, or a shard is missing.
    """
    if (folder / "model.safetensors").is_file():
        file = TensorFile(folder / "model.safetensors")
        return dict.fromkeys(file.names(), file)
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{folder.name}/{INDEX} has no weight_map")
        files = {}
        for shard in sorted(set(map(str, places.values()))):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise ModelError(f"{folder.name}/{INDEX} names a shard {shard!r}")
            if not (folder / shard).is_file():
                raise ModelError(
                    f"{folder.name} lacks its shard {shard}",
                    hint="download the missing file",
                )
            files[shard] = TensorFile(folder / shard)
        for name, shard in places.items():
            if name not in files[shard].names():
                raise ModelError(f"{folder.name}/{shard} does not hold {name}")
        return {name: files[shard] for name, shard in places.items()}
    pickles = sorted(p.name for s in ("bin", "pt", "pth") for p in folder.glob(f"*.{s}"))
    what = "has no model.safetensors"
    if pickles:
        what = f"has its weights as a pickle ({pickles[0]}), which can run code and is "
        what += "never opened"
    raise ModelError(
        f"{folder.name} {what}",
        hint="save it again with save_pretrained(DIR, safe_serialization=True)",
    )


def _check(
    folder: Path, architecture: Architecture, found: Mapping[str, TensorFile]
) -> dict[str, TensorFile]:
    needed, optional = architecture.parameters()
    known = {**needed, **optional}
    for name, shape in known.items():
        if name not in found:
            if name in needed:
                raise ModelError(f"{folder.name} lacks the weight {name}")
            continue
        file = found[name]
        if file.shape(name) != shape:
            raise ModelError(
                f"{folder.name}: {name} has shape {file.shape(name)}, "
                f"config.json asks for {shape}"
            )
        if file.dtype(name) not in ("F16", "BF16", "F32", "F64"):
            raise ModelError(
                f"{folder.name}: {name} is stored as {file.dtype(name)}, no float",
                hint="export the checkpoint it was quantised from",
            )
    seen: dict[str, bool] = {}
    for name in optional:  # a bias that some layers have and others lack
        kind = ".".join(p for p in name.split(".") if not p.isdigit())
        if seen.setdefault(kind, name in found) != (name in found):
            raise ModelError(f"{folder.name} has {kind} in some layers only")
    for name in found:
        # A tied head may be stored a second time.
        again = architecture.tied and name == architecture.names.head + ".weight"
        unused = again or name.endswith(_BUFFERS)
        if name not in known and not unused:
            raise ModelError(
                f"{folder.name} holds {name}, which a {architecture.model_type} "
                "of this shape does not have",
                hint="it is a variant that this exporter does not know",
            )
    return {name: found[name] for name in known if name in found}


def special_ids(
    folder: Path, config: Mapping[str, Any], vocab_size: int
) -> tuple[int | None, tuple[int, ...]]:
    """Return what starts a prompt and what ends a text; a ModelError where one of them is
    outside of the vocabulary.
    """
    sources = [config]
    if (folder / "generation_config.json").is_file():
        sources.append(read_json(folder / "generation_config.json"))
    ends: list[Any] = []
    for value in (source.get("eos_token_id") for source in sources):
        ends.extend(value if isinstance(value, list) else [value])
    eos = [i for i in ends if i is not None]
    bos = first_token(folder)
    for i in (*eos, *([] if bos is None else [bos])):
        if type(i) is not int or not 0 <= i < vocab_size:
            raise ModelError(
                f"{folder.name}: special token {i!r} is outside of the vocabulary"
            )
    return bos, tuple(dict.fromkeys(eos))


def load_model(folder: Path) -> Any:
    """Return a directory's causal language model as transformers runs it in float32,
    nothing in it trained.

    Only ``config.json`` and safetensors are read. A ConfigError where transformers or torch
    is not installed, a ModelError where it cannot be loaded.
    """
    try:
        import torch
        import transformers
    except ImportError as exc:
        raise ConfigError(
            f"this needs {exc.name}, which is not installed",
            hint="pip install 'draftwire[export]', on a workstation",
        ) from exc
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (KeyError, OSError, RuntimeError, ValueError) as exc:
        raise ModelError(
            f"transformers {transformers.__version__} cannot load {folder.name}: "
            f"{first_line(exc)}"
        ) from exc
    return model.eval().requires_grad_(False)


def first_line(exc: BaseException) -> str:
    """Return what a foreign error says, in one line."""
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
