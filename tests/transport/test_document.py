"""PROTOCOL.md prints the tables of protocol.json, and protocol.json fits the messages.

Run as a program, this writes the tables into PROTOCOL.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from draftwire.transport import messages
from draftwire.transport.messages import Finish, Kind

ROOT = Path(__file__).resolve().parents[2] / "transport"
PROTOCOL = ROOT / "PROTOCOL.md"
SCHEMA = json.loads((ROOT / "protocol.json").read_text("utf-8"))


def value_of(entry):
    """Return how a field is written, for people."""
    kind = entry["type"]
    if kind == "bytes":
        sizes = [str(n) for n in entry.get("sizes", ()) if n]
        return f"{' or '.join(sizes)} bytes" if sizes else "bytes"
    if kind == "varint" and entry["max"] < 2**16:
        return f"varint to {entry['max']}"
    return f"code of {entry['registry']}" if kind == "code" else kind


def default_of(entry):
    default = entry.get("default")
    if default in (None, [], ""):
        return ""
    default = " ".join(default) if isinstance(default, list) else default
    return f" (default {int(default) if isinstance(default, bool) else default})"


def message_tables():
    """Return one table of all messages."""
    lines = ["| kind | from | part | holds | meaning |", "|---|---|---|---|---|"]
    for kind in SCHEMA["kinds"]:
        name = f"**{kind['kind']} {kind['name']}**"
        lines.append(f"| {name} | {kind['from']} | | | {kind['meaning']} |")
        for flag in kind.get("flags", ()):
            what = f"flag {flag['bit']:#04x}"
            lines.append(f"| | | {what} | {flag['name']} | {flag['meaning']} |")
        for part in kind.get("brief", ()):
            what = f"brief {part['name']}"
            lines.append(f"| | | {what} | {value_of(part)} | {part['meaning']} |")
        for part in kind.get("head", ()):
            without = any(f.get("absent") == part["name"] for f in kind.get("flags", ()))
            meaning = part["meaning"] + (", unless `no token`" if without else "")
            lines.append(f"| | | head {part['name']} | {value_of(part)} | {meaning} |")
        for field in kind.get("fields", ()):
            mark = "*" if field.get("required") else "!" if field.get("must") else ""
            what = f"{field['number']} {field['name']}{mark}"
            lines.append(
                f"| | | {what} | {value_of(field)} | "
                f"{field['meaning']}{default_of(field)} |"
            )
        for field in kind.get("reserved", ()):
            what = f"{field['number']} {field['name']}"
            lines.append(f"| | | {what} | reserved | {field['meaning']} |")
    for kind in SCHEMA["reserved"]:
        name = f"{kind['kind']} {kind['name']}"
        lines.append(f"| {name} | | | reserved | {kind['meaning']} |")
    return "\n".join(lines)


def code_tables():
    """Return the table of codes."""
    lines = ["| table | codes |", "|---|---|"]
    for name, codes in SCHEMA["codes"].items():
        said = " · ".join(f"{number} {word}" for number, word in codes.items())
        lines.append(f"| {name} | {said} |")
    return "\n".join(lines)


def capability_table():
    """Return the table of capabilities."""
    lines = ["| capability | means |", "|---|---|"]
    lines += [f"| `{n}` | {meaning} |" for n, meaning in SCHEMA["capabilities"].items()]
    return "\n".join(lines)


def written():
    """Return PROTOCOL.md with its tables as they are in protocol.json."""
    text = PROTOCOL.read_text(encoding="utf-8")
    tables = {
        "messages": message_tables(),
        "codes": code_tables(),
        "capabilities": capability_table(),
    }
    for name, table in tables.items():
        start = f"<!-- {name} -->\n"
        before, rest = text.split(start)
        after = rest[rest.index("<!-- end -->") :]
        text = before + start + table + "\n" + after
    return text


def test_protocol_md_prints_the_tables():
    assert written() == PROTOCOL.read_text(encoding="utf-8"), f"run python {__file__}"


def test_the_tables_fit_the_messages():
    classes = {kind["name"].capitalize() for kind in SCHEMA["kinds"]}
    assert classes == {cls.__name__ for cls in messages.Message.__args__}
    assert {k["name"]: k["kind"] for k in SCHEMA["kinds"]} == {
        k.name.lower(): int(k) for k in Kind
    }
    for kind in SCHEMA["kinds"]:
        cls = getattr(messages, kind["name"].capitalize())
        said = {f["name"] for f in kind.get("flags", ()) if "absent" not in f}
        for part in kind.get("head", ()):
            said |= set(part.get("parts", [part["name"]]))
        fields = kind.get("fields", ())
        said |= {f["name"] for f in fields}
        assert said == {f.name for f in dataclasses.fields(cls)}, kind["name"]
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        numbers = [f["number"] for f in (*fields, *kind.get("reserved", ()))]
        assert len(numbers) == len(set(numbers)), "a number was used twice"
        for field in fields:
            default = defaults[field["name"]]
            assert (default is dataclasses.MISSING) is field.get("required", False)
            if "default" in field:
                stated = field["default"]
                stated = tuple(stated) if isinstance(stated, list) else stated
                assert default == stated, (kind["name"], field["name"])
            elif field["type"] == "code" and field["name"] != "finish":
                assert default in (
                    SCHEMA["codes"][field["registry"]].get("0"),
                    dataclasses.MISSING,
                )
            else:
                assert not default or default is dataclasses.MISSING


def test_finishes_are_those_of_the_table():
    table = {int(n): word for n, word in SCHEMA["codes"]["finish"].items()}
    assert table == {int(f): f.name.lower().replace("_", " ") for f in Finish}


if __name__ == "__main__":
    text = written()
    PROTOCOL.write_text(text, encoding="utf-8")
    sys.exit(0)
