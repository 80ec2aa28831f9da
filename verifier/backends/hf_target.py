"""Target backend on Hugging Face transformers: any local causal language model.

The KV cache is ours: one preallocated ``(slots, heads, context + 1, head_dim)`` tensor
pair a layer, explicit positions and an explicit additive mask. So sessions of different
lengths and blocks of different sizes share one forward, and a rewind is a number.

Blocks are left-aligned in the batch and the head runs on the last columns alone, those
that hold all rows that are asked for. Padding writes to the scratch column behind the
context.

Nothing is fetched and no code from a checkpoint runs: local files, safetensors, classes
of transformers itself.
"""

from __future__ import annotations

import copy
import mmap
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from draftwire.errors import ConfigError, IncompatibleError, ModelError, PackageError
from draftwire.packages import Exit
from draftwire.packages.exits import EXITS_FILE, exits_of_header, torch_places
from draftwire.tensors import TensorFile
from draftwire.verifier.backends.base import (
    SHARED_BYTES,
    ExitListener,
    Form,
    Frame,
    SlotInput,
    SlotTarget,
    up,
)
from draftwire.verifier.backends.hf_adapter import (
    OfCheckpoint,
    base_of,
    merge_adapter,
    put_beside,
    share,
    token_ids,
)

_INSTALL = "pip install 'draftwire[verifier]'"
# What models raise whose attention wants a mask or a cache of its own form.
_UNFIT = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
_ATTENTION = {"attention", "full_attention", "sliding_attention", "chunked_attention"}
_TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1e-1}


def _imports() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the transformers backend needs {error.name}, which is not installed",
            hint=_INSTALL,
        ) from error
    return torch, transformers


class HFBases:
    """Models that are loaded once while targets in use build on them."""

    def __init__(self) -> None:
        self._models: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()

    def model(self, folder: Path, dtype: str, device: str) -> Any:
        """Return the model of a checkpoint folder, to be kept so that others find it."""
        files = [file.stat() for file in sorted(folder.glob("*.safetensors"))]
        stamps = tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in files)
        key = folder.resolve(), stamps, dtype, device
        found = self._models.get(key)
        if found is None:
            found = self._models[key] = _load(*_imports(), folder, dtype, device)
        return found


class HFExits:
    """The exits of one model, which is on its device with its adapter merged.

    They lie beside the checkpoint (or adapter) as ``exits.safetensors``, whose header says
    after which layers they sit and from which probability on they speak.

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


class HFTarget(OfCheckpoint, SlotTarget):
    """A causal language model of transformers with KV slots.

    Raises:
        ConfigError: torch or transformers is missing, an option does not fit, or exact
            is more than this engine can be.
        ModelError: The checkpoint does not load.
        PackageError: The header of a file cannot be a model's.
        IncompatibleError: Its cache cannot be rewound.
    """

    masked = True
    # Attention runs over the cache in place. It sums 512 columns at a time, and products
    # of a few rows go another way than those of many.
    forms = (Form(0, 8, 512), *SlotTarget.forms)

    def __init__(
        self,
        # folder with ``config.json``, ``*.safetensors`` and ``tokenizer.json``, or a LoRA
        # adapter in PEFT's format whose base is such a folder
        path: str | Path,
        *,
        slots: int = 8,  # sessions at the same time
        context: int | None = None,  # most tokens of one; None: as the model, at most 4096
        device: str | None = None,  # torch's; None takes CUDA when there is one
        # "float32", "float16", "bfloat16"; None takes float32 on a CPU, else the files' own
        dtype: str | None = None,
        threads: int | None = None,  # torch's; None leaves its choice
        # "exact", "close"; None is close in float32, exact below it: near ties are many
        numerics: str | None = None,
        # shares tensors with other targets of the base: an adapter then runs beside it.
        # None loads its own, and merges the adapter
        bases: HFBases | None = None,
    ) -> None:
        self._torch, transformers = _imports()
        torch = self._torch
        folder = Path(path)
        base = base_of(folder)
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if dtype is None:
            dtype = "float32" if self._device == "cpu" else "auto"
        if bases is None:
            self._base = self._model = _load(torch, transformers, base, dtype, self._device)
            if base != folder:
                merge_adapter(self._model, folder)
        else:
            self._base = bases.model(base, dtype, self._device)
            self._model = share(self._base)
            if base != folder:
                put_beside(self._model, folder)
        config = self._model.config.get_text_config()
        tokenizer = next(
            (f for f in (folder, base) if (f / "tokenizer.json").is_file()), base
        )
        words = self._describe("hf", folder.name, str(config.model_type), tokenizer)
        # Rows that pad the embedding to a round size are no tokens.
        known = min(int(config.vocab_size), words.vocab_size)
        super().__init__(slots, _context(config, context), known)
        self._window = getattr(config, "sliding_window", None)
        # Where layers have kinds, each looks its mask up by its own.
        self._kinds = _layer_kinds(config)
        self._stateful = bool(getattr(self._model, "_is_stateful", False))
        if self._kinds and "sliding_attention" not in self._kinds:
            self._window = None
        # A leaf sees a place that is not the one before it, which a convolution cannot.
        self.masked = "conv" not in self._kinds
        sources = (config, getattr(self._model, "generation_config", None))
        self.eos_ids = token_ids(*(getattr(s, "eos_token_id", None) for s in sources))
        self._used = [0] * slots  # columns of a slot that hold anything
        default = "close" if self._model.dtype == torch.float32 else "exact"
        # The last column takes what pads a block.
        step = self.forms[0].columns if (numerics or default) == "exact" else 1
        self._scratch = up(self.context + 1, step) - 1
        self._cache = _slot_cache(config, slots, self._scratch + 1)
        self._exits: HFExits | None = None
        self._probe(numerics, default)
        self.exits: tuple[Exit, ...] = ()
        if (folder / EXITS_FILE).is_file():
            self._exits = HFExits(self._model, folder / EXITS_FILE)
            self.exits = self._exits.exits

    def copy(self, source: int, slot: int, length: int) -> bool:
        """Copy rows; see :meth:`SlotTarget.copy`."""
        if length * self._cache.column_bytes() > SHARED_BYTES:
            return False
        with self._torch.inference_mode():
            if self._used[slot]:  # as in a forward
                self._cache.wipe(slot, self._used[slot])
            self._cache.copy(source, slot, length)
        self._used[slot] = length
        return True

    def run(self, frame: Frame, tell: ExitListener | None) -> list[np.ndarray[Any, Any]]:
        """Run one forward; see :class:`SlotTarget`."""
        torch, items = self._torch, frame.items
        positions = frame.places()
        columns = np.full(frame.ids.shape, self._scratch, np.int64)
        # of leaves: rows of the batch and of its tokens, columns behind the text, and own
        leaves = []
        for b, item in enumerate(items):
            end = item.start + len(item)
            columns[b, : len(item)] = range(item.start, end)
            for i, behind, chain in item.beside():
                leaves.append((b, i, item.start + behind, item.start + i, chain))

        def heard(k: int, rows: np.ndarray[Any, Any]) -> None:
            assert tell is not None
            tell(k, frame.by_column(rows[..., : self.vocab_size]))

        listening: Any = nullcontext()
        if tell is not None and self._exits is not None:
            listening = self._exits.told(frame.keep, heard)
        with torch.inference_mode(), listening:
            for item in items:
                if item.start == 0 and self._used[item.slot]:
                    # Another session was here, and masked columns must be finite.
                    self._cache.wipe(item.slot, self._used[item.slot])
                    self._used[item.slot] = 0
                end = item.start + len(item)
                self._used[item.slot] = max(self._used[item.slot], end)
            places = torch.from_numpy(positions).to(self._device)
            longest = max(item.start + len(item) for item in items)
            self._cache.aim(
                [item.slot for item in items],
                torch.from_numpy(columns).to(self._device),
                min(up(longest, self.form.columns), self._scratch + 1),
            )
            logits = self._model(
                input_ids=torch.from_numpy(frame.ids).to(self._device),
                attention_mask=self._masks(places, leaves),
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=frame.keep,
            ).logits[..., : self.vocab_size]
            return frame.by_column(logits.float().cpu().numpy())

    def _masks(self, places: Any, leaves: Sequence[tuple[int, int, int, int, int]]) -> Any:
        """Return the mask, or one for each kind of layer where some slide a window."""
        dtype, window = self._model.dtype, self._window
        full = self._cache.mask(places, dtype, None, leaves)
        if window is not None and window < self.context:
            slid = self._cache.mask(places, dtype, window, leaves)
        elif self._stateful or not self.masked:
            slid = full
        else:
            return full
        if not self._kinds:  # all layers slide
            return slid
        masks = {kind: slid if "sliding" in kind else full for kind in self._kinds}
        return {kind: None if kind == "conv" else m for kind, m in masks.items()}

    def _probe(self, numerics: str | None, default: str) -> None:
        """Check on the model itself that blocks, batches and rewinds change nothing."""
        n = min(12, self.context)
        ids = np.random.default_rng(1).integers(0, self.vocab_size, n)
        slot = self.allocate()
        try:
            with self._torch.inference_mode():
                batch = self._torch.from_numpy(ids)[None].to(self._device)
                full = self._model(input_ids=batch, use_cache=False).logits[0]
            wanted = full.float().cpu().numpy()[:, : self.vocab_size]
            (found,) = self.forward([SlotInput(slot, 0, ids, n)])
            self.release(slot)
            self.settle(numerics, default)
        except _UNFIT as error:
            raise IncompatibleError(
                f"{self.name} ({self.family.name}) does not run with a cache of slots: "
                f"{error}",
                hint="serve a model with plain attention in every layer",
            ) from error
        off = max(float(np.abs(found - wanted).max()), self.logit_error)
        scale = float(np.abs(wanted).max()) or 1.0
        limit = _TOLERANCE.get(str(self._model.dtype).rpartition(".")[2], 1e-1)
        if not off <= limit * scale:
            raise IncompatibleError(
                f"the cache of {self.name} cannot be rewound: logits after a rewind "
                f"differ by {off:.3g} (largest logit {scale:.3g})",
                hint="serve a model with plain attention in every layer",
            )


def _load(torch: Any, transformers: Any, path: Path, dtype: str, device: str) -> Any:
    from safetensors import SafetensorError

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(str(path), **local)
        _refuse_unfit(transformers, config, path)
        model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        attention = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            str(path),
            config=config,
            use_safetensors=True,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attention,
            **local,
        )
        return loaded.to(device).eval().requires_grad_(False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"transformers {transformers.__version__} cannot load {path}: {error}",
            hint="the folder needs config.json and *.safetensors of a model that "
            "transformers itself knows",
        ) from error


def _layer_kinds(config: Any) -> set[str]:
    names = ("layer_types", "layers_block_type")
    return set(next((found for n in names if (found := getattr(config, n, None))), ()))


def _refuse_unfit(transformers: Any, config: Any, path: Path) -> None:
    """Refuse models that keep a state which no rewind brings back."""
    classes = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    kinds = _layer_kinds(config.get_text_config())
    # The short convolutions of LFM2 read their last inputs, which are kept by column.
    odd = sorted(kinds - _ATTENTION - ({"conv"} if config.model_type == "lfm2" else set()))
    # A hybrid family may come without any layer of the other kind.
    stateful = getattr(classes.get(type(config), None), "_is_stateful", False)
    if stateful and not kinds:
        odd.append("recurrent state")
    if config.is_encoder_decoder:
        odd.append("encoder")
    if odd:
        raise IncompatibleError(
            f"{path} ({config.model_type}) cannot verify drafts: its cache cannot be "
            f"rewound ({', '.join(odd)})",
            hint="serve a model with plain attention in every layer",
        )


def _context(config: Any, wanted: int | None) -> int:
    longest = getattr(config, "max_position_embeddings", None) or wanted
    if longest is None:
        raise ConfigError(
            f"a {config.model_type} model names no longest context",
            hint="say how many tokens a stream may have: --context N",
        )
    limits = [int(longest)]
    # Inside its chunk a layer equals full attention; beyond it a slot cache would need
    # another mask. Inside their first length scaled rotations are fixed.
    limits += [int(getattr(config, "attention_chunk_size", None) or limits[0])]
    known = (getattr(config, name, None) for name in ("rope_parameters", "rope_scaling"))
    rope: dict[str, Any] = next((found for found in known if found), {})
    if rope.get("rope_type", rope.get("type")) == "longrope":
        name = "original_max_position_embeddings"
        limits += [int(rope.get(name) or getattr(config, name, None) or limits[0])]
    limit = min(limits)
    if wanted is not None and not 1 <= wanted <= limit:
        raise ConfigError(f"a context of {wanted} is outside 1..{limit} of this model")
    return wanted or min(limit, 4096)


def _slot_cache(config: Any, slots: int, columns: int) -> Any:
    """Return a transformers ``Cache`` whose layers are rows of slots."""
    import torch
    from transformers.cache_utils import Cache, DynamicLayer

    class SlotLayer(DynamicLayer):
        """One layer's keys and values for all slots."""

        owner: Any

        def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
            self.dtype, self.device = key_states.dtype, key_states.device

            # Zeros, not empty: masked columns still meet a weight of 0 in a product,
            # and 0 * NaN is NaN.
            def room(states: Any) -> Any:
                _, heads, _, dim = states.shape
                shape = (slots, heads, columns, dim)
                if states.device.type != "cpu" or not heads:
                    return states.new_zeros(shape)
                # Pages of the system's own zeros: a slot takes memory when it is used.
                size = slots * heads * columns * dim
                pages = mmap.mmap(-1, size * states.element_size())
                return torch.frombuffer(pages, dtype=states.dtype).view(shape)

            self.keys, self.values = room(key_states), room(value_states)
            self.is_initialized = True

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            rows, columns, used = self.owner.rows, self.owner.columns, self.owner.used
            # Advanced indices around a slice: the result has them in front.
            self.keys[rows[:, None], :, columns] = key_states.transpose(1, 2)
            self.values[rows[:, None], :, columns] = value_states.transpose(1, 2)
            span = self.owner.span
            if span is not None:  # neighbouring slots: a view, no copy
                return self.keys[span, :, :used], self.values[span, :, :used]
            keys = self.keys[:, :, :used].index_select(0, rows)
            return keys, self.values[:, :, :used].index_select(0, rows)

        def get_seq_length(self) -> int:
            return 0  # positions and mask are explicit

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return int(self.owner.used), 0

    class ConvLayer(SlotLayer):
        """One layer's inputs of a short convolution, as keys ``(slots, 1, columns, H)``."""

        def convolve(self, fed: Any, taps: int) -> Any:
            """Keep inputs ``(B, H, S)``, and return them behind those before them."""
            states = fed.transpose(1, 2)[:, None]
            if not self.is_initialized:
                self.lazy_initialization(states, states[:, :0])
            rows, columns = self.owner.rows[:, None], self.owner.columns
            at = columns[:, :1] + torch.arange(1 - taps, 0, device=columns.device)
            before = self.keys[rows, 0, at.clamp(min=0)] * (at >= 0)[..., None]
            self.keys[rows, 0, columns] = states[:, 0]
            return torch.cat([before.transpose(1, 2), fed], -1)

    class SlotCache(Cache):
        """All layers; ``aim`` says which slots and columns the next forward uses."""

        rows: Any
        columns: Any
        used: int
        span: slice | None

        def aim(self, rows: list[int], columns: Any, used: int) -> None:
            near = rows == list(range(rows[0], rows[0] + len(rows)))
            self.span = slice(rows[0], rows[0] + len(rows)) if near else None
            self.rows = torch.tensor(rows, device=columns.device)
            self.columns, self.used = columns, used

        def get_conv_state(self, *_: Any, **__: Any) -> None:
            return None  # a state of the last inputs alone cannot be rewound

        def update_conv_state(
            self, fed: Any, layer: int, conv_kernel_size: int, **_: Any
        ) -> Any:
            return self.layers[layer].convolve(fed, conv_kernel_size)

        def mask(
            self,
            places: Any,
            dtype: Any,
            window: int | None,
            leaves: Sequence[tuple[int, int, int, int, int]],
        ) -> Any:
            keys = torch.arange(self.used, device=places.device)[None, None, None, :]
            hidden = keys > places[:, None, :, None]
            if window is not None:
                hidden |= keys <= places[:, None, :, None] - window
            for b, i, end, column, chain in leaves:
                # Its place is a draft's column; its own, and its chain's, are behind.
                hidden[b, 0, i, end : end + chain + 1] = True
                near = chain if window is None else min(chain, window - 1)
                hidden[b, 0, i, column - near : column + 1] = False
            mask = torch.zeros(hidden.shape, dtype=dtype, device=places.device)
            return mask.masked_fill_(hidden, torch.finfo(dtype).min)

        def column_bytes(self) -> int:
            kept = [t for layer in self.layers for t in (layer.keys, layer.values)]
            return sum(t[0, :, 0].numel() * t.element_size() for t in kept)

        def copy(self, source: int, row: int, length: int) -> None:
            for layer in self.layers:
                layer.keys[row, :, :length] = layer.keys[source, :, :length]
                layer.values[row, :, :length] = layer.values[source, :, :length]

        def wipe(self, row: int, used: int) -> None:
            for layer in self.layers:
                layer.keys[row, :, :used] = 0
                layer.values[row, :, :used] = 0

    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    layers = [ConvLayer() if kind == "conv" else SlotLayer() for kind in kinds]
    cache = SlotCache(layers=layers)
    for layer in layers:
        layer.owner = cache
    return cache
