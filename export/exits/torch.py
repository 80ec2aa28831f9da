"""Exits for a checkpoint that is served by transformers: a file beside its weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from draftwire.errors import ConfigError, ModelError
from draftwire.exits import EXITS_FILE, EXITS_FORMAT, torch_places
from draftwire.tensors import write_tensors

__all__ = ["TorchModel", "write_exits_file"]

Ids = NDArray[np.int64]


class TorchModel:
    """A checkpoint of transformers, in float32.

    Args:
        folder: With ``config.json`` and safetensors weights.
        vocab_size: Token ids that its tokenizer knows.

    Raises:
        ConfigError: transformers is missing.
        ModelError: It does not load, or no exits can be put into it.
    """

    def __init__(self, folder: Path, *, vocab_size: int) -> None:
        try:
            import transformers
        except ImportError as exc:
            raise ConfigError(
                "exits of a checkpoint need transformers, which is not installed",
                hint="pip install 'draftwire[export]', on a workstation",
            ) from exc
        transformers.utils.logging.disable_progress_bar()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
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
                f"{str(exc).splitlines()[0][:200]}"
            ) from exc
        self._model = model.to(self._device).eval().requires_grad_(False)
        layers, self._norm, self._head = torch_places(self._model)
        config = model.config.get_text_config()
        self.layers, self.hidden = len(layers), int(self._head.weight.shape[1])
        self.vocab_size = min(int(config.vocab_size), vocab_size)
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self._bos_id = config.bos_token_id

    def states(self, ids: Ids, at: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Run texts of equal length; see ``StudiedModel``."""
        with torch.no_grad():
            found = self._model(
                input_ids=torch.from_numpy(ids).to(self._device),
                output_hidden_states=True,
                use_cache=False,
            )
        hidden = [found.hidden_states[layer].flatten(0, 1) for layer in at]
        return hidden, found.logits.flatten(0, 1)[:, : self.vocab_size]

    def new_norm(self) -> nn.Module:
        """Return a copy of the last norm, to be trained."""
        norm: nn.Module = copy.deepcopy(self._norm)
        return norm.requires_grad_(True)

    def head(self, x: Tensor) -> Tensor:
        """Return the frozen head's logits for ``x``."""
        logits: Tensor = self._head(x)
        return logits[:, : self.vocab_size]

    def sample(self, rows: int, length: int, seed: int) -> Ids:
        """Draw texts from the target itself at temperature 1."""
        rng = torch.Generator().manual_seed(seed)
        first = torch.randint(self.vocab_size, (rows, 1), generator=rng)
        if isinstance(self._bos_id, int):
            first[:] = self._bos_id
        ids, cache = first, None
        with torch.no_grad():
            while ids.shape[1] < length:
                found = self._model(
                    input_ids=ids[:, -1:].to(self._device),
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = found.past_key_values
                logits = found.logits[:, -1, : self.vocab_size].float().cpu()
                chosen = torch.multinomial(logits.softmax(-1), 1, generator=rng)
                ids = torch.cat([ids, chosen], 1)
        result: Ids = ids.numpy()
        return result


def write_exits_file(
    folder: Path,
    entries: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, NDArray[np.float16]],
    rank: int,
    made: Mapping[str, Any],
    *,
    replace: bool,
    say: Callable[[str], None],
) -> Path:
    """Write a checkpoint's exits beside its weights.

    Args:
        folder: The checkpoint.
        entries: One for each exit, as a manifest has them.
        tensors: Their weights.
        rank: Of their residuals.
        made: How.
        replace: Also when there are some already.
        say: Gets a line.

    Returns:
        The checkpoint's folder.

    Raises:
        ConfigError: There are some already, or the folder cannot be written.
    """
    place = folder / EXITS_FILE
    if place.exists() and not replace:
        raise ConfigError(f"{folder.name} has exits already", hint="add --replace")
    header = {
        "format": EXITS_FORMAT,
        "exits": json.dumps(list(entries)),
        "rank": str(rank),
        "made": json.dumps(dict(made)),
    }
    try:
        write_tensors(place, tensors, metadata=header)
    except OSError as exc:
        raise ConfigError(f"{place} cannot be written: {exc}") from exc
    say(f"the exits lie in {place}: serve the folder with `draftwire verifier serve`")
    return folder
