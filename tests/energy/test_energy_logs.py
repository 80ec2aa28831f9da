"""tegrastats logs: real ones when they are beside the repository, ours always."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from draftwire.energy.files.logs import DUMP_START, import_tegrastats, parse_window
from draftwire.energy.rails import load_tables
from draftwire.energy.reports.rows import load_rows
from draftwire.energy.sources.counters import PmicSource, parse_adc
from draftwire.energy.sources.jetson import parse_sample
from draftwire.errors import ConfigError

TABLES = load_tables()
ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DRAFTWIRE_SHARED", ROOT.parent / "shared")) / "data"
LOGS = sorted((SHARED / "tegrastats").glob("*.log"))
needs_logs = pytest.mark.skipif(not LOGS, reason="the real logs are not here")


def samples_of(path):
    return path.read_bytes().count(b"RAM ") - path.read_bytes().count(b"IRAM ")


@needs_logs
@pytest.mark.parametrize("path", LOGS, ids=[path.stem for path in LOGS])
def test_real_log_reads_without_loss(path):
    imported = import_tegrastats(path, TABLES)
    assert imported.samples == samples_of(path)
    assert imported.mean_wrong == 0, "the running mean of field 1 is field 2"
    for run in imported.runs:
        result = run.result
        assert (result.energy_j is None) == bool(result.why_null)
        assert result.energy_j != 0
    kinds = {finding.kind for finding in imported.findings}
    assert "not-tegrastats" not in kinds and "cut-sample" not in kinds
    if imported.mean_checked == 0:  # the mean is older than the excerpt, or no rails
        assert kinds & {"mid-run", "no-rails"}


def named(part):
    found = [path for path in LOGS if part in path.name]
    if not found:
        pytest.skip("the real logs are not here")
    return import_tegrastats(found[0], TABLES)


def test_the_xavier_nx_burn_is_1350_joules():
    imported = named("xavier-nx-8g_r35_bjgeiser")
    assert imported.energy_j == pytest.approx(1350, rel=0.01)
    assert imported.mean_checked == 309
    result = imported.runs[0].result
    assert result.rails == ("VDD_IN",) and result.scope == "module"
    assert result.duration_s == pytest.approx(105.3, abs=0.3)
    assert result.uncertainty_j == pytest.approx(40, abs=2)  # of the chip and its shunt


def test_other_real_logs():
    imported = named("no-rails")
    assert imported.energy_j is None
    assert "no power rail" in imported.runs[0].result.why_null
    imported = named("orin-nano-8g_r36_beszel")  # two machines in one file
    assert len(imported.runs) == 2
    assert {"restart", "several-runs"} <= {f.kind for f in imported.findings}
    assert "13.48 W" in named("agx-thor_r38.4").runs[0].result.notes[0], "the module"


def test_the_pi5_sample_is_7_240_watts():
    path = SHARED / "rpi_pmic/pi5_load_zeus-test.txt"
    if not path.is_file():
        pytest.skip("the real sample is not here")
    text = path.read_text()
    assert len(parse_adc(text)) == 12
    source = PmicSource(lambda: text)
    total = next(t for t in TABLES if t.board == "raspberry-pi-5").totals[0]
    watts = source.read().watts
    assert sum(watts[rail] for rail in total.rails) == pytest.approx(7.240, abs=5e-4)
    assert set(total.rails) == set(watts)
    (run,) = import_tegrastats(path, TABLES).runs
    assert run.result.energy_j is None and "7.24 W" in run.result.notes[0]


DUMP = "VDD_CORE_A current(7)=2.00000000A\n HDMI_A current(22)=0.1A\n"
DUMP += "VDD_CORE_V volt(15)=1.50000000V\nHDMI_V volt(23)=5.0V\nEXT5V_V volt(24)=5.09V\n"


@pytest.mark.parametrize(
    ("before", "each", "options"),
    [
        ("", "", {"interval_s": 1.0}),
        ("Sun Nov 29 23:59:{s:02d} UTC 2026\n", "", {}),
        ("Sun 29 Nov 23:59:{s:02d} GMT 2026\n", "", {}),
        ("{t}.250\n", "", {}),
        ("", "2026-11-29T11:00:{s:02d}.120+0000 pi vc[1]: ", {}),
    ],
    ids=["--interval", "date", "date, British", "epoch", "journald"],
)
def test_dumps_of_a_pi_5_are_a_log(tmp_path, before, each, options):
    path = tmp_path / "pi.log"
    dumps = [
        before.format(s=s, t=1764417600 + s)
        + "".join(each.format(s=s) + line for line in DUMP.splitlines(keepends=True))
        for s in range(30)
    ]
    path.write_text("".join(dumps))
    options["rails"] = ("VDD_CORE", "HDMI")
    (row,) = load_rows(path, TABLES, **options)
    assert (row.source, row.samples) == ("pmic-log", 30)
    assert row.energy_j == pytest.approx(3.5 * 29, rel=1e-3)
    assert any("misses USB" in note for note in row.notes)


# Lines of our own, in the shapes of every L4T.


def lines(powers, *, rails=("VDD_IN",), start=0, period=1.0, unit="mW", third=False):
    """Write samples with a true running mean; ``powers`` is a list of tuples."""
    text, sums = [], [0] * len(rails)
    for n, values in enumerate(powers, 1):
        fields = []
        for i, (rail, value) in enumerate(zip(rails, values)):
            sums[i] += value
            mean = int(sums[i] / n)
            field = f"{rail} {value}{unit}/{mean}{unit}"
            fields.append(field + (f"/{value}{unit}" if third else ""))
        second = int(start + (n - 1) * period)
        clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
        stamp = f"01-02-2026 {clock} "
        text.append(
            f"{stamp if unit else ''}RAM 10/20MB (lfb 4x4MB) SWAP 0/9MB (cached 0MB) "
            f"CPU [1%@729,off] EMC_FREQ 0%@204 GR3D_FREQ 0%@[0,0] NVDEC off APE 174 "
            f"CV0@-256C tj@{40 + n % 5}.5C {' '.join(fields)}"
        )
    return text


def read(text, **options):
    data = text if isinstance(text, bytes) else "\n".join(text).encode()
    return import_tegrastats("log", TABLES, file=io.BytesIO(data), **options)


def kinds(imported):
    return [finding.kind for finding in imported.findings]


@pytest.mark.parametrize("between", ["\n", " ", ""])
def test_constant_power_however_lines_are_broken(between):
    imported = read(between.join(lines([(5000,)] * 18)).encode())
    assert imported.samples == 18 and imported.energy_j == pytest.approx(85.0, rel=1e-6)
    assert not imported.findings


def test_a_log_tells_the_hottest_zone(tmp_path):
    path = tmp_path / "tegrastats.log"
    path.write_text("\n".join(lines([(5000,)] * 3)))
    (row,) = load_rows(path, TABLES)
    assert row.heat_c == (41.5, 43.5)


def test_three_fields_of_r39():
    rails = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    imported = read(lines([(4000, -398, 3000)] * 10, rails=rails, third=True))
    result = imported.runs[0].result
    assert result.rails == rails
    assert result.mean_w == pytest.approx(6.602)
    assert kinds(imported) == ["three-fields"]


def test_nc_twice_keeps_the_other_rails():
    rails = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "NC", "VDDQ_VDD2_1V8AO", "NC")
    imported = read(lines([(4000, 800, 3000, 7, 900, 8)] * 5, rails=rails))
    result = imported.runs[0].result
    assert result.mean_w == pytest.approx(7.8)
    assert set(result.by_rail) == set(rails) - {"NC"}


def test_rails_named_like_loads_and_temperatures():
    text = b"RAM 1/2MB CPU [1%@1190] GPU@32C CPU@33.5C MTS fg 1% bg 9% "
    rails = b"GPU 0/0 CPU 216/216 SOC 864/864 CV 0/0 VDDRQ 144/144 SYS5V 1889/1889"
    sample = parse_sample(text + rails)
    assert dict(zip(sample.rails, sample.now_mw))["GPU"] == 0
    assert sum(sample.now_mw) == 3113


def test_two_runs_in_one_file_are_integrated_alone():
    text = lines([(5000,)] * 11 + [(6000,)] * 10) + lines([(9000,)] * 11, start=25)
    imported = read(text)
    assert len(imported.runs) == 2
    assert kinds(imported) == ["restart", "several-runs"]
    second = imported.runs[1].result
    assert second.energy_j == pytest.approx(90.0)
    assert imported.mean_wrong == 0


def test_a_log_that_starts_in_the_middle_of_a_run():
    text = lines([(5000,)] * 5 + [(7000,)] * 20)[10:]
    imported = read(text)
    assert kinds(imported) == ["mid-run"] and len(imported.runs) == 1
    assert imported.energy_j == pytest.approx(7.0 * 14)
    text = lines([(5000,)] * 10 + [(7000,)] * 10)
    del text[12:15]
    assert "mean-broken" in kinds(read(text)), "samples were lost"


def test_stamps_that_jump():
    before = lines([(5000,)] * 10)
    later = lines([(5000,)] * 10, start=100)
    imported = read(before + later)
    assert "gap" in kinds(imported)
    result = imported.runs[0].result
    assert result.energy_j is None and "gaps" in result.flags
    assert result.coverage == pytest.approx(18 / 109) and result.duration_s == 109
    assert "90 J in the 18.0 s covered" in result.why_null
    back = read(lines([(5000,)] * 10, start=100) + before)
    assert "stamps-back" in kinds(back)
    assert back.energy_j == pytest.approx(5.0 * 19), "the clock was set, no sample is lost"
    assert back.runs[0].result.coverage == 1.0


def test_a_third_of_the_lines_missing_is_bridged_and_widened():
    """8 W before and after, 2 W in between: the hole may hide either."""
    powers = [8000] * 20 + [2000] * 20 + [8000] * 20
    text = lines([(milli,) for milli in powers])
    whole = read(text).runs[0].result
    del text[22:42]
    result = read(text).runs[0].result
    assert result.duration_s == pytest.approx(59.0, abs=0.5)
    assert result.coverage == pytest.approx(2 / 3, abs=0.03) and "gaps" in result.flags
    assert abs(result.energy_j - whole.energy_j) <= result.uncertainty_j
    assert result.uncertainty_j > 60, "6 W over 20 s may be hidden"
    assert result.mean_w == pytest.approx(result.energy_j / result.duration_s)
    assert result.uncertainty.terms["hole"] > 0.9 * result.uncertainty_j / 2


def test_half_second_stamps_are_a_line_not_steps():
    powers = [(4000,)] * 100 + [(8000,)] * 100
    imported = read(lines(powers, period=0.522))
    exact = 0.522 * (99 * 4 + 99 * 8 + 6)
    result = imported.runs[0].result
    assert result.energy_j == pytest.approx(exact, rel=0.01)
    assert abs(result.energy_j - exact) < result.uncertainty_j
    assert imported.runs[0].period_s == pytest.approx(0.522, rel=0.01)


def test_unstamped_logs_need_an_interval_or_a_duration():
    text = lines([(5000,)] * 11, rails=("POM_5V_IN",), unit="")
    bare = read(text)
    assert bare.energy_j is None and "--interval" in bare.runs[0].result.why_null
    assert "5.00 W" in bare.runs[0].result.notes[0]
    assert read(text, interval_s=1.0).energy_j == pytest.approx(50.0)
    assert "nominal-interval" in kinds(read(text, interval_s=1.0))
    assert read(text, duration_s=10.5).energy_j == pytest.approx(52.5)


def test_a_cut_line_is_used_for_what_it_holds():
    rails = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    text = lines([(5000, 900, 700)] * 20, rails=rails)
    text[7] = text[7][: text[7].index("VDD_CPU_GPU_CV")]
    text[-1] = text[-1][: text[-1].index("VDD_IN") + 9]
    imported = read(text)
    assert kinds(imported) == ["cut-sample"]
    assert imported.samples == 20 and len(imported.runs) == 1
    # The last sample lacks the total: it is held for one period, to the end of the log.
    assert imported.runs[0].result.energy_j == pytest.approx(5.0 * 19)


def test_no_joules_and_why():
    text = lines([(5000, 3000)] * 20, rails=("VDD_FOO", "VDD_BAR"))
    imported = read(text)
    assert imported.energy_j is None and "--rails" in imported.runs[0].result.why_null
    assert read(text, rails=["VDD_FOO"]).energy_j == pytest.approx(95.0)
    imported = read(lines([(0,)] * 30))
    assert imported.energy_j is None
    assert "0 W throughout" in imported.runs[0].result.why_null


def test_binary_rubbish():
    rng = random.Random(5)
    noise = bytes(rng.randrange(256) for _ in range(200_000))
    for rubbish in (noise, b"", b"time,power\n1,2\n"):
        with pytest.raises(ConfigError, match="no tegrastats sample"):
            read(rubbish)
    good = "\n".join(lines([(5000,)] * 30)).encode()
    imported = read(noise + b"\n" + good)
    assert imported.samples == 30 and "not-tegrastats" in kinds(imported)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_logs_never_crash_and_never_say_zero(seed):
    rng = random.Random(seed)
    rails = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    data = bytearray("\n".join(lines([(4000, 900, 3000)] * 40, rails=rails)).encode())
    for _ in range(rng.randrange(1, 60)):
        kind, place = rng.randrange(3), rng.randrange(len(data))
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.randrange(200)]
        else:
            data[place:place] = bytes(rng.randrange(256) for _ in range(20))
    try:
        imported = read(bytes(data))
    except ConfigError:
        return
    for run in imported.runs:
        assert run.result.energy_j != 0
        assert run.result.energy_j is not None or run.result.why_null


def test_window():
    imported = read(lines([(4000,)] * 30 + [(8000,)] * 30), window=parse_window("10:20"))
    assert imported.energy_j == pytest.approx(40.0)
    assert imported.runs[0].result.duration_s == pytest.approx(10.0)
    for bad in ("5", "a:b", "9:3"):
        with pytest.raises(ConfigError):
            parse_window(bad)
    with pytest.raises(ConfigError, match="outside"):
        read(lines([(4000,)] * 30), window=(100.0, 200.0))


BIG = r"""
import io, re, sys
from draftwire.energy.files.logs import import_tegrastats
from draftwire.energy.rails import load_tables
class Endless(io.RawIOBase):
    def __init__(self, line, count):
        self.line, self.left, self.n = line, count, 0
    def read(self, size=-1):
        take = min(self.left, max(1, size // 300))
        self.left -= take
        out = []
        for _ in range(take):
            s = self.n; self.n += 1
            out.append(self.line % (s // 3600 % 24, s // 60 % 60, s % 60))
        return b"".join(out)
line = (b"01-02-2026 %02d:%02d:%02d RAM 1/2MB CPU [" + b"1%%@729," * 12 + b"off] "
        + b"cpu@50C " * 12
        + b"VDD_IN 5000mW/5000mW VDD_CPU_GPU_CV 900mW/900mW VDD_SOC 700mW/700mW\n")
count = int(sys.argv[1]) // (len(line) - 3)
log = import_tegrastats("big", load_tables(), file=Endless(line, count))
assert log.samples == count, (log.samples, count)
# The peak of this program alone: getrusage would count what it was forked from.
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read()).group(1))
print(peak // 1024, count, log.energy_j)
"""


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="no /proc/self/status here"
)


@needs_proc
@pytest.mark.parametrize("megabytes", [5, pytest.param(500, marks=pytest.mark.slow)])
def test_memory_of_a_long_log(megabytes):
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(megabytes * 1_000_000)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert int(done.stdout.split()[0]) < 100


PREFIXES = {
    "journald": "Nov 28 10:{m:02d}:{s:02d} robot tegrastats[812]: ",
    "journald, iso": "2026-11-28T10:{m:02d}:{s:02d}+0100 robot tegrastats[812]: ",
    "journald, monotonic": "[{t:12.6f}] robot tegrastats[812]: ",
    "syslog, microseconds": "2026-11-28T10:{m:02d}:{s:02d}.250000+01:00 robot t: ",
    "ts": "Nov 28 10:{m:02d}:{s:02d} ",
    "ts -s": "00:{m:02d}:{s:02d} ",
    "date, British": "Sat 28 Nov 10:{m:02d}:{s:02d} GMT 2026 ",
    "date, American": "Sat 28 Nov 2026 12:{m:02d}:{s:02d} PM CET ",
    "date, German": "Sa 28. M\u00e4r 10:{m:02d}:{s:02d} CET 2026 ",
    "docker compose logs -t": "tegra-1  | 2026-11-28T10:{m:02d}:{s:02d}.125000000Z ",
    "ts %.s": "17960{t:05d}.125000 ",
    "epoch milliseconds": "17960{t:05d}250 ",
}


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_stamps_of_other_programs(prefix):
    text = lines([(5000,)] * 61, rails=("POM_5V_IN",), unit="")
    text = [prefix.format(t=t, m=t // 60, s=t % 60) + line for t, line in enumerate(text)]
    imported = read(text)
    assert imported.samples == 61 and imported.energy_j == pytest.approx(300.0)
    assert "foreign-stamps" in kinds(imported)
    assert "not-tegrastats" not in kinds(imported)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("2026-03-29T01:59:{s}+0100 ", "2026-03-29T03:00:{s}+0200 "),
        ("2026-10-25T02:59:{s}+02:00 ", "2026-10-25T02:00:{s}+01:00 "),
        ("2026-03-08T01:59:{s}-0330 ", "2026-03-08T03:00:{s}-0230 "),
        ("Feb 28 23:59:{s} ", "Mar  1 00:00:{s} "),
        ("Feb 28 23:59:{s} ", "Feb 29 00:00:{s} "),
        ("Sat 28 Mar 2026 11:59:{s} AM ", "Sat 28 Mar 2026 12:00:{s} PM "),
    ],
)
def test_stamps_over_an_edge_of_the_calendar_leave_no_hole(first, then):
    stamps = [edge.format(s=f"{s:02d}") for edge in (first, then) for s in range(60)]
    text = lines([(5000,)] * 120, rails=("POM_5V_IN",), unit="")
    imported = read([stamp + line for stamp, line in zip(stamps, text)])
    assert imported.energy_j == pytest.approx(5.0 * 119)
    assert kinds(imported) == ["foreign-stamps"]


@pytest.mark.parametrize("pack", ["gz", "xz", "bz2", "utf-16", "utf-16-le"])
def test_packed_and_wide_logs(tmp_path, pack):
    text = "\n".join(lines([(5000,)] * 61))
    packers = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
    path = tmp_path / f"tegrastats.log.{pack}"
    path.write_bytes(packers[pack](text.encode()) if pack in packers else text.encode(pack))
    assert import_tegrastats(path, TABLES).energy_j == pytest.approx(300.0)
    if pack in packers:
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ConfigError, match="cannot read"):
            import_tegrastats(path, TABLES)


def test_naming_the_same_rails_says_the_same():
    rails = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    text = lines([(4000 + 400 * (i % 2), 800, 3000) for i in range(60)], rails=rails)
    by_board = read(text, board="jetson-agx-orin").runs[0].result
    by_names = read(text).runs[0].result
    by_hand = read(text, rails=list(rails)).runs[0].result
    for other in (by_names, by_hand):
        assert other.energy_j == by_board.energy_j
        assert other.uncertainty_j == pytest.approx(by_board.uncertainty_j)
        assert other.uncertainty.sensor_known


def test_rails_by_hand_that_hang_below_each_other_are_told():
    rails = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    text = lines([(5000, 900, 700)] * 20, rails=rails)
    imported = read(text, rails=["VDD_IN", "VDD_SOC"])
    assert "VDD_SOC hang below" in " ".join(imported.runs[0].result.notes)
    rails = ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN")
    text = lines([(2000, 5900, 5600, 19800)] * 20, rails=rails)
    imported = read(text, rails=["VIN", "VDD_GPU"])
    assert "one holds the other" in " ".join(imported.runs[0].result.notes)
    assert read(text).runs[0].result.by_scope["board"] == pytest.approx(19.8 * 19)


def test_a_log_that_is_not_there():
    with pytest.raises(ConfigError, match="cannot read"):
        import_tegrastats("/nowhere/at/all.log", TABLES)


def test_a_long_word_is_looked_at_once():
    """It took the square of its length, of a file of any kind that holds one line."""
    began = time.process_time()
    assert not DUMP_START.search(b"x" * 100_000)
    assert time.process_time() - began < 5  # processor time; it was a minute
    assert DUMP_START.search(b"a EXT5V_A current(0)=1")[1] == b"EXT5V"
