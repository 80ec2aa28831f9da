"""An evolved target by LoRA: the way behind ``export evolve``."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from draftwire.errors import ConfigError
from draftwire.export.adapter import PEFT_CONFIG, package_adapter
from draftwire.export.pieces import check_beside, check_free, check_place
from draftwire.export.settings import EvolveSettings
from draftwire.export.training import begin
from draftwire.export.training.base import Base, is_package, read_base
from draftwire.export.training.loop import train
from draftwire.export.training.measure import text_loss, validation_loss
from draftwire.io import parse_json
from draftwire.packages.exits import torch_stack

Say = Callable[[str], None]


def add_lora(model: Any, *, rank: int, anchor_layers: int, seed: int) -> Any:
    """Give every matrix above the anchor an adapter of scale 1; return PEFT's model around
    it.
    """
    from peft import LoraConfig, get_peft_model

    layers = torch_stack(model)[0]
    matrices = {
        name.rpartition(".")[2]
        for name, module in layers[0].named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(matrices),
        layers_to_transform=list(range(anchor_layers, len(layers))),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():  # what peft asks of transformers has a new name
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def evolve_target(
    target: str | Path,
    out: str | Path,
    data: Sequence[str | Path],
    *,
    version: str = "v2",
    settings: EvolveSettings | None = None,
    work: str | Path | None = None,
    name: str | None = None,
    replace: bool = False,
    say: Say = print,
) -> Path:
    """Train low-rank adapters on text, and package them as an evolved target.

    Of a target package comes an evolved package beside it. Of a Hugging Face directory
    comes an adapter directory in PEFT's format, which the verifier serves as it is and
    ``export package`` packages.

    Args:
        target: A whole target package, or a Hugging Face directory.
        out: ``NAME.target`` beside the package, or a new directory; it is returned.
        data: Text files.
        version: What the verifier calls the evolved target.
        settings: How; None takes the defaults.
        work: Folder for checkpoint and report; by default ``NAME.work`` beside ``out``.
        name: The package's name; by default the folder's.
        replace: Put it in the place of an older package.
        say: Gets lines of progress.

    Raises:
        ConfigError: An argument is wrong, a text is too small, or ``out`` exists.
        ModelError: The target is damaged or of an unknown shape.
    """
    target, out = Path(target), Path(out)
    settings = settings or EvolveSettings()
    if is_package(target):
        check_place(out, "target", replace=replace)
        check_beside(out, target)
    elif out.suffix in (".target", ".draft"):
        raise ConfigError(
            f"a Hugging Face directory evolves into an adapter directory, not {out.name}",
            hint=f"--out {out.stem}, then `draftwire export package`; or export the "
            "directory with --role target first",
        )
    else:
        check_free(out, replace=False)
    device = begin.choose_device(settings.device)
    base = read_base(target)
    anchor = _anchor(base, settings)
    work = begin.work_folder(out, work)
    asked, text = begin.begin(base, anchor, settings, work, data, say)
    before = {f: _loss_on(base.model, s, settings) for f, s in text.held.items()}
    frozen = 0 if settings.free_anchor else anchor
    model = add_lora(
        base.model, rank=settings.rank, anchor_layers=frozen, seed=settings.seed * 1000
    )
    context = base.architecture.context
    plan = begin.plan_of(settings, context, longer=1, warmup=(10, 4), lr=settings.lr)
    log = train(model.to(device), text.stream, plan, text_loss, work, say=say)
    model.cpu()
    held_out = {
        f: {"loss": _loss_on(model, s, settings), "base_loss": before[f]}
        for f, s in text.held.items()
    }
    for file, row in held_out.items():
        say(
            f"{file}: {row['base_loss']:.3f} -> {row['loss']:.3f} nats per token "
            "(held-out text)"
        )
    begin.write_report(
        work, kind="evolve", settings=asked, log=log, held_out=held_out, say=say
    )
    # The adapter names its base.
    adapter = work / "adapter"
    model.save_pretrained(adapter, save_embedding_layers=False)
    config = parse_json((adapter / PEFT_CONFIG).read_bytes())
    config["base_model_name_or_path"] = str(target.absolute())
    (adapter / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if base.package is None:
        shutil.copytree(adapter, out)
        return out
    made = {
        "by": "draftwire export evolve",
        "data": list(text.held),
        "steps": len(log),
        "anchor": "trained" if settings.free_anchor else "frozen",
    }
    how: dict[str, Any] = {"version": version, "name": name, "replace": replace}
    found = package_adapter(adapter, target, out, made=made, **how)
    if frozen < anchor:
        say(
            "the anchor was trained too: drafts of this family go on with this target, "
            "as drafts of its tokenizer alone, and may be accepted less"
        )
    return found


def _anchor(base: Base, settings: EvolveSettings) -> int:
    if base.package is not None and base.package.base is not None:
        raise ConfigError(
            f"{base.package.path.name} is an evolved target itself",
            hint=f"evolve its base {base.package.base.path.name}",
        )
    layers = base.architecture.layers
    anchor = begin.anchor_of(base, settings.anchor_layers, otherwise=0)
    if anchor >= layers:
        raise ConfigError(
            f"an anchor of {anchor} layers leaves nothing to train of {layers}",
            hint=f"--anchor-layers 0 to {layers - 1}",
        )
    return anchor


def _loss_on(model: nn.Module, stream: np.ndarray, settings: EvolveSettings) -> float:
    length = min(settings.length, len(stream) - 1)
    return float(round(validation_loss(model, stream, length=length), 4))
