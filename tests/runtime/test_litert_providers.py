"""Execution providers: which one is asked for, and what falls back is said aloud."""

import json
from types import SimpleNamespace

import pytest
from places import FIXTURES

ort = pytest.importorskip("onnxruntime")

from draftwire.errors import ConfigError, ModelError  # noqa: E402
from draftwire.runtime.engines import onnx as onnx_engine  # noqa: E402
from draftwire.runtime.engines.draft_model import DraftModel  # noqa: E402
from draftwire.runtime.engines.engine import ModelSpec  # noqa: E402
from draftwire.runtime.engines.onnx import (  # noqa: E402
    CUDA,
    TENSORRT,
    Profile,
    cache_folder,
    choose_provider,
    provider_options,
)

TINY, CONCAT, LITERT = (
    FIXTURES / f"tiny{kind}.draft" for kind in ("", "_concat", "_litert")
)
CPU = "CPUExecutionProvider"
JETSON = [TENSORRT, CUDA, CPU]


@pytest.mark.parametrize(
    ("available", "wanted", "graph", "provider"),
    [
        (JETSON, None, "concat", TENSORRT),
        (JETSON, "auto", "concat", TENSORRT),
        ([CUDA, CPU], None, "concat", CUDA),
        (JETSON, "cuda", "concat", CUDA),
        (JETSON, None, "gqa", CPU),  # its cache lies in the CPU's memory
        (JETSON, "cpu", "concat", CPU),
        ([CPU], None, "concat", CPU),
        (["XnnpackExecutionProvider", CPU], None, "gqa", CPU),
    ],
)
def test_the_provider_is_what_is_there_and_fits(available, wanted, graph, provider):
    found, warnings = choose_provider(available, wanted, graph, name="onnxruntime 1.23")
    assert (found, warnings) == (provider, ())


def test_a_provider_that_is_not_there_is_said_and_not_asked_for():
    model = DraftModel.load(CONCAT, precision="fp32", provider="cuda")
    (warning,) = model.warnings
    assert warning.startswith("CUDA was asked for, onnxruntime")
    assert "runs on the CPU" in warning
    expected = DraftModel.load(CONCAT, precision="fp32").forward([1, 2, 3])
    assert (model.forward([1, 2, 3]) == expected).all()
    assert DraftModel.load(CONCAT).warnings == ()


def test_a_strange_provider_is_refused():
    with pytest.raises(ConfigError, match="no provider 'gpu'") as caught:
        DraftModel.load(TINY, provider="gpu")
    assert "tensorrt" in caught.value.hint


def lying(**changes):
    """The real onnxruntime, which claims to have a Jetson's providers."""
    fake = SimpleNamespace(**{k: getattr(ort, k) for k in dir(ort) if k[0] != "_"})
    fake.__version__ = ort.__version__
    fake.get_available_providers = lambda: JETSON
    for name, value in changes.items():
        setattr(fake, name, value)
    return fake


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_onnxruntime_drops_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(onnx_engine, "_import_onnxruntime", lying)
    model = DraftModel.load(CONCAT, provider="cuda")
    assert model.warnings == ("onnxruntime fell back from CUDA to CPU without an error",)
    assert "from Tensorrt to CPU" in DraftModel.load(CONCAT).warnings[0]
    assert model.forward([1, 2, 3]).shape == (264,)


def test_a_provider_that_fails_leaves_the_cpu(monkeypatch):
    def session(path, options, providers):
        if providers[0] != CPU:
            raise RuntimeError("CUDA failure 35: the driver is too old")
        return ort.InferenceSession(path, options, providers=providers)

    fake = lying(InferenceSession=session)
    monkeypatch.setattr(onnx_engine, "_import_onnxruntime", lambda: fake)
    model = DraftModel.load(CONCAT, provider="cuda")
    (warning,) = model.warnings
    assert "CUDA cannot run the draft" in warning and "driver is too old" in warning
    assert model.forward([1]).shape == (264,)
    with pytest.raises(ModelError, match="memory of the CPU"):
        DraftModel.load(TINY, provider="cuda")


def test_a_session_whose_nodes_all_run_on_the_cpu_is_noticed():
    """Azure's provider is in every session that asks for it, and never runs a node."""
    name = "AzureExecutionProvider"
    if name not in ort.get_available_providers():
        pytest.fail("this onnxruntime has no provider to try this with")
    (warning,) = DraftModel.load(CONCAT, provider=name).warnings
    assert warning == "Azure is in the session, but every node of the draft ran on the CPU"


@pytest.mark.parametrize(
    ("nodes", "warning"),
    [
        ({CUDA: 5}, None),
        ({CUDA: 4, CPU: 2}, "2 of 6 nodes ran on the CPU, the others on CUDA"),
        ({CPU: 6}, "every node of the draft ran on the CPU"),
        ({}, None),  # this onnxruntime does not profile
    ],
)
def test_where_nodes_ran_is_read_from_the_profile(nodes, warning, tmp_path):
    events = [{"cat": "Session", "name": "load", "args": {}}]
    for provider, count in nodes.items():
        for i in range(count):
            node = {"cat": "Node", "name": f"{provider}{i}", "args": {}}
            events += [node, {**node, "args": {"provider": provider}}] * 2
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    options = SimpleNamespace()
    profile = Profile(options)
    assert options.enable_profiling
    found = onnx_engine.first_run(
        SimpleNamespace(step=lambda token, past: None),
        SimpleNamespace(end_profiling=lambda: str(path)),
        CUDA,
        profile,
        cache=tmp_path,
    )
    assert (warning in found[0]) if warning else found == ()


def test_tensorrt_builds_once_and_says_so(tmp_path):
    spec = ModelSpec(2, 1, 16, 264, 160, "concat")
    cache = cache_folder({"XDG_CACHE_HOME": str(tmp_path)}, "ab" * 32, "1.23.2")
    options = provider_options(TENSORRT, spec, cache)
    assert options["trt_engine_cache_path"] == str(cache) and cache.is_dir()
    assert "past_key_values.1.value:1x1x160x16" in options["trt_profile_max_shapes"]
    assert provider_options(CUDA, spec, tmp_path / "none") == {}
    said = []

    def run():
        (tmp_path / "profile.json").write_text("[]")
        onnx_engine.first_run(
            SimpleNamespace(step=lambda t, p: (cache / "a.engine").write_text("")),
            SimpleNamespace(end_profiling=lambda: str(tmp_path / "profile.json")),
            TENSORRT,
            Profile(SimpleNamespace()),
            cache=cache,
            say=said.append,
        )

    run()
    assert len(said) == 2 and "once" in said[0] and "built" in said[1]
    run()
    assert len(said) == 2


def test_where_engines_are_kept(tmp_path):
    for environ, place in (
        ({"CACHE_DIRECTORY": "/var/cache/draftwire:/x", "HOME": "/home/me"}, "/var/cache"),
        ({"HOME": "/home/me"}, "/home/me/.cache"),
    ):
        folder = str(cache_folder(environ, "f" * 64, "1"))
        assert folder.startswith(f"{place}/draftwire/")
    file = tmp_path / "file"
    file.write_text("")
    spec = ModelSpec(2, 1, 16, 264, 160, "concat")
    with pytest.raises(ConfigError, match="cannot be made"):
        provider_options(TENSORRT, spec, file / "folder")


def test_litert_has_no_providers():
    with pytest.raises(ConfigError, match="litert has no provider 'cuda'"):
        DraftModel.load(LITERT, engine="litert", provider="cuda")
