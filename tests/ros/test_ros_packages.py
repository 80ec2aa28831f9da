"""The ROS packages are whole: manifests, interfaces, installed files."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
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
    text = (folder / "CMakeLists.txt").read_text()
    listed = set(re.findall(r'"((?:msg|action)/\w+\.\w+)"', text))
    files = [*folder.rglob("*.msg"), *folder.rglob("*.action")]
    assert listed == {f"{path.parent.name}/{path.name}" for path in files}
    known, actions = ros_double.interfaces()
    whole = [(a, p) for a in actions.values() for p in ("Goal", "Result", "Feedback")]
    for made in [*known.values(), *(getattr(action, part) for action, part in whole)]:
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


def test_the_launch_file_activates_what_was_configured_and_not_what_was_deactivated():
    text = (ROS / "draftwire_ros" / "launch" / "draftwire.launch.py").read_text()
    (call,) = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "OnStateTransition"
    ]
    named = {word.arg: ast.unparse(word.value) for word in call.keywords}
    assert (named["start_state"], named["goal_state"]) == ("'configuring'", "'inactive'")


LINTERS = ("ament_flake8", "ament_pycodestyle", "ament_pep257", "ament_lint_cmake")


@pytest.mark.parametrize("name", LINTERS)
def test_the_linters_of_ament_find_nothing(name, tmp_path):
    beside = str(Path(sys.executable).parent)
    command = shutil.which(name, path=beside) or shutil.which(name)
    if command is None:
        pytest.skip(f"{name} is not installed; ros/README.md says where it is")
    # In a copy, where they also have to find what is wrong.
    shutil.copytree(ROS, tmp_path / "ros")
    for wrong in (False, True):
        if wrong:
            (tmp_path / "ros" / "wrong.py").write_text("def  f( ):\n    '''x'''\n")
            (tmp_path / "ros" / "CMakeLists.txt").write_text("if( A )\nENDIF()\n")
        run = {"cwd": tmp_path / "ros", "capture_output": True, "text": True}
        done = subprocess.run([command, "."], check=False, **run)
        assert (done.returncode != 0) == wrong, done.stdout + done.stderr


@pytest.mark.parametrize("name", PACKAGES)
def test_the_manifests_are_valid_to_catkin(name):
    package = pytest.importorskip("catkin_pkg.package", reason="no catkin-pkg here")
    found: list[str] = []
    package.parse_package(str(ROS / name), warnings=found).validate(warnings=found)
    assert found == []
