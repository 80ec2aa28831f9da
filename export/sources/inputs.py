"""What can be exported: a directory, a name on the hub, a GGUF file."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from draftwire.errors import ConfigError, ModelError
from draftwire.export.sources.checkpoint import first_line

# What gguf and transformers meet in a damaged file.
_GGUF_FAILS = (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+\Z")
# Never weights that would have to be unpickled.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer*"]
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How byte-level vocabularies cut text into words, by ``tokenizer.ggml.pre``.
_SPLITS = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "dbrx", "olmo", "smaug-bpe"),
        _QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1),
    ),
}
_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
_PLAIN = frozenset({"gpt-2", "gpt2", "phi-2", "mpt"})


def checkpoint_folder(source: str | Path, scratch: Path) -> Path:
    """Return a Hugging Face directory for what a user named: such a directory, a ``.gguf``
    file (unpacked to ``scratch``), or ``owner/name`` on the hub, which ``hf:owner/name`` is
    even where there is such a directory.

    A ConfigError where there is nothing of the kind or a library is missing, a ModelError
    where the GGUF file cannot be read or is of a kind not known here.
    """
    source = str(source)
    named = source.startswith("hf:")
    source = source[3:] if named else source
    path = Path(source)
    if not named and path.suffix == ".gguf":
        return _unpacked(path, scratch)
    if not named and (path.exists() or not _HUB_NAME.match(source)):
        return path
    if not find_spec("huggingface_hub"):
        raise ConfigError(
            f"there is no directory {source}, and without huggingface_hub nothing is "
            "fetched",
            hint="pip install 'draftwire[hub]', or give a local directory",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_WANTED))
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"there is no directory {source}, and the hub does not give it: "
            f"{first_line(exc)}",
            hint="check the name, log in with `hf auth login`, or give a local directory",
        ) from exc


def _unpacked(file: Path, scratch: Path) -> Path:
    """Write a GGUF file out as a directory, in float32."""
    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    needed = ("torch", "transformers", "gguf", "accelerate")
    for module in (name for name in needed if find_spec(name) is None):
        raise ConfigError(
            f"reading GGUF needs {module}, which is not installed",
            hint="pip install 'draftwire[export,gguf]'",
        )
    import torch
    import transformers
    from safetensors.torch import save_file

    transformers.utils.logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    folder = scratch / f"{file.stem}.hf"
    try:
        pre = _pre_tokenizer(file)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        kind = transformers.AutoModelForCausalLM
        model = kind.from_pretrained(**where, dtype=torch.float32)
    except _GGUF_FAILS as exc:
        raise ModelError(
            f"{file.name} cannot be read as GGUF: {first_line(exc)}",
            hint="give the Hugging Face directory that it was made from",
        ) from exc
    _cut_words(tokenizer.backend_tokenizer, pre, file.name)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    text = json.dumps(config, indent=2, default=str)
    (folder / "config.json").write_text(text, encoding="utf-8")
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _pre_tokenizer(file: Path) -> str:
    """Return how a byte-level vocabulary cuts words; "" for one that is none."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    model, pre = (
        str(fields[name].contents()) if name in fields else ""
        for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre")
    )
    return (pre or "gpt-2") if model == "gpt2" else ""


def _cut_words(engine: Any, pre: str, name: str) -> None:
    """Set what transformers does not read from the file."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[pre]), "isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        engine.pre_tokenizer = pre_tokenizers.Sequence([split, rest])
        if _SPLITS[pre] is _QWEN:
            engine.normalizer = normalizers.NFC()
    elif pre in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        engine.pre_tokenizer = pre_tokenizers.Sequence([digits, whole])
    elif pre in _PLAIN:
        engine.pre_tokenizer = whole
    elif pre:
        raise ModelError(
            f"{name} cuts words as {pre!r}, which is not known here",
            hint="give the Hugging Face directory that it was made from",
        )
