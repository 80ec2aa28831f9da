"""The ROS packages are whole: manifests, interfaces, installed files."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import ros_double

ROS = Path(__file__).resolve().parents[2] / "ros"
PACKAGES = ("draftwire_interfaces", "draftwire_ros")


@pytest.mark.parametrize("name", PACKAGES)
def test_manifests_say_what_format_3_wants(name):
    root = ElementTree.parse(ROS / name / "package.xml").getroot()
    assert root.tag == "package" and root.get("format") == "3"
    assert root.findtext("name") == name and root.findtext("license") == "Apache-2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", root.findtext("version"))
    assert root.find("maintainer").get("email") and root.findtext("description")
    kind = root.findtext("export/build_type")
    assert kind == {"draftwire_interfaces": "ament_cmake"}.get(name, "ament_python")


def test_every_interface_is_generated_and_every_type_is_known():
    folder = ROS / "draftwire_interfaces"
    listed = set(
        re.findall(r'"((?:msg|action)/\w+\.\w+)"', (folder / "CMakeLists.txt").read_text())
    )
    there = {
        f"{path.parent.name}/{path.name}"
        for path in folder.rglob("*.*")
        if path.suffix in (".msg", ".action")
    }
    assert listed == there
    known, actions = ros_double.interfaces()
    for made in [
        *known.values(),
        *(getattr(a, p) for a in actions.values() for p in ("Goal", "Result", "Feedback")),
    ]:
        made()  # each default fits its field
        for field in made.get_fields_and_field_types():
            assert re.fullmatch(r"[a-z](?:_?[a-z0-9]+)*", field), field


def test_what_the_node_imports_is_declared():
    root = ElementTree.parse(ROS / "draftwire_ros" / "package.xml").getroot()
    declared = {e.text for e in root.iter("exec_depend")}
    used = set()
    for path in (ROS / "draftwire_ros").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module.split(".")[0])
    ours = {"draftwire", "draftwire_ros", "setuptools", "ament_index_python"}
    standard = {"__future__", "threading", "typing", "json", "math", "os", "time", "sys"}
    assert used - ours - standard <= declared


def test_installed_files_are_there():
    text = (ROS / "draftwire_ros" / "setup.py").read_text()
    for name in ("package.xml", "launch/draftwire.launch.py", "config/draftwire.yaml"):
        assert name in text and (ROS / "draftwire_ros" / name).is_file()
    assert (ROS / "draftwire_ros" / "resource" / "draftwire_ros").is_file()


def test_parameters_of_the_file_are_those_of_the_node(monkeypatch):
    import importlib

    ros_double.install(monkeypatch)
    node = importlib.import_module("draftwire_ros.node")
    text = (ROS / "draftwire_ros" / "config" / "draftwire.yaml").read_text()
    assert set(re.findall(r"^ {4}(\w+):", text, re.M)) == set(node.PARAMETERS)
