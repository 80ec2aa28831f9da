"""A server of completions by arithmetic, as vLLM, llama.cpp and SGLang answer.

It says what a hash of the prompt says, and does what has been seen of such servers: answers
out of order, prompts that are too long, no room for a while, connections cut, slowness.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from cached_target import CachedTarget

from draftwire.sampling import SamplingParams, law_of, make_decider


class HttpEngine:
    """One server.

    Args:
        kind: What it calls itself.
        vocab_size: Of its model.
        processor: It has draftwire's logits processor.
        seeded: Its seeds decide by position, as those of stock servers on GPUs do.

    Attributes:
        plans: What happens to the next questions: a status, "cut", or seconds of slowness.
        asked: Bodies of questions.
        headers: Of the last one.
        broken: Several prompts at once get other tokens.
    """

    def __init__(
        self, kind="vllm", vocab_size=300, processor=False, context=256, seeded=False
    ):
        self.kind, self.processor, self.context = kind, processor, context
        self.seeded = seeded
        self.model = CachedTarget(vocab_size, slots=1, context=context)
        self.plans, self.asked = deque(), []
        self.headers, self.broken = {}, False
        self.statuses = Counter()
        self.rng = np.random.default_rng(5)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                card = {"id": "some/model", "owned_by": outer.kind}
                if outer.kind == "llamacpp":
                    card["meta"] = {"n_ctx_train": outer.context}
                else:
                    card["max_model_len"] = outer.context
                self.answer(200, {"object": "list", "data": [card]})

            def do_POST(self):
                size = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(size))
                outer.headers = dict(self.headers)
                plan = outer.plans.popleft() if outer.plans else None
                if plan == "cut":
                    self.connection.close()
                    return
                if isinstance(plan, int):
                    self.answer(plan, {"error": f"planted {plan}"}, {"Retry-After": "0"})
                    return
                if plan is not None:
                    time.sleep(plan)
                outer.asked.append(body)
                self.answer(*outer.complete(self.path, body))

            def answer(self, status, document, headers=()):
                outer.statuses[status] += 1
                data = json.dumps(document).encode()
                self.send_response(status)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:
                    pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def complete(self, path, body):
        wanted = {
            "vllm": "/v1/completions",
            "llamacpp": "/completion",
            "sglang": "/generate",
        }
        if path != wanted[self.kind]:
            return 404, {"error": "no such path"}
        prompts = body["input_ids" if self.kind == "sglang" else "prompt"]
        prompts = prompts if isinstance(prompts[0], list) else [prompts]
        if max(map(len, prompts)) >= self.context:
            return 400, {"error": {"message": f"longer than {self.context}"}}
        how = body["sampling_params"] if self.kind == "sglang" else body
        texts = [list(prompt) for prompt in prompts]
        for _ in range(how.get("max_tokens") or how.get("max_new_tokens") or 1):
            for n, text in enumerate(texts):
                text.append(self.draw(text, how, n))
        news = [text[len(prompt) :] for text, prompt in zip(texts, prompts)]
        if self.kind == "vllm":
            rows = [
                {"index": n, "text": "", "token_ids": new, "prompt_token_ids": p}
                for n, (new, p) in enumerate(zip(news, prompts))
            ]
            self.rng.shuffle(rows)
            return 200, {"choices": rows, "usage": {"prompt_tokens_details": None}}
        if self.kind == "llamacpp":
            rows = [
                {"index": n, "content": "", "tokens": new} for n, new in enumerate(news)
            ]
            return 200, rows if len(rows) > 1 else rows[0]
        return 200, [{"text": "", "output_ids": new, "meta_info": {}} for new in news]

    def draw(self, prompt, how, n):
        row = self.model.rows_after(list(prompt))
        given = how.get("vllm_xargs") or {}
        if self.processor and "draftwire_seed" in given:
            params = SamplingParams(
                "coupled",
                given["draftwire_temperature"],
                given["draftwire_top_k"],
                given["draftwire_top_p"],
                int(given["draftwire_seed"]),
                sample=given["draftwire_sample"],
            )
            decider = make_decider(params, len(row))
            return int(decider.decide((), b"", row[None], len(prompt)).token)
        stock = how.get("sampling_seed" if self.kind == "sglang" else "seed")
        if self.seeded and stock is not None:
            return stock_draw(self.kind, row, how, stock, len(prompt) - 1)
        if how["temperature"] > 0:
            top_k = max(0, how["top_k"])
            seed = int(self.rng.integers(1 << 60))
            params = SamplingParams("match", how["temperature"], top_k, how["top_p"], seed)
            decider = make_decider(params, len(row))
            return int(decider.decide((), b"", row[None], len(prompt)).token)
        return int(np.argmax(row)) + (self.broken and n > 0)


def murmur3(data):
    """Return MurmurHash3 (x86, 32 bits, seed 0) of bytes, four at a time."""
    h, low = 0, 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", data):
        k = word * 0xCC9E2D51 & low
        h ^= ((k << 15 | k >> 17) & low) * 0x1B873593 & low
        h = (((h << 13 | h >> 19) & low) * 5 + 0xE6546B64) & low
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & low
    h = (h ^ h >> 13) * 0xC2B2AE35 & low
    return h ^ h >> 16


def stock_draw(kind, row, how, seed, position):
    """Return the token of a seed, as written in vLLM's and SGLang's source."""
    top_k = max(0, how["top_k"])
    params = SamplingParams("match", how["temperature"], top_k, how["top_p"])
    kept = law_of(row, params).dense(len(row))
    best, winner = -np.inf, None
    order = np.argsort(-row, kind="stable").tolist()
    # SGLang: sorted where any request of the batch has a top-k (a greedy one has 1).
    ranked = kind == "sglang" and (how["top_k"] != -1 or how["top_p"] != 1)
    for token in np.flatnonzero(kept).tolist():
        key = order.index(token) if ranked else token
        drawn = murmur3(struct.pack("<QII", seed % 2**64, position, key))
        if kind == "vllm":  # in float32, from the other end
            unit = np.float32((drawn + 0.5) * 2.0**-32)
            gumbel = -np.log(-np.log1p(-unit))
        else:
            gumbel = -np.log(-np.log(drawn / 0xFFFFFFFF))
        if np.log(kept[token]) + gumbel > best:
            best, winner = np.log(kept[token]) + gumbel, token
    return winner
