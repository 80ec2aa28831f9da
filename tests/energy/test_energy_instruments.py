"""Files of meters, in the shapes that people hand over; what is open is asked for."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import threading

import pytest

from draftwire.energy.files.meters import load_instruments, parse_accuracy, read_meter
from draftwire.energy.reports.rows import kind_of, load_rows
from draftwire.energy.sources.bench import LineMeter, Ppk2Source, parse_line
from draftwire.errors import ConfigError, SensorError


def rows(line, count=50, **more):
    return [line.format(i=i, t=i * 0.1, **more) for i in range(count)]


def write(tmp_path, text, name="meter.csv"):
    path = tmp_path / name
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


# Header, line of row i (0.1 s apart, 4 W), options, the meter it is taken for.
FORMATS = {
    "fnirsi": (
        "timestamp sample_in_packet voltage_V current_A dp_V dn_V temp_C energy_Ws",
        "{t:.6f} 0 5.00000 0.80000 0.60 0.60 31.0 1.0",
        {},
        "fnb58",
    ),
    "ppk2": ("Timestamp(ms),Current(uA),D0", "{i}00,800000,0", {"voltage": 5.0}, "ppk2"),
    "otii": ("Time (s),Main current (A),Main voltage (V)", "{t:.1f},0.8,5.0", {}, "otii"),
    "joulescope": ("#time,current,voltage", "{t:.1f},0.8,5.0", {}, "js220"),
    "power-z": ("Time(s),VBUS(V),IBUS(A),CC1(V)", "{t:.1f},5.0,0.8,1", {}, "powerz"),
    "ina226 script": (
        "timestamp_ms;bus_voltage_V;shunt_mV;current_mA;power_mW",
        "{i}00;5.0;8;800;4000",
        {},
        "ina",
    ),
    "ina226 by name": ("ms,INA226 V,INA226 mA", "{i}00,5.0,800", {
        "columns": {"time": "ms:ms", "voltage": "INA226 V", "current": "INA226 mA:mA"}},
        "ina226"),
    "scope": ("Time(s),CH1(V),CH2(A)", "{t:.1f},5.0,0.8", {}, "scope"),
    "elapsed": ("elapsed\tvbus\tibus", "00:00:{t:06.3f}\t5.0\t0.8", {}, "powerz"),
    "epoch s": ("time,power_W", "{e:.1f},4.0", {}, None),
    "epoch ms": ("time,power_W", "{ms},4.0", {}, None),
    "epoch us": ("ts,power (W)", "{us},4.0", {}, None),
    "epoch ns": ("time [s];P [mW]", "{ns};4000", {}, None),
    "iso": ("datetime,power", "2026-01-02T03:04:{t:06.3f}Z,4.0", {}, None),
    "day first": ("Datum;Zeit;Leistung [W]", "27.11.2026;10:00:{s};4,0", {}, None),
    "month first": ("Date,Time,Power (W)", "11/27/2026,10:00:{t:04.1f} AM,4.0", {}, None),
    "decimal comma": ("Zeit (s);Spannung (V);Strom (mA)", "{c};5,00;800,0", {}, None),
    "over midnight": ("time\tpower_W", "{clock}\t4.0", {}, None),
    "no unit of time": ("time,power_W", "{t:.1f},4.0", {}, None),
    "preamble": ("time (s),power (W)", "{t:.1f},4.0", {}, None),
    "named columns": ("a,b,c", "{i}00,5.0,800", {
        "columns": {"time": "a:ms", "voltage": "b", "current": "c:mA"}}, None),
    "no time": ("voltage_V,current_A", "5.0,0.8", {"interval_s": 0.1}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    head, line, options, meter = FORMATS[name]
    text = []
    for i in range(50):
        t = i * 0.1
        e = 1_796_000_000 + t
        second = 57.5 + t
        clock = f"23:59:{second:06.3f}" if second < 60 else f"00:00:{second - 60:06.3f}"
        text.append(
            line.format(
                i=i, t=t, e=e, ms=round(e * 1e3), us=round(e * 1e6), ns=round(e * 1e9),
                s=f"{t:04.1f}".replace(".", ","), clock=clock,
                c=f"{t:.1f}".replace(".", ","),
            )
        )  # fmt: skip
    above = ["# made by hand", "Model,DL3021"] if name == "preamble" else []
    recording = read_meter(write(tmp_path, [*above, head, *text, "nonsense"]), **options)
    first, last = recording.samples[0], recording.samples[-1]
    assert len(recording.samples) == 50
    assert (last.t_ns - first.t_ns) * 1e-9 == pytest.approx(4.9, abs=1e-3)
    assert all(r.watts["METER"] == pytest.approx(4.0) for r in recording.samples)
    assert recording.name == (f"meter:{meter}" if meter else "meter-csv")
    known = recording.accuracy["METER"]
    assert (known.gain is not None) == (meter is not None)
    if meter:
        assert load_instruments()[meter].source in known.source


JSON_LINES = {
    "shelly": (
        {"id": 0, "apower": 4.0, "voltage": 230.1, "aenergy": {"total": 6}},
        "shelly",
        "ts",
    ),
    "tasmota": ({"ENERGY": {"Power": 4, "Voltage": 230, "Total": 1.5}}, "tasmota", "Time"),
}


@pytest.mark.parametrize("name", JSON_LINES)
def test_json_lines_of_plugs(tmp_path, name):
    value, meter, key = JSON_LINES[name]
    lines = []
    for i in range(30):
        stamp = 1_796_000_000 + i if key == "ts" else f"2026-01-02T03:04:{i:02d}"
        lines.append(json.dumps({key: stamp, **value}))
    path = write(tmp_path, lines, "plug.jsonl")
    assert kind_of(path) == "meter"
    (row,) = load_rows(path, ())
    assert row.energy_j == pytest.approx(116.0) and row.scope == "wall"
    assert row.source == f"meter:{meter}" and not row.resolution_only
    before = [f"2026-01-02 03:04:{i:02d} {json.dumps(value)}" for i in range(30)]
    (row,) = load_rows(write(tmp_path, before, "mosquitto.log"), ())
    assert row.energy_j == pytest.approx(116.0)


ASKS = {
    "current alone": ("Timestamp(ms),Current(uA)", "{i}00,8", "--voltage", "Current(uA)"),
    "a count": ("time,power_W", "{i}00,4.0", "time:ms", "'time'"),
    "two powers": ("time_s,power_in_W,power_out_W", "{t},4,3", "power=NAME", "power_in_W"),
    "two voltages": ("Time(s),CH1V,CH2V", "{t},5,0.8", "current=NAME:A", "CH1V"),
    "day or month": (
        "Date;Power (W)", "0{m}/02/2026;4.0", "YYYY-MM-DD", "'Date'",
    ),
    "unknown unit": ("time_s,power (hp)", "{t},4", "power=power (hp):W", "'hp'"),
    "unknown unit of time": ("time(fortnight),power_W", "{t},4", ":s", "fortnight"),
    "unit of another kind": ("time_s,power_mV", "{t},4", "power=power_mV:W", "'mv'"),
    "units swapped": ("Time(s),Voltage(A),Current(V)", "{t},5,1", "voltage=", "Voltage(A)"),
    "no power": ("time,temperature", "{t},20", "power=NAME", "temperature"),
    "no time": ("voltage_V,current_A", "5.0,0.8", "--interval", "voltage_V"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKS)
def test_what_is_open_is_asked_for_by_column(tmp_path, name):
    head, line, hint, column = ASKS[name]
    text = [line.format(i=i, t=i * 0.1, m=1 + i % 3) for i in range(40)]
    with pytest.raises(ConfigError) as caught:
        read_meter(write(tmp_path, [head, *text]))
    assert column in str(caught.value) and hint in caught.value.hint


def test_a_meter_that_is_not_known_says_resolution_only(tmp_path):
    path = write(tmp_path, ["time_s,power_W", *rows("{t:.1f},{t:.3f}")])
    (unknown,) = load_rows(path, ())
    assert unknown.resolution_only and "resolution only" in unknown.flags
    (stated,) = load_rows(path, (), meter={"accuracy": "0.5%+20mW"})
    (named,) = load_rows(path, (), meter={"meter": "um25c"})
    assert not stated.resolution_only and not named.resolution_only
    assert unknown.uncertainty_j < stated.uncertainty_j < named.uncertainty_j
    assert unknown.energy_j == stated.energy_j == named.energy_j
    with pytest.raises(ConfigError, match="no meter 'toaster'"):
        load_rows(path, (), meter={"meter": "toaster"})


def test_accuracy_as_a_maker_states_it():
    assert parse_accuracy("0.5%") == (0.005, 0.0)
    assert parse_accuracy("\u00b11 % + 20mW") == (0.01, pytest.approx(0.02))
    for odd in ("good", "1.2.3%", "..W", "5"):
        with pytest.raises(ConfigError, match="--accuracy"):
            parse_accuracy(odd)


@pytest.mark.parametrize("step", ["1.2.3", "+-", "0", "-0.1", "0.1"])
def test_an_increment_that_is_none_is_asked_for(tmp_path, step):
    text = [f"Increment,{step}", "voltage_V,current_A", *rows("5.0,0.8")]
    path = write(tmp_path, text)
    if step == "0.1":
        assert load_rows(path, ())[0].energy_j == pytest.approx(4.0 * 4.9)
        return
    with pytest.raises(ConfigError, match="no increment") as caught:
        read_meter(path)
    assert "--interval" in caught.value.hint


def test_packed_files_and_rubbish(tmp_path):
    text = "\n".join(["time_s,power_W", *rows("{t:.1f},4.0")])
    path = tmp_path / "meter.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    (row,) = load_rows(path, ())
    assert row.energy_j == pytest.approx(19.6)
    for rubbish in (b"", b"\0\1\2" * 1000, b"time,power\n", b"a" * 100_000):
        path = tmp_path / "rubbish.csv"
        path.write_bytes(rubbish)
        with pytest.raises(ConfigError):
            read_meter(path)


def test_every_meter_of_the_table_states_figures_and_where_they_are_from():
    for meter in load_instruments().values():
        assert meter.source and meter.kind and 0 < meter.gain < 0.5, meter.name
        assert meter.url.startswith("https://") or meter.kind == "assumed", meter.name
        assert ("unverified: " in meter.provenance) == bool(meter.unread)
        assert ("give --accuracy" in meter.provenance) == bool(meter.unread)
    # Only a chip that the file names may have its figures; else the least exact.
    known = load_instruments()
    for one in (one for name, one in known.items() if name.startswith("ina")):
        assert known["ina"].gain >= one.gain, one.name
        assert known["ina"].offset_a >= one.offset_a, one.name
        assert known["ina"].offset_v >= one.offset_v, one.name
    # JS110, 2 A range: 0.3 % + 1.5 mA, and nothing below it for a file of either kind.
    assert min(known["js110"].offset_a, known["js220"].offset_a) >= 1.5e-3


TENTHS = [0.1 * i for i in range(100)]


@pytest.mark.parametrize(
    ("times", "anew"),
    [
        ([(4_290_000_000 + i * 100_000) % 2**32 * 1e-6 for i in range(100)], True),
        (TENTHS[:50] * 2, True),
        ([*TENTHS[:60], 3.0, *TENTHS[61:]], False),
        (TENTHS[::-1], False),
    ],
    ids=["a counter of 32 bits", "two files in one", "one row", "newest first"],
)
def test_times_that_begin_anew_go_on(tmp_path, times, anew):
    path = write(tmp_path, ["time_s,power_W", *(f"{t:.6f},4.0" for t in times)])
    (row,) = load_rows(path, [])
    assert row.energy_j == pytest.approx(0.4 * 99) and row.coverage == 1.0
    assert any("times go back" in note for note in row.notes) == anew


def test_a_power_that_is_no_number_is_no_reading(tmp_path):
    cells = [4.0, 4.0, "inf", 4.0, "nan", *[4.0] * 45]
    path = write(tmp_path, ["time_s,power_W", *(f"{i},{c}" for i, c in enumerate(cells))])
    (row,) = load_rows(path, [])
    assert row.energy_j == pytest.approx(4.0 * 49)
    assert "2 rows could not be read" in row.notes


# Meters on a serial port.


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("Bus Voltage: 5.02 V  Current: 800 mA", 4.016),
        ("5.000V 0.8000A 4.000W", 4.0),
        ("Shunt: 8.0 mV, Bus: 5.0 V, I=0.8 A", 4.0),
        ("P=4080mW", 4.08),
        ("7,5.02V,8.0e-1A", 4.016),
        ("5,02 V, 800 mA", None),
        ("5,00V 0,80A 4,00W", None),
        ("hello", None),
        ("5.0 V", None),
    ],
)
def test_lines_of_a_meter(line, watts):
    assert parse_line(line) == (None if watts is None else pytest.approx(watts))


@contextlib.contextmanager
def talking(port):
    """A meter on a port, until it is pulled out."""
    ours, theirs = pty.openpty()
    port.unlink(missing_ok=True)
    port.symlink_to(os.ttyname(theirs))
    stop = threading.Event()

    def talk():
        while not stop.wait(0.02):
            os.write(ours, b"garbage\nBus: 5.00 V Current: 800.0 mA\r\n")

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        yield
    finally:
        stop.set()
        talker.join()
        os.close(ours)
        os.close(theirs)


def test_a_meter_on_a_serial_port(tmp_path):
    port = tmp_path / "ttyUSB0"
    with talking(port):
        source = LineMeter(f"{port},9600")
        assert source.read().watts["METER"] == pytest.approx(4.0)
        assert 0.001 <= source.update_s < 5.0
    with pytest.raises(SensorError, match="ended"):
        for _ in range(1000):
            source.read()
    port.unlink()
    with pytest.raises(SensorError, match="cannot open the serial port"):
        source.read()
    with talking(port):  # plugged in again
        assert source.read().watts["METER"] == pytest.approx(4.0)
    source.close()


def test_a_ppk2_wants_its_volts():
    for volts in ("", ",x", ",nan", ",-5"):
        with pytest.raises(ConfigError, match="current alone"):
            Ppk2Source("/dev/ttyACM0" + volts)
