"""Readings of the radio, from what the programs print."""

import pytest

from draftwire.errors import ConfigError
from draftwire.runtime.pacing.radio import parse_iw, parse_mmcli, read_radio

LTE = (
    '{"modem":{"signal":{"5g":{"rsrp":"--"},"lte":{"rsrp":"-97.00","rssi":"-65"},'
    '"refresh":{"rate":"5"}}}}'
)
WIFI = """Connected to 00:11:22:33:44:55 (on wlan0)
\tSSID: shop floor
\tsignal: -61 dBm
\trx bitrate: 130.0 MBit/s MCS 15
\ttx bitrate: 86.7 MBit/s MCS 4 short GI
"""


def test_what_the_programs_print():
    assert parse_mmcli(LTE) == {"signal_dbm": -97.0, "technology": "lte"}
    found = parse_iw(WIFI)
    assert found == {"signal_dbm": -61.0, "technology": "wifi", "tx_mbit_s": 86.7}


@pytest.mark.parametrize(
    "text", ["", "Not connected.", "{}", "[1]", '{"modem":{"signal":3}}']
)
def test_silence_is_no_reading(text):
    assert parse_mmcli(text) == {} and parse_iw(text) == {}


def test_sources():
    asked = []

    def run(words):
        asked.append(list(words))
        return WIFI

    assert read_radio("iw:wlp2s0", run=run)["signal_dbm"] == -61.0
    assert asked == [["iw", "dev", "wlp2s0", "link"]]
    assert read_radio("mmcli", run=lambda words: LTE)["source"] == "mmcli"
    with pytest.raises(ConfigError, match="radio source"):
        read_radio("psychic")


def test_a_missing_program_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot run iw"):
        read_radio("iw")
