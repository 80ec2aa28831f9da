"""Fingerprints by PROTOCOL.md 4.1, from files alone, with nothing of draftwire's.

fingerprint.py tokenizer tokenizer.json
fingerprint.py backbone LAYERS model.safetensors ... (or one .gguf file)
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np

DOCUMENT = Path(__file__).resolve().parents[1] / "transport" / "PROTOCOL.md"
LAYER = r"(?:.*\.)?(?:layers|h|blk)\.(\d+)\..*(?:weight|bias)"
WORDS = r"(?:.*\.)?(?:embed_tokens|embed_in|wte|wpe|token_embd|position_embd)\.weight"
KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def safetensors(path):
    data = np.memmap(path, np.uint8)
    start = 8 + int(data[:8].view("<u8")[0])
    for name, entry in json.loads(bytes(data[8:start])).items():
        if name != "__metadata__":
            values = data[start:][slice(*entry["data_offsets"])].view(KINDS[entry["dtype"]])
            if entry["dtype"] == "BF16":  # the upper half of a float32
                values = (values.astype("<u4") << 16).view("<f4")
            yield name, values


def gguf(path):
    from gguf import GGUFReader, quants

    reader = GGUFReader(path)
    kind = reader.fields["general.architecture"].contents()
    assert kind in ("llama", "qwen2", "qwen3"), f"order of rows in {kind}?"
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        if kind == "llama" and re.search("attn_[qk]", tensor.name):  # pairs side by side
            key = "head_count" + "_kv" * ("attn_k" in tensor.name)
            heads = int(reader.fields[f"llama.attention.{key}"].contents())
            values = values.reshape(heads, -1, 2, values[0].size).swapaxes(1, 2)
        yield tensor.name, values


def backbone(layers, *paths):
    groups = {at: [] for at in range(-1, int(layers))}
    for path in paths:
        for name, values in (gguf if path.endswith(".gguf") else safetensors)(path):
            layer = re.fullmatch(LAYER, name)
            if layer or re.fullmatch(WORDS, name):
                half = (values.astype("<f2") + np.float16(0)).tobytes()
                group = groups.get(int(layer[1]) if layer else -1, [])
                group.append(hashlib.sha256(half).hexdigest())
    yield f"draftwire.backbone/2 {layers}"
    for at, digests in groups.items():
        yield from ["embedding" if at < 0 else f"layer {at}", *sorted(digests)]


def tokenizer(path):
    from tokenizers import Tokenizer

    raw = json.loads(Path(path).read_text("utf-8"))
    engine = Tokenizer.from_str(json.dumps({**raw, "padding": None, "truncation": None}))
    words = sorted((i, word.encode()) for word, i in engine.get_vocab().items())
    while words[-1][1].lower() in (b"[pad]", b"<pad>", b"<|pad|>", b"<|padding|>", b"pad"):
        words.pop()
    added = {t["id"] for t in raw["added_tokens"] if t["special"]} & {i for i, _ in words}
    probes = json.loads(DOCUMENT.read_text("utf-8").split("```json\n")[1].split("```")[0])
    ids = [engine.encode(text, add_special_tokens=False).ids for text in probes]
    yield "draftwire.tokenizer/2"
    yield from (" ".join(map(str, row)) for row in (*ids, sorted(added)))
    yield from (f"{i} {word.hex()}" for i, word in words)


if sys.argv[1:2] not in (["tokenizer"], ["backbone"]) or len(sys.argv) < 3:
    sys.exit(f"usage:\n{__doc__.partition(chr(10) * 2)[2]}")
lines = {"tokenizer": tokenizer, "backbone": backbone}[sys.argv[1]](*sys.argv[2:])
print(hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest())
