"""One trace from the device's prompt to the verifier's commits, with the real SDK."""

import http.server
import threading

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("opentelemetry.sdk")

import verifier_lab as lab  # noqa: E402
import verifier_process  # noqa: E402
from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)
from places import FIXTURES  # noqa: E402
from places import draftwire as run  # noqa: E402

import draftwire  # noqa: E402
from draftwire import tracing  # noqa: E402
from draftwire.errors import DraftwireError  # noqa: E402
from draftwire.verifier.backends.onnx_target import OnnxTarget  # noqa: E402

DRAFT, TINY = FIXTURES / "tiny.draft", FIXTURES / "tiny.target"


@pytest.fixture
def spans(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter.get_finished_spans
    provider.shutdown()


def serving():
    """A verifier in this process, so that one exporter hears both ends."""
    return lab.serving(OnnxTarget(TINY, slots=4, threads=1))


async def generate(url, **options):
    async with draftwire.aio.connect(url, draft=DRAFT, silence_s=15) as session:
        stream = session.generate("Once upon a time", max_new_tokens=24, **options)
        async for _ in stream:
            pass
        return stream.report


def named(found, name):
    return [span for span in found if span.name == name]


async def test_one_trace_from_the_prompt_to_each_commit(spans):
    async with serving() as verifier:
        with trace.get_tracer("robot").start_as_current_span("control loop") as outer:
            report = await generate(verifier.url)
    (device,) = named(spans(), "draftwire.generate")
    (cloud,) = named(spans(), "draftwire.verify")
    assert device.parent.span_id == outer.get_span_context().span_id
    assert cloud.parent.span_id == device.context.span_id and cloud.parent.is_remote
    commits, rounds = named(spans(), "draftwire.commit"), named(spans(), "draftwire.round")
    reads = named(spans(), "draftwire.prefill")
    assert {s.context.trace_id for s in spans()} == {device.context.trace_id}
    assert {s.parent.span_id for s in (*commits, *reads)} == {cloud.context.span_id}
    assert {s.parent.span_id for s in rounds} == {device.context.span_id}
    assert len(commits) == report["target_forwards"] and reads
    committed = sum(s.attributes["draftwire.committed"] for s in commits)
    assert committed == device.attributes["gen_ai.usage.output_tokens"] == report["tokens"]
    accepted = sum(s.attributes["draftwire.accepted"] for s in commits)
    assert accepted == report["accepted"]
    assert cloud.attributes["gen_ai.response.finish_reasons"] == (report["finish"],)
    for span in (*commits, *reads):
        assert span.start_time <= span.end_time <= cloud.end_time


async def test_a_failure_is_the_spans_status(spans, monkeypatch):
    def broken(self, parts, on_exit=None):
        raise RuntimeError("out of order")

    async with serving() as verifier:
        monkeypatch.setattr(OnnxTarget, "forward", broken)
        with pytest.raises(DraftwireError, match="out of order"):
            await generate(verifier.url)
    (device,) = named(spans(), "draftwire.generate")
    assert "out of order" in device.status.description
    clouds = named(spans(), "draftwire.verify")  # it is opened anew once
    assert {s.status.description for s in clouds} == {"error"}
    assert {s.parent.span_id for s in clouds} == {device.context.span_id}


@pytest.mark.parametrize("deaf", ["device", "verifier", "both"])
async def test_a_peer_that_does_not_trace_works_as_before(spans, monkeypatch, deaf):
    if deaf in ("device", "both"):
        monkeypatch.setattr("draftwire.runtime.greeting.tracing", lambda: False)
    if deaf in ("verifier", "both"):
        monkeypatch.setattr("draftwire.verifier.greeting.tracing", lambda: False)
    async with serving() as verifier:
        assert (await generate(verifier.url))["tokens"] == 24
    (device,) = named(spans(), "draftwire.generate")
    (cloud,) = named(spans(), "draftwire.verify")
    assert cloud.parent is None  # a trace of its own
    assert device.context.trace_id != cloud.context.trace_id


async def test_nobody_pays_who_has_set_up_nothing():
    assert not tracing.tracing()
    assert tracing.begin_trace("a", "CLIENT", {}) is None
    async with serving() as verifier:
        assert (await generate(verifier.url))["tokens"] == 24


@pytest.mark.parametrize("carried", [b"", b"x" * 26, bytes(26), b"\0" + b"x" * 9])
def test_what_is_no_traceparent_begins_a_trace(spans, carried):
    found = tracing.begin_trace("a", "SERVER", {}, carried)
    assert len(found.carried) == 26 and found.carried[0] == 0
    found.end({}, "broken")
    (span,) = spans()
    assert span.parent is None and span.status.description == "broken"


def test_commands_export_where_the_environment_says(tmp_path):
    """Two processes and a collector that speaks OTLP: one trace of both."""
    service = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
    )
    found = {}

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            said = service.ExportTraceServiceRequest.FromString(body)
            for resource in said.resource_spans:
                name = next(
                    a.value.string_value
                    for a in resource.resource.attributes
                    if a.key == "service.name"
                )
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        found.setdefault(span.trace_id, set()).add((name, span.name))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    where = f"http://127.0.0.1:{collector.server_port}"
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": where}
    cloud = {"folder": tmp_path, "OTEL_SERVICE_NAME": "cloud", **traced}
    with verifier_process.serving("--target", TINY, **cloud) as (process, url):
        words = ["generate", "Once", "--verifier", url, "--draft", str(DRAFT)]
        words += ["--max-new-tokens", "8"]
        done = run(*words, folder=tmp_path, OTEL_SERVICE_NAME="board", **traced)
        assert done.returncode == 0, done.stderr
        process.terminate()
        assert process.wait(60) == 0
    collector.shutdown()
    collector.server_close()
    (both,) = found.values()
    assert {("board", "draftwire.generate"), ("cloud", "draftwire.commit")} <= both
