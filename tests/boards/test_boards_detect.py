"""Each board is known from the files it shows; what is broken or foreign is said."""

import json
import os
import subprocess
import sys

import pytest
from fake_boards import BOARDS, Cores, Fake, build
from places import draftwire, environment

from draftwire.boards import detect as detect_module
from draftwire.boards.cores import architecture, clusters, parse_list
from draftwire.boards.detect import detect
from draftwire.boards.profiles import load_profiles
from draftwire.boards.sensors import chips, find_sensors, open_to_all
from draftwire.boards.tree import Tree
from draftwire.cli import main
from draftwire.cli.boards import render

PROFILES = load_profiles()


@pytest.fixture(params=sorted(BOARDS))
def fake(request):
    return BOARDS[request.param]


def test_there_is_a_fake_for_every_profile():
    assert {fake.profile for fake in BOARDS.values()} == set(PROFILES)


def test_each_board_is_what_it_is(tmp_path, fake):
    found = detect(build(tmp_path, fake), PROFILES)
    assert (found.profile.name, found.title) == (fake.profile, fake.title)
    assert found.arch == fake.arch
    assert found.libc == f"glibc {fake.glibc}"
    assert found.system["PRETTY_NAME"] == fake.os
    assert list(found.pythons) == [fake.python]
    assert found.kernel == "5.15.148-fake"
    assert found.memory.total == fake.memory_kib * 1024
    assert found.memory.free_4mb == 321
    count = sum(cores.count for cores in fake.cores)
    assert sorted(found.online) == [n for n in range(count) if n not in fake.offline]
    kinds = {}
    for cores in fake.cores:
        kinds[cores.kind] = kinds.get(cores.kind, 0) + cores.count
    assert {c.kind: len(c.possible) for c in found.clusters} == kinds
    assert found.heat_c == {"cpu-thermal": 45.5}, "a zone at -256 C is switched off"
    if fake.l4t:
        assert found.l4t.version == fake.l4t[1:].replace(" ", ".")
        assert found.l4t.jetpack
    if fake.mode is not None:
        assert found.mode.name == fake.modes[fake.mode]
        assert found.mode.default == fake.modes[fake.default_mode]
        assert found.mode.names == fake.modes
    rails = {rail for sensor in found.sensors for rail in sensor.rails}
    wanted = {rail for chip in fake.rails for rail in chip if rail != "NC"}
    assert wanted <= rails and "NC" not in rails
    assert all(sensor.readable for sensor in found.sensors)
    if wanted:
        assert not [text for text in found.warnings if "total is" in text]
    generic = [text for text in found.warnings if "no board that draftwire knows" in text]
    assert bool(generic) == fake.profile.startswith("generic-")
    assert any("offline" in text for text in found.warnings) == bool(fake.offline)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert next(iter(document)) == "schema"
    assert document["schema"] == "draftwire.detect/1"
    assert document["python"]["running"] is None and document["engines"] is None
    assert str(tmp_path) in document["engines_why_null"]
    assert os.uname().release not in json.dumps(document), "of that root alone"
    text = render(found)
    assert fake.title in text and max(map(len, text.splitlines())) <= 100


def test_an_image_that_points_to_absolute_paths_stays_inside(tmp_path):
    root = build(tmp_path / "root", BOARDS["orin-nano-super"])
    (root / "etc/secret").symlink_to("/etc/passwd")
    (root / "etc/up").symlink_to("../../../../../../../../etc/passwd")
    (root / "etc/loop").symlink_to("loop")
    tree = Tree(root)
    assert tree.text("etc/secret") is None and tree.text("etc/up") is None
    assert tree.text("etc/loop") is None
    assert "MAXN_SUPER" in tree.text("etc/nvpmodel.conf")


def test_an_empty_root_is_nobody(tmp_path):
    found = detect(tmp_path, PROFILES)
    assert found.profile.generic and found.arch == ""
    assert found.memory.total is None and not found.online and found.mode is None
    assert "processor core" in " ".join(found.warnings)
    assert render(found)


def test_broken_files_are_not_believed(tmp_path):
    root = build(tmp_path, BOARDS["orin-nano-super"])
    for name, data in (
        ("proc/device-tree/model", b"p\xff\xff\xff\xff\0"),
        ("proc/device-tree/compatible", b"\xff\xfe\0\0\0junk"),
        ("etc/nv_tegra_release", b"# Rxx (release)\n\xff"),
        ("etc/nvpmodel/nvpmodel_board.conf", b"< POWER_MODEL ID=x NAME= >"),
        ("var/lib/nvpmodel/status", b"pmode:9"),
        ("sys/devices/system/cpu/online", b"0-99999999,a,-3"),
        ("proc/meminfo", b"MemTotal: lots\n"),
        ("proc/buddyinfo", b"Node 0, zone DMA x\n"),
        ("proc/cpuinfo", b"processor : one\n\nCPU part : 0xzz\n"),
        ("sys/class/hwmon/hwmon3/name", b"\xff"),
        ("sys/class/thermal/thermal_zone0/temp", b"hot"),
        ("usr/lib/os-release", b"\x00\xff="),
    ):
        (root / name).write_bytes(data)
    found = detect(root, PROFILES)
    assert found.profile.name == "generic-aarch64" and found.l4t is None
    assert found.mode.number == 9 and found.mode.name is None
    assert "number alone" in " ".join(found.warnings)
    assert found.memory.total is None and found.memory.free_4mb is None
    json.dumps(found.to_dict(), allow_nan=False)
    render(found)
    (root / "proc/meminfo").unlink()
    (root / "proc/meminfo").mkdir()
    assert detect(root, PROFILES).memory.total is None, "a folder is no file"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3", (0, 1, 2, 3)), ("0,2-3\n", (0, 2, 3)), ("", ()), (None, ()), ("3-1", ())]
    + [("x,1", (1,)), ("0-100000", ())],
)
def test_kernel_lists(text, numbers):
    assert parse_list(text) == numbers


def test_a_core_that_is_offline_keeps_its_kind(tmp_path):
    cores = (Cores("Denver 2", 2), Cores("Cortex-A57", 4))
    fake = Fake("jetson-tx2", "", cores=cores, offline=(0, 5))
    found = clusters(Tree(build(tmp_path, fake)))
    assert [(c.kind, c.possible, c.online) for c in found] == [
        ("Denver 2", (0, 1), (1,)),
        ("Cortex-A57", (2, 3, 4, 5), (2, 3, 4)),
    ]


def test_locked_clocks_are_seen(tmp_path):
    root = build(tmp_path, BOARDS["orin-nano-super"])
    for path in root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_min_freq"):
        path.write_text("1728000\n")
    assert "clock locked" in render(detect(root, PROFILES))


def test_a_container_is_seen(tmp_path):
    root = build(tmp_path, BOARDS["orin-nx"])
    for name, text in (
        (".dockerenv", ""),
        ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
        ("sys/fs/cgroup/memory.max", "1073741824\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "etc/nv_tegra_release").unlink()
    dpkg = root / "var/lib/dpkg/status"
    dpkg.parent.mkdir(parents=True)
    dpkg.write_text("Package: nvidia-l4t-core\nStatus: ok\nVersion: 36.4.0-20240912\n")
    found = detect(root, PROFILES)
    assert found.container and found.quota == 1.5
    assert found.memory.limit == 1 << 30
    assert found.l4t.version == "36.4.0"


def test_an_architecture_without_cpuinfo_is_read_from_a_program(tmp_path):
    for name, arch in (("pi5", "aarch64"), ("unknown-armv7", "armv7l"), ("pc", "x86_64")):
        root = build(tmp_path / name, BOARDS[name])
        (root / "proc/cpuinfo").unlink()
        assert architecture(Tree(root)) == arch


def test_an_unreadable_sensor_says_which_command_opens_it(tmp_path, monkeypatch):
    root = build(tmp_path, BOARDS["orin-nano-super"])
    denied = Tree(root)
    why = lambda self, name: "permission" if "curr" in name else ""  # noqa: E731
    monkeypatch.setattr(Tree, "why_unreadable", why)
    (sensor,) = find_sensors(denied)
    assert not sensor.readable and sensor.why_not == "permission"
    assert "90-draftwire-power.rules" in sensor.fix and "udevadm" in sensor.fix
    assert subprocess.run(["sh", "-n", "-c", sensor.fix], check=False).returncode == 0


@pytest.mark.parametrize("chip", sorted({*chips()} - {"ina3221"}))
def test_a_hat_with_any_power_chip_is_a_sensor(tmp_path, chip):
    root = build(tmp_path, BOARDS["pi4"])
    folder = root / "sys/class/hwmon/hwmon4"
    folder.mkdir(parents=True)
    for name, text in (("name", chip), ("in1_input", "5000"), ("power1_input", "6200000")):
        (folder / name).write_text(text)
    (sensor,) = find_sensors(Tree(root))
    rail = chips()[chip].get("label") or chip  # of a driver that names none
    assert (sensor.driver, sensor.rails, sensor.readable) == (chip, (rail,), True)
    rules = root / "etc/udev/rules.d"
    rules.mkdir(parents=True)
    (rules / "80-ours.rules").write_text(f'ATTR{{name}}=="{chip}", RUN+="..."')
    assert open_to_all(Tree(root)) == ["/etc/udev/rules.d/80-ours.rules"]


def test_one_channel_that_fails_does_not_hide_the_sensor(tmp_path):
    root = build(tmp_path, BOARDS["agx-orin"])
    (root / "sys/class/hwmon/hwmon3/curr3_input").unlink()
    found = detect(root, PROFILES)
    assert all(sensor.readable for sensor in found.sensors)


def test_the_command_as_a_user_meets_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = build(tmp_path / "root", BOARDS["agx-thor"])
    assert main(["boards", "detect", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    for words in ("AGX Thor T5000", "14 x Neoverse-V3AE", "38.2.1", "120W", "ina238"):
        assert words in out
    assert main(["boards", "detect", "--root", str(root), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["board"]["variant"] == "T5000"
    assert main(["boards", "detect", "--root", str(tmp_path / "gone")]) == 2
    assert "is no folder" in capsys.readouterr().err
    words = ["boards", "detect", "--root", str(root), "--board", "jetson-agx-torh"]
    assert main(words) == 2
    assert "did you mean jetson-agx-thor?" in capsys.readouterr().err


def test_this_machine_runs_a_model_and_says_where(tmp_path):
    """A real process, a real onnxruntime: listed is not the same as running."""
    pytest.importorskip("onnxruntime")
    said = draftwire("boards", "detect", "--json", folder=tmp_path).stdout
    document = json.loads(said)
    engine = next(e for e in document["engines"] if e["name"] == "onnxruntime")
    trials = {trial["provider"]: trial for trial in engine["providers"]}
    assert trials["CPUExecutionProvider"]["ran"]
    for trial in trials.values():
        assert trial["ran"] or trial["why_not"]
    azure = trials.get("AzureExecutionProvider")
    if azure is not None:  # in every wheel from PyPI: listed, and never runs a node
        assert azure["listed"] and not azure["ran"]


def test_a_crash_of_one_provider_is_told_and_the_next_is_tried(monkeypatch):
    from draftwire.boards import engines
    from draftwire.boards.child import Child

    said = "Failed to load library libonnxruntime_providers_cuda.so with error: "
    said += "libcublasLt.so.12: cannot open shared object file: No such file"
    cuda = {"provider": "CUDAExecutionProvider", "listed": True, "ran": False}
    cuda["why_not"] = "onnxruntime fell back from CUDA to CPU without an error"
    ends = {
        "TensorrtExecutionProvider": Child(-11, "", "", 1.0),
        "CUDAExecutionProvider": Child(0, json.dumps(cuda), said, 1.0),
        "XnnpackExecutionProvider": Child(None, "", "", 120.0),
        "CPUExecutionProvider": Child(0, "no json", "", 1.0),
    }
    monkeypatch.setattr(engines, "run_python", lambda words, **_: ends[words[-1]])
    found = {t.provider: t for t in engines.try_providers(list(ends))}
    assert not any(trial.ran for trial in found.values())
    why = {name: trial.why_not for name, trial in found.items()}
    assert "SIGSEGV" in why["TensorrtExecutionProvider"]
    assert "fell back" in why["CUDAExecutionProvider"]
    assert "libcublasLt.so.12" in why["CUDAExecutionProvider"]
    assert "120 s" in why["XnnpackExecutionProvider"]


def test_detection_needs_no_numpy():
    code = "import sys, draftwire.boards.detect as d; d.detect(engines=False); "
    code += "sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment()).returncode == 0
    assert detect_module.SCHEMA == "draftwire.detect/1"
