"""What a verifier tells a monitor: Prometheus' text format, in the names of the field.

What vLLM has under ``vllm:`` is here under ``draftwire:`` with the same meaning, so boards
and alerts that are known need another prefix and no other thought; docs/operating.md has
the table, ``docs/grafana.json`` a board.
"""

from __future__ import annotations

import os
import resource
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from draftwire import __version__
from draftwire.verifier.tally import Histogram

if TYPE_CHECKING:
    from draftwire.verifier.registry import Served
    from draftwire.verifier.serving.service import VerifierService

# Source: Prometheus text exposition format 0.0.4,
# https://prometheus.io/docs/instrumenting/exposition_formats/
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "draftwire:"

# Name, attribute that it stands in (``-``: see below) and help. One that ends in _total is
# a counter, one whose value is a histogram is that, all others are gauges.
_OF_TARGET = """
num_requests_running - Streams that run.
num_requests_waiting scheduler.waiting Blocks and prompts that wait for a forward.
kv_cache_usage_perc - Share of the KV slots in use by streams that run.
num_preemptions_total tally.preemptions KV slots taken from streams whose device was away.
num_rebuilds_total tally.rebuilds Texts read again, for want of their slot.
prompt_tokens_total tally.prompt_tokens Ids of prompts.
generation_tokens_total tally.emitted Tokens committed.
prefix_cache_queries_total tally.prefix_queries Ids of prompts looked for in kept slots.
prefix_cache_hits_total tally.prefix_hits Those that were there.
prefix_cache_copied_total tally.prefix_copied Those that another slot goes on holding.
spec_decode_num_drafts_total tally.drafts Verifications that judged drafted tokens.
spec_decode_num_draft_tokens_total tally.drafted Drafted tokens judged.
spec_decode_num_accepted_tokens_total tally.accepted Drafted tokens accepted.
spec_decode_num_accepted_tokens_per_pos_total - Those at each place of a draft.
spec_decode_queue_time_seconds tally.queue_s Waiting of a block for its forward.
spec_decode_verify_time_seconds tally.verify_s Forwards that carried a block.
request_success_total - Streams that ended, by how.
time_to_first_token_seconds tally.first_s From a stream's open to its first token.
request_time_per_output_token_seconds tally.per_token_s Mean of a stream after its first.
e2e_request_latency_seconds tally.whole_s From a stream's open to its end.
iterations_total - Forwards of the target.
iteration_tokens_total counters.tokens Tokens computed in them.
iteration_seconds_total counters.compute_s Time in them.
iteration_batch_size - Blocks in a forward that verifies.
iteration_requests_failed_total counters.failed Blocks and prompts that ended in an error.
iteration_requests_cancelled_total counters.cancelled Those that nobody waited for any more.
iteration_held_seconds_total scheduler.held_s Time that forwards waited for drafts.
lookup_num_tokens_total tally.found Looked-up tokens judged beside the drafts.
lookup_num_right_tokens_total tally.found_right Looked-up tokens accepted.
leaves_num_tokens_total tally.leaves Second choices of devices and drafts behind them, judged.
leaves_num_right_tokens_total tally.leaves_right Those accepted.
beside_num_wanted_tokens_total tally.wanted Drafts forwards were worth, beside the target.
beside_num_spared_tokens_total tally.spared Those of them that devices had sent.
near_ties_total tally.near_ties Tokens chosen too narrowly to tell.
logit_error backend.logit_error Logits may be off by so much.
connection_bytes_limit - Most memory that one device can take, its KV slot apart.
"""
_OF_VERIFIER = """
info - 1, with the version of draftwire.
draining draining 1 while going away.
connections greeted Devices that have said hello.
strangers lobby.strangers Sockets without a hello.
turned_away_total lobby.turned_away Sockets that were not taken.
refusals_total - Requests and streams refused, by the word that says why.
streams_total kept.opened Streams opened.
resumes_total - Lost links, by what came of them.
provisionals_total kept.provisionals Hints of early exits sent.
kept_streams - Streams that wait for their device.
kept_stream_bytes kept.kept_bytes Memory of their texts, about.
kept_stream_slots - KV slots kept for them.
prefix_cache_texts - Ended texts kept for the next turn.
prefix_cache_slots - KV slots kept with them.
prefix_cache_evictions_total kept.prefixes.evicted Such slots that streams needed more.
received_bytes_total bytes_in Payload received.
sent_bytes_total bytes_out Payload sent.
"""
_OF_TOKEN = """
account_connections connections Open connections.
account_requests_running streams Running streams.
account_paused_seconds_total paused_s Time that its devices were held back.
"""
_OF_GATEWAY = """
gateway_spilled_total - Streams that were opened away from home.
gateway_lost_total - Connections to verifiers that ended under a device.
gateway_verifier_up - 1 while its health is well.
gateway_verifier_connections - Open connections to it.
gateway_verifier_streams_total - Streams opened and resumed there.
"""
_OF_PROCESS = """
process_resident_memory_bytes - Memory.
process_cpu_seconds_total - Processor time.
process_open_fds - File descriptors in use.
"""  # named as client libraries name them
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def _rows(table: str) -> list[list[str]]:
    return [line.split(" ", 2) for line in table.strip().splitlines()]


# Name -> help.
METRICS = {
    name: told
    for table in (_OF_TARGET, _OF_VERIFIER, _OF_TOKEN, _OF_GATEWAY, _OF_PROCESS)
    for name, _, told in _rows(table)
}


def metrics_page(service: VerifierService) -> str:
    """Return all metrics of this moment in Prometheus' text format."""
    lines: dict[str, list[str]] = {}
    for name, value, labels in _samples(service):
        full = name if name.startswith("process_") else PREFIX + name
        kind = "counter" if name.endswith("_total") else "gauge"
        kind = "histogram" if isinstance(value, Histogram) else kind
        head = [f"# HELP {full} {METRICS[name]}", f"# TYPE {full} {kind}"]
        into = lines.setdefault(name, head)  # a name's samples stand together
        if isinstance(value, Histogram):
            for le, count in value.cumulative():
                into.append(f"{full}_bucket{_tags({**labels, 'le': le})} {count}")
            into.append(f"{full}_sum{_tags(labels)} {value.sum:.10g}")
            into.append(f"{full}_count{_tags(labels)} {count}")
        else:
            into.append(f"{full}{_tags(labels)} {value:.10g}")
    return "".join(line + "\n" for found in lines.values() for line in found)


_Sample = Iterator["tuple[str, Any, Mapping[str, str]]"]


def _of(table: str, owner: object, labels: Mapping[str, str]) -> _Sample:
    """Yield what stands in attributes of ``owner``."""
    for name, where, _ in _rows(table):
        if where != "-":
            yield name, attrgetter(where)(owner), labels


def _samples(service: VerifierService) -> _Sample:
    kept, prefixes = service.kept, service.kept.prefixes
    all_served = service.registry.all
    yield "info", 1, {"version": __version__}
    yield from _of(_OF_VERIFIER, service, {})
    yield "kept_streams", len(kept), {}
    yield "kept_stream_slots", sum(map(kept.slots, all_served)), {}
    yield "prefix_cache_texts", len(prefixes), {}
    yield "prefix_cache_slots", sum(map(prefixes.slots, all_served)), {}
    for code, count in sorted(service.refusals.items()):
        yield "refusals_total", count, {"code": code}
    for how in ("resumed", "refused", "expired", "evicted"):
        yield "resumes_total", getattr(kept, how), {"outcome": how}
    for usage in service.accounts.all:
        yield from _of(_OF_TOKEN, usage, {"account": usage.account.name})
    for served in all_served:
        yield from _of_target(served, service)
    yield from service.more_metrics()
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield "process_cpu_seconds_total", used.ru_utime + used.ru_stime, {}
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    yield "process_resident_memory_bytes", pages * resource.getpagesize(), {}
    yield "process_open_fds", len(os.listdir("/proc/self/fd")), {}


def _of_target(served: Served, service: VerifierService) -> _Sample:
    backend, tally, counts = served.backend, served.tally, served.counters
    of = {"model_name": backend.name, "model_version": backend.version}
    running = sum(usage.streams_of[served] for usage in service.accounts.all)
    yield "num_requests_running", running, of
    kept = service.kept
    busy = tally.slots - kept.slots(served) - kept.prefixes.slots(served)
    yield "kv_cache_usage_perc", busy / backend.slots, of
    yield from _of(_OF_TARGET, served, of)
    sizes = Histogram(_BATCHES)
    for size, times in counts.batch_sizes.items():
        sizes.add(size, times)
    yield "iteration_batch_size", sizes, of
    yield "connection_bytes_limit", service.limits.session_bytes(backend.context), of
    for position, times in enumerate(tally.by_position):
        where = {**of, "position": str(position)}
        yield "spec_decode_num_accepted_tokens_per_pos_total", times, where
    for reason, times in sorted(tally.finished.items()):
        yield "request_success_total", times, {**of, "finished_reason": reason}
    reads = counts.prefill_forwards
    for kind, times in (("prefill", reads), ("verify", counts.forwards - reads)):
        yield "iterations_total", times, {**of, "kind": kind}


def _tags(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    cells = (f'{key}="{word.translate(escapes)}"' for key, word in labels.items())
    return "{" + ",".join(cells) + "}"
