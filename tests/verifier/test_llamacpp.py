"""A real llama-server behind ``--backend openai``: texts are its own, drafts or not.

``make test-engines`` builds the server; where there is none these tests are skipped. Its
model is the reference target, as a GGUF file in float32, so its texts are known twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from pieces import assert_of_the_likeliest, target_only
from verifier_lab import serving

gguf = pytest.importorskip("gguf")

from draftwire.errors import BusyError, ConfigError, ModelError  # noqa: E402
from draftwire.packages import load_target  # noqa: E402
from draftwire.reference import target_path  # noqa: E402
from draftwire.sampling import NOISES, SamplingParams  # noqa: E402
from draftwire.tensors import read_tensors  # noqa: E402
from draftwire.transport.messages import Hello  # noqa: E402
from draftwire.verifier.backends.attached import AttachedTarget, Engine  # noqa: E402
from draftwire.verifier.backends.base import SlotInput  # noqa: E402
from draftwire.verifier.backends.onnx_target import OnnxTarget  # noqa: E402
from draftwire.verifier.kit.checks import CHECKS, prepare  # noqa: E402
from draftwire.verifier.kit.peer import Kit  # noqa: E402
from draftwire.verifier.kit.rows import run_rows  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".venvs" / "llamacpp" / "build" / "bin" / "llama-server"
SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server") or str(BUILT)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.workstation,
    pytest.mark.skipif(
        not Path(SERVER).is_file(), reason="no llama-server: make test-engines"
    ),
]
CONTEXT, SLOTS = 512, 4
PROMPT = [0, 1676, 317, 746]
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The reference target as a GGUF file, and a folder with its tokenizer."""
    place = tmp_path_factory.mktemp("llama")
    package = load_target(target_path("v1"))
    weights = read_tensors(package.path / "weights.safetensors")
    words = json.loads(package.tokenizer_path.read_text("utf-8"))["model"]
    writer = gguf.GGUFWriter(str(place / "v1.gguf"), "llama")
    shape = package.shape
    listed = [word for word, _ in sorted(words["vocab"].items(), key=lambda item: item[1])]
    listed += [f"<{i}>" for i in range(len(listed), package.vocab_size)]
    heads = {"attn_q": shape.hidden // shape.head_dim, "attn_k": shape.kv_heads}
    told = {
        "context_length": package.context, "embedding_length": shape.hidden,
        "block_count": shape.layers, "head_count": heads["attn_q"],
        "feed_forward_length": len(weights["model.layers.0.mlp.up_proj.weight"]),
        "head_count_kv": shape.kv_heads, "rope_freq_base": 1e4,
        "layer_norm_rms_eps": 1e-5, "vocab_size": package.vocab_size,
        "tokenizer_model": "gpt2", "tokenizer_pre": "smollm", "token_list": listed,
        "token_types": [3] + [1] * (len(listed) - 1), "bos_token_id": 0,
        "token_merges": [m if isinstance(m, str) else " ".join(m) for m in words["merges"]],
        "eos_token_id": 0, "add_bos_token": True,
    }  # fmt: skip
    for name, value in told.items():
        getattr(writer, f"add_{name}")(value)
    stored = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    for i in range(shape.layers):
        for ours, theirs in _NAMES.items():
            stored[f"blk.{i}.{ours}"] = f"model.layers.{i}.{theirs}"
    for ours, theirs in stored.items():
        tensor = weights[theirs + ".weight"]
        count = heads.get(ours.split(".")[-1])
        if count:  # the two of a rotated pair side by side
            rows = tensor.reshape(count, 2, len(tensor) // count // 2, -1)
            tensor = rows.swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(ours + ".weight", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shutil.copy(package.tokenizer_path, place)
    (place / "config.json").write_text('{"model_type": "llama", "eos_token_id": 0}')
    return place


@contextlib.contextmanager
def running(folder, *more):
    """Run a server; yield its address and process, maybe before it has its model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [SERVER, "-m", str(folder / "v1.gguf"), "--host", "127.0.0.1", "-t", "2"]
    words += ["--port", str(port), "-np", str(SLOTS), "-c", str(SLOTS * CONTEXT), *more]
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def server(files):
    with running(files) as (url, process):
        yield url, process


def attach(files, url, **engine):
    return AttachedTarget(files, Engine(url, **engine), slots=8)


def own(url, prompt, count):
    """Return the server's own greedy text, in one plain request."""
    body = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True}
    request = urllib.request.Request(url + "/completion", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["tokens"]


def test_greedy_texts_are_the_servers_own_and_onnxruntimes(files, server):
    from tools.engine import FLAGS, render, study

    from studies.command import start

    url, _ = server
    target = attach(files, url)
    assert target.schemes == ("greedy", "argmax", "match")
    assert target.context == CONTEXT  # a slot's, not what the model was trained for
    whole = OnnxTarget(target_path("v1"), slots=1)
    assert own(url, PROMPT, 24) == target_only(whole, PROMPT, SamplingParams(), 24)
    words = ["--engine", url, "--target", str(files), "--texts", "2", "--tokens", "24"]
    shown = []
    told = render
    assert (
        start("tools.engine", "", FLAGS, study, lambda d: shown.append(d) or told(d), words)
        == 0
    )
    for row in shown[0]["rows"]:
        assert row["differ"] == 0 and row["asked"]["right"] < row["asked"]["none"] / 3
    target.close()


def test_match_has_the_law_of_the_server_and_coupled_is_refused(files, server):
    target = attach(files, server[0])
    whole = OnnxTarget(target_path("v1"), slots=1)
    row = whole.forward([SlotInput(whole.allocate(), 0, np.array(PROMPT), 1)])[0][-1]
    params = SamplingParams("match", 1.0, 4, 1.0, seed=1)
    drawn = [t for _ in range(50) for t in target.winners([PROMPT] * 4, params, "")]
    assert_of_the_likeliest(row, drawn)
    assert "coupled" not in target.schemes and target.noises == ("philox",)
    target.close()


async def test_the_kit_finds_nothing_wrong(files, server):
    target = attach(files, server[0])
    async with serving(target) as service:
        fingerprint = bytes.fromhex(target.family.tokenizer)
        hello = Hello("kit", "", fingerprint, b"", target.vocab_size)
        hello = dataclasses.replace(hello, noise=NOISES)
        kit = Kit(service.url, hello, patience_s=60, long=48)
        await prepare(kit)
        results = await run_rows(kit, CHECKS)
    assert not [r for r in results if r.result == "fails"]
    assert sum(r.result == "conforms" for r in results) > 50
    target.close()


def test_it_is_waited_for_while_it_loads_stands_still_or_has_no_slot(files):
    with running(files, "--api-key", "sesame") as (url, process):
        with pytest.raises(ModelError, match="answers 401"):
            attach(files, url)  # its door is open before its model is there
        target = attach(files, url, key="sesame", timeout_s=60.0)
        greedy = SamplingParams()
        wanted = target.winners([PROMPT], greedy, "")
        # More questions than slots: none is refused, all wait.
        found = []
        threads = [
            threading.Thread(
                target=lambda: found.append(target.winners([PROMPT] * 3, greedy, ""))
            )
            for _ in range(3 * SLOTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert found == [3 * wanted] * len(threads)
        with pytest.raises(ModelError, match=r"answers 400.*context"):
            target.winners([PROMPT * CONTEXT], greedy, "")
        process.send_signal(signal.SIGSTOP)
        target._engine.timeout_s, target._engine.patience_s = 0.5, 1.0
        with pytest.raises(BusyError, match="timed out"):
            target.winners([PROMPT], greedy, "")
        process.send_signal(signal.SIGCONT)
        target._engine.timeout_s = target._engine.patience_s = 60.0
        assert target.winners([PROMPT], greedy, "") == wanted
        process.terminate()
        process.wait(30)
        target._engine.patience_s = 0.5
        with pytest.raises(BusyError, match="cannot be asked"):
            target.winners([PROMPT], greedy, "")
        target.close()


def test_a_target_folder_without_a_context_of_its_own_is_no_larger_than_a_slot(
    files, server
):
    with pytest.raises(ConfigError, match="no model 'other'"):
        AttachedTarget(files, Engine(server[0]), model="other")
    assert AttachedTarget(files, Engine(server[0]), context=100).context == 100
