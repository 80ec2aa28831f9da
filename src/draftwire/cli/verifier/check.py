"""``draftwire verifier check``: does a verifier or a device do as specified?"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import numpy as np

from draftwire.cli import INTERRUPTED, _common
from draftwire.cli._ask import Verifier, gone
from draftwire.errors import ConfigError, TransportError
from draftwire.io import parse_json, run_async
from draftwire.packages import load_draft, load_tokenizer
from draftwire.reference import draft_path, target_path
from draftwire.sampling import NOISES, SamplingParams, make_proposer
from draftwire.transport.answers import clean
from draftwire.transport.dial import check_url
from draftwire.transport.messages import Hello
from draftwire.verifier.kit.peer import Kit
from draftwire.verifier.kit.rows import Result, run_rows
from draftwire.verifier.kit.target import KIT_HELLO, NAME

HEALTH_SCHEMA = "draftwire.verifier/1"
SCHEMA = "draftwire.conformance/2"


def run(args: argparse.Namespace) -> int:
    """Check a verifier, or with ``--device`` a device."""
    if args.device:
        args.command = [word for word in (args.url, *args.command) if word]
        return _mimic(args)
    if args.explain_seed is not None:
        return _explain(args)
    if args.url is None:
        raise ConfigError("no URL", hint="ws://HOST:PORT, or --device for a device")
    return _check(args)


def _check(args: argparse.Namespace) -> int:
    # Its health is no secret: only what a token would follow needs TLS.
    check_url(args.url, insecure=args.insecure or args.health)
    token_file = _common.read_settings(args)["token_file"].value
    verifier = Verifier(args.url, token_file, args.ca, insecure=args.insecure)
    return _health(args, verifier) if args.health else _conformance(args, verifier)


def _health(args: argparse.Namespace, verifier: Verifier) -> int:
    try:
        body = verifier.ask().body
    except (OSError, ValueError) as error:
        raise gone(args.url, error) from error
    try:
        health = parse_json(body)
        line = str(health["status"])
        if "targets" in health:  # who shows no token is not told
            targets = [f"{t['name']} {t['version']}" for t in health["targets"]]
            line += f": {', '.join(targets)}; {health['sessions']} devices"
    except (ValueError, KeyError, TypeError) as error:
        message = f"what answers at {args.url} is no draftwire verifier"
        raise TransportError(message) from error
    if _common.give_json(args, {"schema": HEALTH_SCHEMA, **health}):
        print(clean(line, 2000))
    return 0 if health["status"] == "ok" else TransportError.exit_code


def _conformance(args: argparse.Namespace, verifier: Verifier) -> int:
    from draftwire.verifier.kit.checks import CHECKS, prepare

    kit = _kit(args, verifier)
    seconds = 10.0 if args.quick else args.seconds

    async def run() -> list[Result]:
        await prepare(kit, seconds=seconds)
        return await run_rows(kit, CHECKS, _say_row(args), seconds=max(120.0, 2 * seconds))

    results = run_async(run())
    return _show_rows(args, args.url, results)


def _say_row(args: argparse.Namespace) -> Callable[[Result], None]:
    """Return what tells of a row on stderr, where somebody looks."""
    tell = _common.progress(args)
    return lambda result: tell(f"{result.section} {result.name}")


def _show_rows(
    args: argparse.Namespace, whom: str, results: list[Result], *, whole: bool = True
) -> int:
    """Print the rows of a conformance kit (``whole``: nobody has cut it off) and what they
    mean; return the exit code."""
    _common.progress(args)("")
    kinds = ("conforms", "fails", "not tested")
    counts = {kind: sum(r.result == kind for r in results) for kind in kinds}
    good = whole and counts["conforms"] > 0 and not counts["fails"]
    cut_off = not whole and not counts["fails"]
    what = "conforms" if good else "may conform" if cut_off else "does not conform"
    document = {
        "schema": SCHEMA,
        "url": whom,
        "protocol": "draftwire.v2",
        "conforms": good,
        "counts": counts,
        "rows": [r._asdict() for r in results],
    }
    if _common.give_json(args, document):
        width = max((len(r.name) for r in results), default=0)
        for r in results:
            if not args.quiet or r.result == "fails":
                line = f"{r.section:<4} {r.name:<{width}}  {r.result:<10}  "
                print((line + clean(r.detail)).rstrip())
        print(
            f"{whom} {what} to draftwire.v2: "
            f"{counts['conforms']} rows conform, {counts['fails']} fail, "
            f"{counts['not tested']} not tested{'' if whole else ', then interrupted'}"
        )
    if not whole:
        return INTERRUPTED
    return 0 if good else TransportError.exit_code


def _kit(args: argparse.Namespace, verifier: Verifier) -> Kit:
    hello, words = KIT_HELLO, None
    if args.target != NAME:
        draft = load_draft(draft_path() if args.draft is None else args.draft)
        words = draft.tokenizer_path
        hello = Hello(
            agent=KIT_HELLO.agent,
            target=args.target,
            tokenizer=bytes.fromhex(draft.family.tokenizer),
            backbone=bytes.fromhex(draft.family.backbone or ""),
            vocab_size=draft.vocab_size,
            draft_id=bytes.fromhex(draft.id),
            family=draft.family.name,
        )
    hello = replace(hello, noise=NOISES)
    how = (verifier.token, verifier.tls, args.patience, args.exhaust)
    kit = Kit(args.url, hello, *how)
    kit.tokenizer = words
    if args.quick:
        kit.long = 120
    return kit


# ---- a stock server's seeds


def _explain(args: argparse.Namespace) -> int:
    """Print what a stock server should sample for a seed, and how to ask it."""
    from draftwire.verifier.backends.base import SlotInput
    from draftwire.verifier.backends.loading import Loader

    seed, noise = args.explain_seed, args.noise
    if noise == "murmur3/sglang" and args.top_k and args.top_p < 1:
        raise ConfigError("SGLang measures top_p before top_k", hint="give one of them")
    folder = target_path("v1") if args.target == "" else Path(args.target)
    target = Loader(slots=1)(folder)
    words = load_tokenizer(getattr(target, "tokenizer_path", folder / "tokenizer.json"))
    shape = (args.temperature, args.top_k, args.top_p)
    proposer = make_proposer(
        SamplingParams("coupled", *shape, seed, noise=noise), target.vocab_size
    )
    first = [] if target.bos_id is None else [target.bos_id]
    prompt = [*first, *words.encode(args.prompt)]
    text, slot = list(prompt), target.allocate()
    rows: list[dict[str, Any]] = []
    while len(text) < min(len(prompt) + args.tokens, target.context):
        start = len(text) - 1 if rows else 0
        new = np.array(text[start:], np.int64)
        logits = target.forward([SlotInput(slot, start, new, 1)])[0][-1]
        found = proposer.propose(logits, len(text))
        row: dict[str, Any] = {"position": len(text), "id": found.token}
        row.update(text=words.decode([found.token]), probability=found.confidence)
        rows.append(row)
        text.append(found.token)
    signed = seed - (seed >> 63 << 64)
    sampling = dict(zip(("temperature", "top_k", "top_p"), shape))
    if noise == "murmur3/sglang":
        path = "/generate"
        sampling.update(top_k=args.top_k or target.vocab_size, sampling_seed=signed)
        sampling.update(max_new_tokens=len(rows), ignore_eos=True)
        body: dict[str, object] = {"input_ids": prompt, "sampling_params": sampling}
    else:
        path = "/v1/completions"
        body = {"prompt": prompt, **sampling, "seed": signed}
        body.update(max_tokens=len(rows), ignore_eos=True, return_token_ids=True)
    url = (args.url or "http://127.0.0.1:8000").rstrip("/") + path
    curl = f"curl {shlex.quote(url)} -H 'Content-Type: application/json' -d "
    curl += shlex.quote(json.dumps(body))
    document = {"schema": "draftwire.seed/1", "noise": noise, "seed": seed, "tokens": rows}
    if _common.give_json(args, {**document, "prompt": prompt, "ask": body, "curl": curl}):
        print(f"{'position':>8} {'id':>8} {'chance':>7}  text")
        for row in rows:
            shown = f"{row['position']:8} {row['id']:8} {row['probability']:7.4f}"
            print(f"{shown}  {row['text']!r}")
        print(f"\n{curl}")
    return 0


# ---- a device


def _mimic(args: argparse.Namespace) -> int:
    from draftwire.verifier.kit.device_rows import EXERCISES, try_device
    from draftwire.verifier.kit.mimic import Mimic

    if not any(args.only in row.name for row in EXERCISES):
        hint = "leave --only out: the table has all names"
        raise ConfigError(f"no row has {args.only!r} in its name", hint=hint)
    if args.command and shutil.which(args.command[0]) is None:
        hint = "give the device's command behind --"
        raise ConfigError(f"cannot run {shlex.join(args.command)}", hint=hint)
    results: list[Result] = []
    told = _say_row(args)

    def tell(result: Result) -> None:
        results.append(result)
        told(result)

    async def device(url: str) -> None:
        words = [word.replace("{url}", url) for word in args.command]
        quiet = None if args.verbose else asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sys.stderr if args.verbose else quiet,
            stderr=quiet,
            env={**os.environ, "DRAFTWIRE_VERIFIER": url},
            start_new_session=True,  # Ctrl-C is ours: it is no fault of the device's
        )
        try:
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def run() -> None:
        mimic = Mimic(device if args.command else None, args.patience, port=args.port)
        async with mimic.listening():
            if not args.command:
                print(f"listening on {mimic.url}", file=sys.stderr, flush=True)
            await try_device(mimic, tell, args.only)

    whole = True
    try:
        run_async(run())
    except KeyboardInterrupt:  # what was seen is shown
        whole = False
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot run {shlex.join(args.command) or 'a mimic'}: {error}",
            hint="give the device's command behind --, or another --port",
        ) from error
    whom = shlex.join(args.command) or "the device"
    return _show_rows(args, whom, results, whole=whole)
