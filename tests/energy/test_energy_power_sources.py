"""Each source against fake trees, programs and clients of the same shape."""

from __future__ import annotations

import fcntl
import os
import resource
import stat
import types
from pathlib import Path

import pytest
from energy_lab import mainline, nx_rails, put

from draftwire.energy.account.integral import Projector
from draftwire.energy.account.meter import Meter
from draftwire.energy.rails import choose_total, load_tables
from draftwire.energy.sources.choose import choose_source, find_sources
from draftwire.energy.sources.counters import (
    BatterySource,
    GpuSource,
    NvmlSource,
    PmicSource,
    RaplSource,
    parse_adc,
)
from draftwire.energy.sources.hwmon import HwmonSource
from draftwire.energy.sources.jetson import LineFeed, TegrastatsSource
from draftwire.errors import ConfigError, SensorError

TABLES = load_tables()


HWMON = "sys/class/hwmon/hwmon"


def hwmon(root: Path, chip: str, number: int = 0, **files) -> Path:
    """Make one chip of hwmon."""
    return put(
        root, {f"{HWMON}{number}/{n}": v for n, v in {"name": chip, **files}.items()}
    )


def r32(root: Path, chips: dict) -> Path:
    """Make the tree of NVIDIA's own driver: channels from 0, one power file."""
    for address, rails in chips.items():
        base = f"sys/bus/i2c/drivers/ina3221x/{address}/iio:device0"
        for channel, (rail, milliwatt) in enumerate(rails):
            texts = {"rail_name_{}": rail, "in_power{}_input": milliwatt}
            texts.update({"in_voltage{}_input": 5000, "crit_current_limit_{}": "32760 ma"})
            put(root, {f"{base}/{n.format(channel)}": text for n, text in texts.items()})
    return root


def nano(root):
    rails = [("POM_5V_IN", 4200), ("POM_5V_GPU", 80), ("POM_5V_CPU", 1200)]
    return r32(root, {"6-0040": rails})


def tx2(root):
    return r32(root, {
        "0-0040": [("VDD_SYS_GPU", 152), ("VDD_SYS_SOC", 609), ("VDD_4V0_WIFI", 19)],
        "0-0041": [("VDD_IN", 5297), ("VDD_SYS_CPU", 1917), ("VDD_SYS_DDR", 1241)],
        "0-0042": [("VDD_MUX", 6000), ("VDD_5V0_IO_SYS", 900), ("VDD_3V3_SYS", 800)],
    })  # fmt: skip


def agx_xavier(root):
    mainline(root, 0, [("GPU", 19000, 20), ("CPU", 19000, 30), ("SOC", 19000, 60)])
    rails = [("CV", 19000, 0), ("VDDRQ", 19000, 10), ("SYS5V", 5000, 400)]
    return mainline(root, 1, rails, "1-0041")


def agx_orin(root):
    rails = [("VDD_GPU_SOC", 20000, 120), ("VDD_CPU_CV", 20000, -20)]
    mainline(root, 2, [*rails, ("VIN_SYS_5V0", 5000, 640)])
    rails = [("NC", 5000, 1), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 5000, 1)]
    mainline(root, 4, rails, "1-0041")
    # A disabled channel answers EIO; this file does too.
    broken = root / "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4"
    (broken / "in3_label").write_text("VDD_SPARE\n")
    (broken / "in3_input").unlink()
    (broken / "in3_input").symlink_to("/proc/self/mem")
    return root


def thor(root):
    rails = [("VDD_GPU", 12040, 163), ("VDD_CPU_SOC_MSS", 12040, 489)]
    mainline(root, 1, [*rails, ("VIN_SYS_5V0", 5090, 1107)])
    whole = {"in1_label": "VIN", "power1_input": 19780000}
    return hwmon(root, "ina238", 5, in1_input=19000, curr1_input=1041, **whole)


# Board, its tree, the rails of its module, and their watts.
BOARDS = [
    ("jetson-nano", nano, "POM_5V_IN", 4.2),
    ("jetson-tx2", tx2, "VDD_IN", 5.297),
    ("jetson-xavier-nx", nx_rails, "VDD_IN", 5.0),
    ("jetson-agx-xavier", agx_xavier, "GPU CPU SOC CV VDDRQ SYS5V", 4.28),
    ("jetson-orin-nano", nx_rails, "VDD_IN", 5.0),
    ("jetson-orin-nx", nx_rails, "VDD_IN", 5.0),
    ("jetson-agx-orin", agx_orin, "VDD_GPU_SOC VDD_CPU_CV VIN_SYS_5V0", 2.4 - 0.4 + 3.2),
    ("jetson-agx-thor", thor, "VDD_GPU VDD_CPU_SOC_MSS VIN_SYS_5V0",
     12.04 * (0.163 + 0.489) + 5.09 * 1.107),
]  # fmt: skip


@pytest.mark.parametrize("named", [True, False], ids=["board known", "rails alone"])
@pytest.mark.parametrize("board", BOARDS, ids=lambda b: b[0])
def test_right_rails_right_total_right_scope(tmp_path, board, named):
    name, make, rails, watts = board
    make(tmp_path)
    chosen = choose_source(TABLES, board=name if named else None, root=tmp_path)
    total = chosen.choice.total
    assert total is not None and total.scope == "module"
    assert sorted(total.rails) == sorted(rails.split())
    reading = chosen.source.read()
    assert sum(reading.watts[rail] for rail in total.rails) == pytest.approx(watts)
    assert not chosen.choice.warnings
    assert not {"NC", "sum of shunt voltages", "VDD_SPARE"} & set(reading.watts)
    chosen.source.close()


def test_thor_has_the_board_as_a_second_total(tmp_path):
    chosen = choose_source(TABLES, board="jetson-agx-thor", root=thor(tmp_path))
    assert [other.scope for other in chosen.choice.others] == ["board"]
    assert chosen.source.read().watts["VIN"] == pytest.approx(19.78)
    board = {"board": "jetson-agx-thor", "scope": "board"}
    assert choose_source(TABLES, root=tmp_path, **board).choice.total.rails == ("VIN",)


def test_shunt_gives_the_accuracy(tmp_path):
    accuracy = HwmonSource(nx_rails(tmp_path)).accuracy["VDD_IN"]
    assert accuracy.step_w == pytest.approx(0.04)  # 40 uV over 5 mohm at 5 V
    # 80 uV, 0.5 uV/K over 40 K and 15 uV/V over 1.7 V, on 5 mohm at 5 V.
    assert accuracy.offset_w == pytest.approx((80 + 20 + 25.5) * 1e-3)
    # 0.25 % and 50 ppm/K, twice; 1 % of the shunt; 20 mV of 5 V.
    assert accuracy.gain == pytest.approx(2 * (0.0025 + 0.002) + 0.01 + 0.02005 / 5)
    # The rails' names alone say the same of this board.
    (table,) = (t for t in TABLES if t.board == "jetson-xavier-nx")
    named = table.accuracy["VDD_IN"]
    assert (named.offset_w, named.gain) == pytest.approx((accuracy.offset_w, accuracy.gain))


# Shunt, bus voltage, and by hand from TI's tables: step, offset and gain of the rail.
INA = {
    "ina219": (100_000, 5000, 5e-4, 2.21e-3 * 5, 0.02 + 0.01 + 4e-3 / 5),
    "ina226": (10_000, 5000, 2.5e-4 * 5, 1.825e-3 * 5, 0.006 + 0.01 + 9.95e-3 / 5),
    "ina228": (10_000, 12_000, 3.75e-4, 0.257e-3 * 12, 0.004 + 0.01 + 8.47e-3 / 12),
    "ina230": (10_000, 5000, 2.5e-4 * 5, 8.7e-3 * 5, 0.014 + 0.01 + 35e-3 / 5),
    "ina238": (5_000, 12_000, 1e-3 * 12, 1.5e-3 * 12, 0.004 + 0.01 + 8.47e-3 / 12),
    "ina260": (None, 5000, 1.25e-3 * 5, 12.1e-3 * 5, 0.007 + 9.95e-3 / 5),
}


@pytest.mark.parametrize("chip", INA)
def test_the_interval_of_a_rail_follows_its_chip(tmp_path, chip):
    shunt, millivolt, step, offset, gain = INA[chip]
    bus = 1 if chip in ("ina219", "ina226", "ina230", "ina260") else 0
    files = {"in0_input": 8, "in1_input": millivolt, f"in{bus}_input": millivolt}
    files.update({"shunt_resistor": shunt} if shunt else {})
    hwmon(tmp_path, chip, curr1_input=800, **files)
    ((_, known),) = HwmonSource(tmp_path).accuracy.items()
    assert (known.step_w, known.offset_w, known.gain) == pytest.approx((step, offset, gain))
    assert chip.upper() in known.source and "TI" in known.source


def test_the_register_of_power_steps_coarser(tmp_path):
    files = {"power1_input": 4_000_000, "shunt_resistor": 10_000}
    hwmon(tmp_path, "ina226", in1_input=5000, **files)
    assert HwmonSource(tmp_path).accuracy["ina226"].step_w == pytest.approx(6.25e-3)


def test_the_kernel_tells_how_blurred_a_sensor_is(tmp_path):
    nx_rails(tmp_path)
    base = tmp_path / "sys/bus/i2c/drivers/ina3221/7-0040/hwmon/hwmon3"
    (base / "samples").write_text("1")
    single = HwmonSource(tmp_path).response
    assert single.window_s[1] < 0.004 and single.unsure_s < 0.005
    (base / "samples").write_text("16")
    assert HwmonSource(tmp_path).response.window_s == (0.0035, 0.007)
    (base / "update_interval").write_text("0")
    assert HwmonSource(tmp_path).response.how == "not known"


@pytest.mark.parametrize("another", [False, True], ids=["gone", "another chip is there"])
def test_hwmon_numbers_that_move_are_followed(tmp_path, another):
    """After a rebind hwmon3 may be another chip with rails of its own: nothing is mixed."""
    source = HwmonSource(nx_rails(tmp_path))
    old = tmp_path / "sys/bus/i2c/drivers/ina3221/7-0040/hwmon/hwmon3"
    source.read()
    source.close()  # as the kernel closes the files of a driver that goes
    old.rename(old.with_name("hwmon7"))
    (tmp_path / "sys/class/hwmon/hwmon3").unlink()
    if another:
        mainline(tmp_path, 3, [("VDD_OTHER", 12000, 900)], "1-0041")
    with pytest.raises(SensorError):
        source.read()
    found = source.read().watts
    assert found["VDD_IN"] == pytest.approx(5.0) and "VDD_OTHER" not in found


@pytest.mark.parametrize(
    ("chip", "files", "rail", "watts"),
    [
        ("ina226", {"power1_input": 4_000_000, "in1_input": 5000, "curr1_input": 800,
                    "in0_input": 8, "update_interval": 36, "shunt_resistor": 10000},
         "ina226", 4.0),
        ("ina219", {"in0_input": 8, "in1_input": 5000, "curr1_input": 800}, "ina219", 4.0),
        ("ina260", {"in1_input": 5000, "curr1_input": 800, "power1_input": 4_010_000,
                    "power1_label": "VCC_5V"}, "VCC_5V", 4.01),
        ("ina228", {"power1_input": 4_000_000, "in1_label": "VBUS"}, "VBUS", 4.0),
        ("macsmc_hwmon", {"power1_input": 7_500_000, "power1_label": "Total System Power"},
         "Total System Power", 7.5),
    ],
)  # fmt: skip
def test_any_power_chip_of_hwmon(tmp_path, chip, files, rail, watts):
    hwmon(tmp_path, chip, 4, **files)
    chosen = choose_source(TABLES, root=tmp_path)
    assert chosen.source.read().watts == {rail: pytest.approx(watts)}
    assert chosen.choice.total is None and "--rails" in chosen.choice.why_none
    named = choose_source(TABLES, root=tmp_path, rails=[rail]).choice.total
    assert named is not None and (named.rails, named.scope) == ((rail,), "user-chosen")
    with pytest.raises(ConfigError, match="no rail 'VDD_NONE'"):
        choose_source(TABLES, root=tmp_path, rails=["VDD_NONE"])
    if "shunt_resistor" in files:
        assert chosen.source.accuracy[rail].gain == pytest.approx(0.01799)
        assert chosen.source.response.reach_s < 0.1


def test_sensors_that_are_no_power_chip_are_left_alone(tmp_path):
    for number, name in enumerate(("ucsi_source_psy_USBC000:001", "nvme", "coretemp")):
        files = {"in0_input": 5000, "curr1_input": 3000, "in1_input": 5000}
        hwmon(tmp_path, name, number, **files)
    with pytest.raises(SensorError):
        HwmonSource(tmp_path)


def test_a_gpu_by_its_driver(tmp_path):
    hwmon(tmp_path, "amdgpu", 2, power1_average=35_000_000)
    hwmon(tmp_path, "xe", 3, energy1_input=1_000_000)
    times = iter(range(0, 10**12, 500_000_000))
    source = GpuSource(tmp_path, clock=lambda: next(times))
    assert source.read().watts == {"amdgpu0": pytest.approx(35.0)}
    hwmon(tmp_path, "xe", 3, energy1_input=6_000_000)
    assert source.read().watts["xe1"] == pytest.approx(10.0)
    assert source.scope == "gpu"
    assert next(f for f in find_sources(tmp_path) if f.source == "gpu").usable


def test_one_failing_rail_does_not_stop_the_others(tmp_path):
    source = HwmonSource(nx_rails(tmp_path))
    base = tmp_path / "sys/bus/i2c/drivers/ina3221/7-0040/hwmon/hwmon3"
    (base / "in3_input").write_text("rubbish\n")
    assert set(source.read().watts) == {"VDD_IN", "VDD_CPU_GPU_CV"}


def test_no_sensor_says_what_is_missing(tmp_path):
    with pytest.raises(SensorError, match="no INA3221"):
        choose_source(TABLES, name="sysfs", root=tmp_path)
    findings = {finding.source: finding for finding in find_sources(tmp_path)}
    assert not findings["sysfs"].usable and not findings["rapl"].usable
    assert not findings["battery"].usable and not findings["jtop"].usable


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_rail_without_permission_names_the_remedy(tmp_path):
    nx_rails(tmp_path)
    for path in tmp_path.rglob("*_input"):
        path.chmod(0)
    findings = {finding.source: finding for finding in find_sources(tmp_path)}
    assert "chmod" in findings["sysfs"].remedy


def test_two_chips_with_one_label_can_each_be_named(tmp_path):
    for number, micro in enumerate((1_000_000, 2_000_000)):
        hwmon(tmp_path, "ina226", number, power1_input=micro, power1_label="VBAT")
    for rails, watts in (("VBAT", 1.0), ("VBAT#2", 2.0), ("VBAT,VBAT#2", 3.0)):
        chosen = choose_source(TABLES, rails=rails.split(","), root=tmp_path)
        assert Projector(chosen.source.rails, chosen.choice).project(chosen.source.read())[
            0
        ][0] == pytest.approx(watts)
        told = [w for w in chosen.choice.warnings if "VBAT#2 as well" in w]
        assert len(told) == (rails == "VBAT")
    with pytest.raises(ConfigError, match="VBAT#3"):
        choose_source(TABLES, rails=["VBAT#3"], root=tmp_path)


def test_votes_that_disagree_warn():
    rails = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
    choice = choose_total(rails, TABLES, board="jetson-xavier-nx")
    assert choice.total is not None and choice.total.rails == tuple(rails)
    assert any("jetson-agx-orin" in text for text in choice.warnings)


def test_what_is_not_a_total():
    assert choose_total(["VIN_SYS_5V0"], TABLES).total is None
    assert choose_total(["VIN_SYS_5V0"], TABLES, board="jetson-agx-orin").total is None
    choice = choose_total([], TABLES, board="jetson-nano-2gb")
    assert choice.total is None and "no power rail" in choice.why_none


PMIC = """ 3V3_SYS_A current(1)=0.10000000A
  VDD_CORE_A current(7)=2.00000000A
    3V3_SYS_V volt(9)=3.30000000V
   VDD_CORE_V volt(15)=0.85000000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""


def test_pmic_pairs_by_name():
    assert parse_adc(PMIC) == pytest.approx({"3V3_SYS": 0.33, "VDD_CORE": 1.7})
    assert PmicSource(lambda: PMIC).rails == ("3V3_SYS", "VDD_CORE")
    with pytest.raises(SensorError, match="VCHI"):
        PmicSource(lambda: "VCHI initialization failed")


def rapl(root, counts, wrap=1_000_000):
    for n, count in enumerate(counts):
        texts = {"name": f"package-{n}", "energy_uj": count, "max_energy_range_uj": wrap}
        part = {f":{n}:0/name": "core", f":{n}:0/energy_uj": 5}
        part.update({f":{n}/{name}": text for name, text in texts.items()})
        put(root, {f"sys/class/powercap/intel-rapl{k}": v for k, v in part.items()})
    return root


def test_rapl_wraps_and_adds_packages_only(tmp_path):
    times = iter(range(0, 10**12, 500_000_000))
    source = RaplSource(rapl(tmp_path, [900_000, 100]), clock=lambda: next(times))
    assert source.rails == ("package-0", "package-1")
    rapl(tmp_path, [400_000, 100_100])
    reading = source.read()
    assert reading.joules == pytest.approx({"package-0": 0.5, "package-1": 0.1})


def test_rapl_set_back_without_a_range_is_no_energy(tmp_path):
    source = RaplSource(rapl(tmp_path, [900_000], wrap=0))
    rapl(tmp_path, [100], wrap=0)
    assert source.read().joules == {}


def test_a_rapl_counter_that_was_not_read_is_exact_when_it_is_back(tmp_path):
    times = iter(range(0, 10**12, 500_000_000))  # a read takes two: 1 s
    source = RaplSource(rapl(tmp_path, [0, 0]), clock=lambda: next(times))
    choice = choose_source([], name="rapl", root=tmp_path).choice
    meter = Meter(source, choice, clock=lambda: 0)
    with meter.window() as window:
        for count in (100_000, "", "", 900_000, 950_000):
            source.files["package-1"].close()
            rapl(tmp_path, [100_000, count])
            meter.read_now()
            if count == 900_000:
                assert meter.last.watts[2] == pytest.approx(0.8 / 3)
    assert window.result.energy_j == pytest.approx(0.1 + 0.95)


def battery(root, number=0, **files):
    base = f"sys/class/power_supply/BAT{number}"
    texts = {"type": "Battery", "status": "Discharging", **files}
    return put(root, {f"{base}/{name}": text for name, text in texts.items()})


@pytest.mark.parametrize(("files", "watts"), [
    ({"power_now": 7_500_000}, 7.5),
    ({"voltage_now": 11_100_000, "current_now": -500_000}, 5.55),
])  # fmt: skip
def test_battery_power_and_product(tmp_path, files, watts):
    found = BatterySource(battery(tmp_path, **files)).read().watts
    assert found == {"BAT0": pytest.approx(watts)}
    battery(tmp_path, 1, status="Not charging", power_now=0)
    assert sum(BatterySource(tmp_path).read().watts.values()) == pytest.approx(watts)
    battery(tmp_path, status="Charging")
    with pytest.raises(SensorError, match="charging"):
        BatterySource(tmp_path)


def program(tmp_path, text):
    path = tmp_path / "tegrastats"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_tegrastats_process(tmp_path):
    script = """#!/bin/sh
echo 'WARNING: not invoking as root'
while :; do
  echo '01-02-2026 03:04:05 RAM 1/2MB VDD_IN -398mW/4000mW NC 1mW/1mW NC 2mW/2mW'
  sleep 0.02
done
"""
    source = TegrastatsSource(20, command=[str(program(tmp_path, script))])
    first, second = source.read(), source.read()
    assert first.watts == {"VDD_IN": pytest.approx(-0.398)}
    assert second.t_ns > first.t_ns
    source.close()
    source.close()


def test_lines_from_a_high_descriptor():
    """A robot's process has many files open; select() would refuse one from 1024 on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD, 1100)
    try:
        feed = LineFeed("a pipe", high, lambda: 5, 0.05)
        os.write(writer, b"VDD_IN 1mW\nmore")
        assert feed.next_line() == (5, b"VDD_IN 1mW")
        with pytest.raises(SensorError, match="silent for 0.05 s"):
            feed.next_line()
        os.close(writer)
        with pytest.raises(SensorError, match="ended"):
            feed.next_line()
    finally:
        os.close(reader)
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_tegrastats_without_rails_or_program(tmp_path):
    script = "#!/bin/sh\necho 'RAM 1/2MB CPU [1%@729] PLL@50C'\nsleep 5\n"
    with pytest.raises(SensorError, match="no power rail"):
        TegrastatsSource(20, command=[str(program(tmp_path, script))])
    with pytest.raises(SensorError, match="cannot start"):
        TegrastatsSource(command=[str(tmp_path / "nothing")])


class Nvml(types.SimpleNamespace):
    """The library's functions as ctypes has them."""

    def __init__(self, code):
        super().__init__(code=code, shut=0)

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlShutdown(self):  # noqa: N802
        self.shut += 1

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = 1
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):  # noqa: N802
        return 0

    def nvmlDeviceGetPowerUsage(self, handle, milliwatt):  # noqa: N802
        milliwatt._obj.value = 0 if self.code else 71234
        return self.code


def test_nvml_not_supported_is_no_zero():
    with pytest.raises(SensorError, match="NotSupported"):
        NvmlSource(Nvml(3))
    assert NvmlSource(Nvml(0)).read().watts == {"GPU0": pytest.approx(71.234)}
