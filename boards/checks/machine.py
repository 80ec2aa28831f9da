"""Threads, memory, sensors, rights, heat, disk and clock of a machine."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Sequence

from draftwire.boards.checks.findings import FAIL, OK, SKIP, WARN, Finding
from draftwire.boards.detect import Detection
from draftwire.boards.install.facts import version_tuple
from draftwire.boards.sensors import open_to_all
from draftwire.boards.system import throttling

# draftwire is younger than this; a board without a battery clock starts in 1970.
_NO_EARLIER = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
_LOW_MEMORY = 64 << 20
_LOW_DISK, _NO_DISK = 200 << 20, 8 << 20
_FEW_BLOCKS = 16  # of 4 MB: below this a GPU's buffers do not fit in one piece
_GPU_FILES = ("dev/nvmap", "dev/nvhost-gpu", "dev/nvhost-ctrl-gpu", "dev/nvgpu/igpu0/as")
_LOOK_AGAIN = "draftwire boards detect --no-run"


def check_machine(found: Detection, *, secure: bool = False) -> list[Finding]:
    """Look at what needs no Python package; ``secure``: the verifier's certificate will be
    checked, which needs the right time."""
    findings = [_board(found), _system(found), _mode(found), *_sensors(found)]
    findings.append(_throttling(found))
    if found.tree.host:
        findings += [_disk(), check_clock(time.time(), secure=secure)]
    return [finding for finding in findings if finding is not None]


def _board(found: Detection) -> Finding:
    if not found.profile.generic:
        return Finding("board", OK, f"{found.title} ({found.match.how})")
    if found.profile.name == "generic-x86" and not found.tree.exists("proc/device-tree"):
        return Finding("board", OK, "no board, an x86-64 machine")
    fix = (
        "mkdir -p ~/.config/draftwire/boards && draftwire boards detect --profile "
        f"{found.profile.name} --toml > ~/.config/draftwire/boards/mine.toml"
    )
    return Finding("board", WARN, f"{found.match.how}: {found.profile.name}", fix)


def _system(found: Detection) -> Finding:
    parts = [found.system.get("PRETTY_NAME", ""), found.arch, found.libc]
    if found.l4t:
        parts.insert(0, f"L4T {found.l4t.version}")
    text = ", ".join(part for part in parts if part)
    if found.libc == "musl":
        fix = "docker run -it --rm python:3.11-slim-bookworm"
        detail = f"{text}: onnxruntime and LiteRT have no wheels for musl"
        return Finding("system", FAIL, detail, fix)
    old = found.pythons and all(version_tuple(v) < (3, 8) for v in found.pythons)
    if not found.tree.host and old:
        fix = "sudo apt-get install python3.8 python3.8-venv"
        detail = f"{text}: Python {', '.join(found.pythons)} is older than 3.8"
        return Finding("system", FAIL, detail, fix)
    return Finding("system", OK, text or "not known")


def _mode(found: Detection) -> Finding | None:
    mode = found.mode
    if mode is None:
        return None
    if mode.name is None:
        if mode.number is None:
            return Finding("power mode", WARN, "not known", "sudo nvpmodel -q")
        detail = f"number {mode.number}, which /etc/nvpmodel.conf does not name"
        return Finding("power mode", WARN, detail, "sudo nvpmodel -q --verbose")
    return Finding("power mode", OK, mode.name)


def check_threads(found: Detection, threads: int) -> Finding:
    """Tell how many threads are of use, from the cores that are online."""
    big = [c for c in found.clusters if not c.small] or list(found.clusters)
    online = [cpu for cluster in big for cpu in cluster.online]
    useful = len(online)
    kinds = " and ".join(sorted({cluster.kind for cluster in big if cluster.online}))
    where = f"{useful} online ({kinds})" if kinds else f"{useful} online"
    if found.quota is not None:
        useful = max(1, min(useful, int(found.quota)))
        where += f", a container may use {found.quota:g}"
    if not found.clusters or not online:
        return Finding("threads", SKIP, "the cores are not known")
    if threads > useful:
        detail = f"{threads} threads on {where}: they wait for each other"
        fix = f"export DRAFTWIRE_THREADS={max(1, useful)}"
        return Finding("threads", WARN, detail, fix)
    text = f"{threads} of {where}; more than {useful} would wait for each other"
    small = [cpu for c in found.clusters if c.small for cpu in c.online]
    if small and len(small) < len(found.online):
        numbers = ",".join(map(str, online))
        text += f"; keep them off the small cores: taskset -c {numbers}"
    return Finding("threads", OK, text)


def check_memory(
    found: Detection, *, needs: int | None = None, gpu: bool = False
) -> list[Finding]:
    """Tell whether a draft has room; ``needs``: the most that it took, bytes, if that was
    measured; ``gpu``: whether pieces of 4 MB matter."""
    ram = found.memory
    have = ram.available
    if have is None:
        return [Finding("memory", SKIP, "/proc/meminfo does not tell")]
    if ram.limit is not None:
        have = min(have, ram.limit)
    text = f"{have / 2**20:.0f} MiB available"
    free = "sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'"
    if needs is not None:
        text += f", the draft takes {needs / 2**20:.0f} MiB with its engine"
    findings = [Finding("memory", OK, text)]
    if have < _LOW_MEMORY or (needs is not None and have < needs):
        findings = [Finding("memory", FAIL, text, free)]
    elif needs is not None and have < 2 * needs:
        findings = [Finding("memory", WARN, f"{text}: little is left beside it", free)]
    blocks = ram.free_4mb
    if gpu and found.profile.jetson and blocks is not None and blocks < _FEW_BLOCKS:
        fix = (
            "sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches; "
            "echo 1 > /proc/sys/vm/compact_memory'"
        )
        detail = f"{blocks} free blocks of 4 MB (lfb): the GPU may find no room"
        findings.append(Finding("memory", WARN, detail, fix))
    return findings


def _sensors(found: Detection) -> list[Finding]:
    if not found.sensors:
        wanted = found.profile.raw.get("sensor", ())
        if not wanted or found.profile.generic:
            return [Finding("sensors", SKIP, "no power sensor: joules need a USB meter")]
        drivers = ", ".join(str(sensor.get("driver")) for sensor in wanted)
        where = "in a container: mount /sys" if found.container else "is it loaded?"
        detail = f"no {drivers} in sysfs ({where}): joules would be null"
        return [Finding("sensors", WARN, detail, "ls /sys/class/hwmon/*/name")]
    findings = []
    rules = open_to_all(found.tree)
    for sensor in found.sensors:
        rails = ", ".join(sensor.rails)
        if sensor.readable:
            findings.append(Finding("sensors", OK, f"{sensor.driver}: {rails}"))
            continue
        detail = f"{sensor.driver} cannot be read ({sensor.why_not}): joules would be null"
        if sensor.why_not == "permission" and rules:
            detail += f"; {rules[0]} speaks of sensors and does not help"
        findings.append(Finding("sensors", WARN, detail, sensor.fix or _LOOK_AGAIN))
    return findings


def check_gpu_rights() -> Finding:
    """Tell whether this user may use the GPU of a Jetson."""
    closed = [
        f"/{name}"
        for name in _GPU_FILES
        if os.path.exists(f"/{name}") and not os.access(f"/{name}", os.R_OK | os.W_OK)
    ]
    if closed:
        detail = f"{', '.join(closed)} may not be used: the GPU is out of reach"
        fix = f"sudo usermod -aG {_groups(closed)} $USER && echo 'now log in again'"
        return Finding("groups", WARN, detail, fix)
    return Finding("groups", OK, "the GPU's files may be used")


def _groups(files: Sequence[str]) -> str:
    import grp

    names = set()
    for name in files:
        try:
            names.add(grp.getgrgid(os.stat(name).st_gid).gr_name)
        except (OSError, KeyError):
            continue
    return ",".join(sorted(names - {"root"})) or "video"


def _throttling(found: Detection) -> Finding:
    state = throttling(found.tree)
    if state["now"]:
        pi = "raspberry" in found.profile.name
        fix = "vcgencmd get_throttled" if pi else _LOOK_AGAIN
        supply = "; it wants a stronger supply" if "under-voltage" in state["now"] else ""
        detail = f"now: {'; '.join(state['now'])}{supply}"
        return Finding("throttling", WARN, detail, fix)
    before = "; ".join(state["since_boot"])
    text = f"not now; since boot: {before}" if before else "none"
    if not before and not state["known"]:
        return Finding("throttling", SKIP, "nothing here tells")
    return Finding("throttling", OK, text)


def _disk() -> Finding:
    folder = Path(tempfile.gettempdir())
    try:
        free = shutil.disk_usage(folder).free
        writable = os.access(folder, os.W_OK)
    except OSError as exc:
        return Finding("disk", FAIL, f"{folder}: {exc.strerror}", "export TMPDIR=/dev/shm")
    size = f"{free / 2**30:.1f} GiB" if free >= 2**30 else f"{free / 2**20:.0f} MiB"
    text = f"{size} free in {folder}"
    if not writable:
        detail = f"{folder} cannot be written"
        return Finding("disk", FAIL, detail, "export TMPDIR=/dev/shm")
    if free < _LOW_DISK:
        status = FAIL if free < _NO_DISK else WARN
        return Finding("disk", status, text, "sudo journalctl --vacuum-size=50M")
    return Finding("disk", OK, text)


def check_clock(now: float, *, secure: bool) -> Finding:
    """Tell whether the time (seconds since 1970) can be right; ``secure``: whether a
    certificate depends on it."""
    when = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    text = when.strftime("%Y-%m-%d %H:%M UTC")
    if when < _NO_EARLIER:
        then = "no certificate is valid then" if secure else "stamps will jump"
        fix, status = "sudo timedatectl set-ntp true", FAIL if secure else WARN
        return Finding("clock", status, f"it is not {text}: {then}", fix)
    return Finding("clock", OK, text)
