"""The graphs and the numpy forward against transformers, token by token."""

import numpy as np
import pytest
from tiny_models import ATTENDING, SHAPES

from draftwire.export.graphs.draft import build_gqa_graph
from draftwire.export.graphs.reference import reference_logits
from draftwire.export.graphs.target import build_target_graph
from draftwire.export.graphs.tflite import build_tflite
from draftwire.export.precision.runners import DraftRunner, session
from draftwire.export.sources.architecture import UnknownArchitecture, read_architecture
from draftwire.export.sources.checkpoint import load_checkpoint, read_config
from draftwire.export.sources.weights import CheckpointWeights

LENGTH = 90


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


def told(folder, torch_logits):
    """Return a checkpoint, a text, and what transformers says about it."""
    ids = np.random.default_rng(1).integers(0, 320, LENGTH)
    return load_checkpoint(folder), ids, torch_logits(folder, ids)


@pytest.fixture(params=SHAPES)
def case(request, models, torch_logits):
    return told(models(request.param), torch_logits)


@pytest.fixture(params=ATTENDING)
def attends(request, models, torch_logits):
    """Of what a target's graph is written for."""
    return told(models(request.param), torch_logits)


class Target:
    """The target graph with caches as a verifier would hold them."""

    def __init__(self, checkpoint):
        self.shape = checkpoint.architecture
        weights = {n: checkpoint.weight(n) for n in checkpoint.parameters}
        self.session = session(build_target_graph(checkpoint), weights=weights)
        self.names = [o.name for o in self.session.get_outputs()]

    def caches(self, batch, length):
        a = self.shape
        rng = np.random.default_rng(2)
        return {
            f"past.{i}.{kind}": 50
            * rng.standard_normal((batch, a.kv_heads, length, a.head_dim)).astype("f4")
            for i in range(a.layers)
            for kind in ("key", "value")
        }

    def __call__(self, ids, lens, rows, caches):
        feeds = {
            "input_ids": np.asarray(ids, np.int64),
            "past_lens": np.asarray(lens, np.int64),
            "rows": np.asarray(rows, np.int64),
            **caches,
        }
        return dict(zip(self.names, self.session.run(self.names, feeds)))


def test_the_numpy_forward_is_the_model(case):
    checkpoint, ids, expected = case
    close(reference_logits(checkpoint, ids), expected)


def test_draft_steps_of_any_size_and_rewinds(case):
    checkpoint, ids, expected = case
    graph = build_gqa_graph(checkpoint).SerializeToString()
    runner = DraftRunner(graph, checkpoint.architecture)
    done = 0
    for size in (20, 1, 3, 1, 7, 1, 1, 30):
        found = runner.forward(ids[done : done + size], rows=size)
        close(found, expected[done : done + size])
        done += size
    runner.forward(ids[::-1][:6])
    runner.rewind(40)
    close(runner.forward(ids[40:55]), expected[54:55])


def test_a_ragged_batch_of_the_target_is_its_single_forwards(attends):
    checkpoint, ids, expected = attends
    target = Target(checkpoint)
    whole = target([ids], [0], range(LENGTH), target.caches(1, 0))
    close(whole["logits"], expected)
    # Rows with 40 and 7 cached tokens and one without, 5, 2 and 3 new ones; what
    # lies behind the cached tokens is noise.
    caches = target.caches(3, 48)
    for name, cache in caches.items():
        fresh = whole[name.replace("past", "new")][0]
        cache[0, :, :40], cache[1, :, :7] = fresh[:, :40], fresh[:, :7]
    batch = np.zeros((3, 5), np.int64)
    batch[0], batch[1, :2], batch[2, :3] = ids[40:45], ids[7:9], ids[:3]
    rows = [0, 1, 2, 3, 4, 5, 6, 10, 11, 12]
    found = target(batch, [40, 7, 0], rows, caches)
    texts = np.concatenate([expected[40:45], expected[7:9], expected[:3]])
    close(found["logits"], texts)
    for name, fresh in whole.items():
        if name != "logits":
            close(found[name][0], fresh[0, :, 40:45])
    nothing = target(batch, [40, 7, 0], [], caches)
    assert nothing["logits"].shape == (0, 320)


def test_target_blocks_are_single_steps(attends):
    checkpoint, ids, expected = attends
    target = Target(checkpoint)
    caches = target.caches(1, 24)
    done = 0
    found = []
    for size in (9, 1, 4, 1, 1, 6):
        step = target([ids[done : done + size]], [done], range(size), caches)
        found.append(step["logits"])
        for name, cache in caches.items():
            fresh = step[name.replace("past", "new")]
            cache[:, :, done : done + size] = fresh
        done += size
    close(np.concatenate(found), expected[:done])


def test_the_target_graph_holds_no_weights(attends):
    graph = build_target_graph(attends[0])
    assert len(graph.SerializeToString()) < 100_000
    outside = {t.name for t in graph.graph.initializer if t.external_data}
    assert outside == set(attends[0].parameters)


def test_what_convolves_is_refused_where_it_cannot_be_written(models):
    checkpoint = load_checkpoint(models("lfm2"))
    with pytest.raises(UnknownArchitecture, match="target's graph has no short convol"):
        build_target_graph(checkpoint)
    with pytest.raises(UnknownArchitecture, match="LiteRT graph has no short") as caught:
        build_tflite(CheckpointWeights(checkpoint), "fp32")
    assert "onnxruntime" in caught.value.hint


def test_lfm2_in_the_spelling_of_its_makers(models):
    config = read_config(models("lfm2"))
    plain = read_architecture("x", config)
    makers = {
        k: v for k, v in config.items() if k not in ("layer_types", "tie_word_embeddings")
    }
    makers["block_ff_dim"] = makers.pop("intermediate_size")
    makers |= {"full_attn_idxs": [1], "tie_embedding": True}
    assert repr(read_architecture("x", makers)) == repr(plain)
    assert plain.convs == (3, 0) and plain.tied
    assert not read_architecture("x", {**makers, "tie_embedding": False}).tied
    assert plain.feed_forward == 64  # two thirds of 96, in sixteens
