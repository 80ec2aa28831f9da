"""The graph of a target for the embedded verifier: one forward, many sessions.

Inputs (``B`` sessions, ``S`` new tokens in the longest of them, ``P`` cached tokens
in the longest, ``N`` wanted rows; all three may differ from call to call):

====================  =======  ==============  =====================================
name                  type     shape           meaning
====================  =======  ==============  =====================================
``input_ids``         int64    ``[B, S]``      new tokens, shorter rows padded on the
                                               right with any token id
``past_lens``         int64    ``[B]``         cached tokens that count in each row;
                                               the new ones get positions
                                               ``past_lens[b] + 0 .. S-1``
``rows``              int64    ``[N]``         where logits are wanted, as indices
                                               ``b * S + s``; may be empty
``past.{i}.key``      float32  ``[B, KV, P, D]``  keys of layer ``i``, position ``p``
                                               at index ``p``; what lies at and after
                                               ``past_lens[b]`` is ignored but must
                                               be finite; ``P`` may be 0
``past.{i}.value``    float32  ``[B, KV, P, D]``  values, the same
====================  =======  ==============  =====================================

Outputs:

====================  =======  ==============  =====================================
``logits``            float32  ``[N, V]``      in the order of ``rows``
``new.{i}.key``       float32  ``[B, KV, S, D]``  keys of the new tokens; the caller
                                               writes the first ``n_b`` of row ``b``
                                               at ``past_lens[b]`` of its cache
``new.{i}.value``     float32  ``[B, KV, S, D]``  values, the same
====================  =======  ==============  =====================================

Weights are initialisers with external data that is stored nowhere.  Their names,
shapes and layout are those of the checkpoint's parameters (``weights.safetensors``
of the package has the same names), so that a caller reads them with
:mod:`draftwire.tensors`, merges an adapter in numpy and supplies float32 arrays::

    weights = read_tensors(base.path / "weights.safetensors")      # float32
    merge_lora(weights, adapter_tensors, scale)                    # evolved targets
    options.add_external_initializers(
        list(weights), [OrtValue.ortvalue_from_numpy(w) for w in weights.values()]
    )
    InferenceSession(str(base.path / "model.onnx"), options)

Every tensor of the file is an initialiser of the graph and the other way round.
Arithmetic is float32 throughout with no dynamic quantisation, so that k tokens in
one forward give the logits of k single forwards up to float noise.
"""

from __future__ import annotations
