"""Early exits of a transformers target: hooks between its layers.

They lie beside the checkpoint (or adapter) as ``exits.safetensors``, whose header says
after which layers they sit and from which probability on they speak.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np

from draftwire.errors import PackageError
from draftwire.packages import Exit
from draftwire.packages.exits import exits_of_header, torch_places
from draftwire.tensors import TensorFile


class HFExits:
    """The exits of one model, which is on its device with its adapter merged.

    Raises:
        PackageError: The file is damaged, or another model's.
        ModelError: No exits can be put into this model.
    """

    exits: tuple[Exit, ...]

    def __init__(self, model: Any, path: Path) -> None:
        import torch

        self._layers, norm, self._head = torch_places(model)
        file = TensorFile(path)
        self.exits, _ = exits_of_header(path.name, file.metadata, layers=len(self._layers))
        self._heads = []
        for k in range(len(self.exits)):
            own = copy.deepcopy(norm)
            width = self._head.weight.shape[1]
            for name, weight in own.named_parameters():
                found = self._tensor(file, f"exit.{k}.norm.{name}")
                if found.shape != tuple(weight.shape):
                    raise self._unfit(path)
                weight.data = torch.from_numpy(found).to(weight)
            down = self._tensor(file, f"exit.{k}.down.weight")
            up = self._tensor(file, f"exit.{k}.up.weight")
            if down.ndim != 2 or up.shape != down.shape[::-1] or down.shape[1] != width:
                raise self._unfit(path)
            pair = [torch.from_numpy(x).to(self._head.weight) for x in (down, up)]
            self._heads.append((own, *pair))

    def _tensor(self, file: TensorFile, name: str) -> np.ndarray[Any, Any]:
        if name not in file.names():
            raise self._unfit(file.path)
        return file.read(name)

    @staticmethod
    def _unfit(path: Path) -> PackageError:
        return PackageError(
            f"{path} does not belong to this model",
            hint="make the exits again: draftwire export exits",
        )

    @contextmanager
    def told(
        self, keep: int, on_exit: Callable[[int, np.ndarray[Any, Any]], None]
    ) -> Iterator[None]:
        """While the context lasts, tell what the exits say of the last ``keep`` columns.

        ``on_exit`` is called between two layers with the number of the exit and its logits
        ``(rows, keep, vocab)``; what it raises ends the forward.
        """
        hooks = []
        try:
            for k, exit in enumerate(self.exits):
                layer = self._layers[exit.layer - 1]
                hooks.append(layer.register_forward_hook(self._hook(k, keep, on_exit)))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(
        self, k: int, keep: int, on_exit: Callable[[int, np.ndarray[Any, Any]], None]
    ) -> Callable[[Any, Any, Any], None]:
        import torch.nn.functional as F

        norm, down, up = self._heads[k]

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            x = norm(hidden[:, -keep:])
            x = x + F.linear(F.silu(F.linear(x, down)), up)
            on_exit(k, self._head(x).float().cpu().numpy())

        return hook
