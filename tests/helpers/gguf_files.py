"""GGUF files as llama.cpp's converter writes them, of weights by their other names."""

import gguf

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm"}


def name_of(theirs):
    """Return GGUF's name of a weight or bias."""
    stem, _, form = theirs.removeprefix("model.").rpartition(".")
    if not stem.startswith("layers."):
        return f"{OUTSIDE.get(stem, 'output')}.{form}"
    _, layer, inside = stem.split(".", 2)
    return f"blk.{layer}.{NAMES[inside]}.{form}"


def paired(rows, heads):
    """Return rows of q or k with the two of a rotated pair side by side."""
    apart = rows.reshape(heads, 2, len(rows) // heads // 2, -1)
    return apart.swapaxes(1, 2).copy().reshape(rows.shape)


def write_gguf(file, packed, *, heads, kv, architecture="llama", **told):
    """Write tensors, each with GGUF's type of it, and what else is ``told``."""
    writer = gguf.GGUFWriter(str(file), architecture)
    for name, value in {"head_count": heads, "head_count_kv": kv, **told}.items():
        getattr(writer, f"add_{name}")(value)
    for name, (data, kind) in packed.items():
        rotated = {"q_proj": heads, "k_proj": kv}.get(name.split(".")[-2])
        if rotated and architecture == "llama":
            data = paired(data, rotated)
        writer.add_tensor(name_of(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
