"""The graph of a target in parts, with an early exit at each cut.

The parts are cut out of the package's own ``model.onnx`` node by node, so that running
them one after another computes what the whole graph computes.  Inputs and outputs are
those of :mod:`draftwire.export.graphs.target` with these differences: part ``k`` has the
caches of its own layers alone; every part but the first takes the hidden state
``l{i}.out`` ``[B * S, hidden]`` that the part before it gave; and every part but the last
gives, instead of ``logits``, that hidden state and ``exit.logits`` ``[N, V]``.

An exit is the target's last norm with weights of its own, a low-rank residual, and the
target's own head::

    x = norm(hidden);  exit.logits = head(x + up(silu(down(x))))

Its tensors are ``exit.{k}.norm.weight`` (and ``.bias`` where the target's norm has one),
``exit.{k}.down.weight`` ``(rank, hidden)`` and ``exit.{k}.up.weight`` ``(hidden, rank)``,
supplied like all other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from draftwire.errors import ModelError
from draftwire.export.graphs.onnx_decoder import GraphBuilder, Value, value

_FIRST_CACHE = "past.0.key"  # the whole graph asks it for the number of cached tokens


@dataclass(frozen=True)
class HeadNames:
    """What stands between the last layer and the logits of a target graph."""

    norm: onnx.NodeProto  # the operator of the last norm
    head: str  # the head's weight, ``(V, hidden)``
    vocab_size: int  # rows of the head
    hidden: int  # width of the hidden state
    layers: int  # layers of the target


def head_of(model: onnx.ModelProto) -> HeadNames:
    """Return what an exit of ``model`` must look like; a ModelError where it is no target
    graph of this exporter, or its norm's weight is computed, as that of Gemma.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    layers = sum(i.name.endswith(".key") for i in model.graph.input)
    gemm = made_by.get("logits")
    norm = made_by.get(gemm.input[0]) if gemm is not None and gemm.input else None
    if (
        gemm is None
        or norm is None
        or gemm.op_type != "Gemm"
        or not norm.op_type.endswith("LayerNormalization")
        or norm.input[1] not in shapes
        or len(shapes.get(gemm.input[1], ())) != 2
        or f"l{layers - 1}.out" not in made_by
    ):
        raise ModelError(
            "the graph of this target cannot be cut into parts",
            hint="export the target again with this version of draftwire",
        )
    head = gemm.input[1]
    vocab_size, hidden = shapes[head]
    return HeadNames(norm, head, vocab_size, hidden, layers)


def exit_tensors(head: HeadNames, exit_index: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of one exit, counted from 0."""
    norm: tuple[int, ...] = (head.hidden,)
    biased = len(head.norm.input) > 2
    shapes = {"norm.weight": norm, **({"norm.bias": norm} if biased else {})}
    shapes |= {"down.weight": (rank, head.hidden), "up.weight": (head.hidden, rank)}
    return {f"exit.{exit_index}.{name}": shape for name, shape in shapes.items()}


def split_target_graph(
    model: onnx.ModelProto, layers: Sequence[int], *, rank: int
) -> list[onnx.ModelProto]:
    """Cut a target graph into one part more than there are exits behind ``layers``.

    A ModelError where it is no target graph of this exporter.
    """
    head = head_of(model)
    bounds = [0, *layers, head.layers]
    if not layers or bounds != sorted(set(bounds)):
        raise ValueError(f"exits after layers {list(layers)} of {head.layers}")
    pairs = zip(bounds, bounds[1:], strict=False)
    return [_part(model.graph, head, k, *pair, rank) for k, pair in enumerate(pairs)]


def _part(
    graph: onnx.GraphProto, head: HeadNames, k: int, first: int, last: int, rank: int
) -> onnx.ModelProto:
    """Return the layers ``first .. last - 1`` and what follows them."""
    given = f"l{first - 1}.out" if first else None
    ends = last == head.layers
    hidden = "logits" if ends else f"l{last - 1}.out"
    caches = [f"{i}.{kind}" for i in range(first, last) for kind in ("key", "value")]
    wanted = [hidden, *(f"new.{name}" for name in caches)]
    nodes, used = [], {"input_ids", "past_lens", "rows"}
    for node in _behind(graph, wanted, given):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(copy.input):
            if name == _FIRST_CACHE and first:
                copy.input[i] = f"past.{first}.key"
        nodes.append(copy)
        used.update(copy.input)
    builder = GraphBuilder()
    state: list[int | str] = ["B * S", head.hidden]
    inputs = [v for v in graph.input if v.name in used]
    inputs += [value(given, "float32", state)] if given is not None else []
    outputs = [v for v in graph.output if v.name in wanted]
    if not ends:
        outputs += [value(hidden, "float32", state), _exit(builder, head, k, hidden, rank)]
    part = builder.model(f"target.part{k}", inputs, outputs)
    nodes += part.graph.node
    del part.graph.node[:]
    part.graph.node.extend(nodes)
    used |= {name for node in nodes for name in node.input}
    already = {i.name for i in part.graph.initializer}
    part.graph.initializer.extend(
        tensor for tensor in graph.initializer if tensor.name in used - already
    )
    return part


def _behind(
    graph: onnx.GraphProto, wanted: Iterable[str], given: str | None
) -> list[onnx.NodeProto]:
    """Return the nodes that ``wanted`` depends on, in order, up to ``given``."""
    made_by = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    stack = list(wanted)
    while stack:
        name = stack.pop()
        node = made_by.get(name)
        if node is not None and name != given and node.name not in needed:
            needed.add(node.name)
            stack.extend(node.input)
    return [node for node in graph.node if node.name in needed]


def _exit(g: GraphBuilder, head: HeadNames, k: int, hidden: str, rank: int) -> Value:
    """Write the exit behind ``hidden`` and return its output."""
    *norm, down, up = (g.supplied(*pair) for pair in exit_tensors(head, k, rank).items())
    kept = g.node("Gather", [hidden, "rows"], "exit.kept")
    attributes = {a.name: helper.get_attribute_value(a) for a in head.norm.attribute}
    domain, kind = head.norm.domain, head.norm.op_type
    x = g.node(kind, [kept, *norm], "exit.normed", domain=domain, **attributes)
    low = g.node("Gemm", [x, down], "exit.low", transB=1)
    low = g.node("Mul", [low, g.node("Sigmoid", [low], "exit.gate")], "exit.silu")
    x = g.node("Add", [x, g.node("Gemm", [low, up], "exit.change", transB=1)], "exit.out")
    table = g.supplied(head.head, (head.vocab_size, head.hidden))
    g.node("Gemm", [x, table], "exit.logits", transB=1)
    return value("exit.logits", "float32", ["N", head.vocab_size])
