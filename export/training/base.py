"""The base of a family as transformers runs it, and models with some of its layers."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from draftwire.errors import ConfigError, ModelError
from draftwire.export.sources.architecture import Architecture, read_architecture
from draftwire.export.sources.checkpoint import (
    config_of,
    load_checkpoint,
    load_model,
    require_finite,
)
from draftwire.export.sources.tokens import copy_tokenizer
from draftwire.export.sources.weights import checkpoint_tensors
from draftwire.packages import TargetPackage, load_draft, load_target
from draftwire.packages.exits import torch_stack
from draftwire.template import template_files
from draftwire.tensors import target_weights

# What says how prompts are made belongs to the model that reads them.
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Base:
    """A base that can be trained on or distilled."""

    model: Any  # of transformers, all of it frozen
    architecture: Architecture  # its shape
    tokenizer: Path  # its ``tokenizer.json``
    name: str  # for manifests and reports
    bos_id: int | None  # what a prompt starts with, or None
    eos_ids: tuple[int, ...]  # what ends a text
    # the target package that it comes from, or None for a checkpoint
    package: TargetPackage | None = None


def is_package(path: Path) -> bool:
    """Tell whether ``path`` is a target package rather than a checkpoint."""
    return (path / "target.json").is_file()


def read_base(path: str | Path) -> Base:
    """Read a base model in float32: a Hugging Face directory, or a target package (merged).

    A ConfigError where there is nothing of the kind, or its chat template, which what is
    made of it will carry, is none; a ModelError where it is damaged or of
    a shape not known here.
    """
    path = Path(path)
    if is_package(path):
        package = load_target(path)
        whole = package.base or package
        template_files(whole.path)
        shape = read_architecture(path.name, config_of(package), context=package.context)
        model, tokenizer = model_of(package), whole.path / "tokenizer.json"
        known = package.name, package.bos_id, tuple(package.eos_ids)
        return Base(model, shape, tokenizer, *known, package)
    if path.suffix in (".target", ".draft") and not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} is no target package",
            hint="give a Hugging Face directory or a NAME.target",
        )
    found = load_checkpoint(path)
    template_files(path)
    model = load_model(path)
    for name, weight in model.named_parameters():
        require_finite(f"{path.name}: {name} holds values", torch.isfinite(weight).all())
    known = found.name, found.bos_id, found.eos_ids
    return Base(model, found.architecture, found.tokenizer, *known)


def model_of(package: TargetPackage) -> Any:
    """Return a target package as a model of transformers in float32, adapter merged and
    nothing trained; a ModelError where the package is too old to say its shape, or its
    weights do not fit it.
    """
    config = config_of(package)
    rest = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
    known = transformers.AutoConfig.for_model(**rest)
    weights = target_weights(package)
    tensors = {name: torch.from_numpy(np.array(w)) for name, w in weights.items()}
    transformers.utils.logging.disable_progress_bar()
    with torch.device("meta"):
        kind = type(transformers.AutoModelForCausalLM.from_config(known))
    try:
        model, found = kind.from_pretrained(
            None, config=known, state_dict=tensors, output_loading_info=True
        )
    except RuntimeError as exc:
        raise ModelError(f"{package.path.name}: its weights do not fit its shape") from exc
    if found["missing_keys"] or found["unexpected_keys"]:
        raise ModelError(f"{package.path.name}: its weights do not fit its shape")
    return model.eval().requires_grad_(False)


def cut(model: Any, picks: Sequence[int]) -> Any:
    """Return a copy of a model in float32 with these of its layers, in this order."""
    config = copy.deepcopy(model.config)
    for name in ("layer_types", "no_rope_layers"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list):
            setattr(config, name, [kinds[i] for i in picks])
    if isinstance(getattr(config, "max_window_layers", None), int):
        config.max_window_layers = min(config.max_window_layers, len(picks))
    config.num_hidden_layers = len(picks)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    layers = torch_stack(model)[0]
    prefix = next(n for n, module in model.named_modules() if module is layers) + "."
    source, tensors = model.state_dict(), {}
    for name in made.state_dict():
        origin = name
        if name.startswith(prefix):
            number, _, rest = name[len(prefix) :].partition(".")
            origin = f"{prefix}{picks[int(number)]}.{rest}"
        tensors[name] = source[origin]
    made.load_state_dict(tensors)
    return made.eval().requires_grad_(False)


def start_from(draft: Any, source: Path, base: Base) -> Tensor:
    """Give the trained layers of a new draft the weights of an older one; return what that
    has behind its vocabulary, the embeddings of its mask tokens, ``(0 or more, hidden)``.

    A ConfigError where that is no draft, or none of this shape around this anchor.
    """
    if (source / "draft.json").is_file():
        found = checkpoint_tensors(load_draft(source))
        tensors = {name: torch.from_numpy(np.array(w)) for name, w in found.items()}
    elif (source / "config.json").is_file():
        tensors = dict(load_model(source).named_parameters())
    else:
        raise ConfigError(
            f"{source} is neither a draft package nor a Hugging Face directory",
            hint="give the draft that goes on with --start",
        )
    mine = dict(draft.named_parameters())
    for name, weight in mine.items():
        if name == base.architecture.embedding:
            continue
        other = tensors.get(name)
        fits = weight.ndim > 1 and not weight.requires_grad  # may be rounded, and is kept
        if other is not None and other.shape == weight.shape:
            # Norms are never rounded: those of the anchor tell whose draft it is.
            fits = fits or weight.requires_grad or torch.allclose(weight, other, atol=2e-3)
        if not fits or tensors.keys() - mine.keys():
            raise ConfigError(
                f"{source.name} is no draft of {base.name} with these layers",
                hint="give the --anchor-layers and --layers that it was made with",
            )
    with torch.no_grad():
        for name, weight in mine.items():
            if weight.requires_grad:
                weight.copy_(tensors[name])
    table = tensors[base.architecture.embedding].detach()
    return table[base.architecture.vocab_size :]


def save_model(model: Any, base: Base, folder: Path) -> None:
    """Write a model with some of its base's layers as a Hugging Face directory, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    transformers.utils.logging.disable_progress_bar()
    model.to("cpu", torch.float32).save_pretrained(folder)
    for name in _BESIDE:
        if (base.tokenizer.parent / name).is_file():
            shutil.copy(base.tokenizer.parent / name, folder / name)
    if base.package is not None:
        copy_tokenizer(base.tokenizer, folder / "tokenizer.json", base.bos_id)
