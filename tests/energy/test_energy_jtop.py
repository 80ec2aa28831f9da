"""jtop: the shapes of its API, and the real package of each where it is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from energy_lab import nx_rails

from draftwire.energy.rails import choose_total, load_tables
from draftwire.energy.sources.jetson import JtopSource, rail_watts
from draftwire.errors import SensorError

TABLES = load_tables()


class Client:
    def __init__(self, power):
        self.power = power
        self.closed = False

    def ok(self):
        return True

    def close(self):
        self.closed = True


OLD = (  # 3.1: the input rail is the total, names are cut
    {"cur": 4200, "avg": 1},
    {"5V GPU": {"cur": 80, "avg": 1}, "5V CPU": {"cur": 900, "avg": 1}},
)
OLD_SUM = (
    {"cur": 3113, "avg": 1},
    {"GPU": {"cur": 0}, "CPU": {"cur": 216}, "SOC": {"cur": 864}, "CV": {"cur": 0},
     "VDDRQ": {"cur": 144}, "SYS5V": {"cur": 1889}},
)  # fmt: skip
NEW = {  # 4.3 and 7.2: the input rail is the total, which has its name
    "rail": {
        "VDD_SOC": {},
        "VDD_CPU_GPU_CV": {"volt": 5000, "curr": 200, "power": 1000, "avg": 1},
        "NC": {"power": 7},
    },
    "tot": {"volt": 5000, "curr": 840, "power": 4200, "avg": 1, "name": "VDD_IN"},
}
THOR = {
    "rail": {
        "VDD_GPU": {"power": 1962},
        "VDD_CPU_SOC_MSS": {"power": 5887},
        "VIN_SYS_5V0": {"power": 5635},
    },
    "tot": {"power": 19780, "avg": 1, "name": "VIN"},
}


@pytest.mark.parametrize(
    ("power", "total", "watts"),
    [
        (OLD, ["POM_5V_IN"], 4.2),
        (OLD_SUM, ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"], 3.113),
        (NEW, ["VDD_IN"], 4.2),
        (THOR, ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], 13.484),
    ],
)
def test_jtop_shapes(power, total, watts):
    source = JtopSource(Client(power))
    found = source.read().watts
    assert "NC" not in found and "VDD_SOC" not in found
    choice = choose_total(source.rails, TABLES)
    assert choice.total is not None and sorted(choice.total.rails) == sorted(total)
    assert sum(found[rail] for rail in total) == pytest.approx(watts)


JTOP = [Path(p) for p in os.environ.get("JETSON_STATS_FOLDERS", "").split(os.pathsep) if p]
JTOP_PROGRAM = """
import json, sys
from draftwire.energy.sources.jetson import JtopSource
import jtop
folder, milliwatt = sys.argv[1], int(sys.argv[2])
client = jtop.jtop.__new__(jtop.jtop)
try:
    from jtop.core import power
except ImportError:  # before 4.2: tegrastats, parsed and renamed by its service
    from jtop.core.tegra_parse import WATTS
    from jtop.service import JtopServer
    text = f"VDD_IN {milliwatt}/{milliwatt} VDD_CPU_GPU_CV 900/900 VDD_SOC 700/700"
    short = {k.replace("VDD_", "").replace("_", " "): v for k, v in WATTS(text).items()}
    total, rails = JtopServer._total_power(None, short)
    client._stats = {"power": {"all": total, "power": rails}}
else:
    service = power.PowerService.__new__(power.PowerService)
    service._power_sensor, service._power_avg = power.list_all_i2c_ports(folder), {}
    client._stats = {"power": service.get_status()}
type(client).ok = lambda self, spin=False: True
type(client).close = lambda self: None
print(json.dumps(JtopSource(client).read().watts))
"""


@pytest.mark.skipif(not JTOP, reason="JETSON_STATS_FOLDERS names no jetson-stats")
@pytest.mark.parametrize("folder", JTOP, ids=lambda path: path.name)
def test_the_real_jetson_stats(tmp_path, folder):
    """Its own service code on a tree, its own client, in a process of their own."""
    nx_rails(tmp_path)
    tree = tmp_path / "sys/bus/i2c/drivers/ina3221/7-0040/hwmon/hwmon3"
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", JTOP_PROGRAM, str(tree), "5000"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(folder)])},
        stdout=subprocess.PIPE,
        check=True,
    )
    watts = json.loads(done.stdout.splitlines()[-1])
    assert watts["VDD_IN"] == pytest.approx(5.0)
    assert choose_total(watts, TABLES).total.rails == ("VDD_IN",)


def test_jtop_without_rails_is_no_zero():
    client = Client({"rail": {}, "tot": {"power": 0}})
    with pytest.raises(SensorError, match="no power rail"):
        JtopSource(client)
    assert client.closed
    assert rail_watts(None) == {}
