"""draftwire's own wheel, made from the files that run: no build tool, no network.

The same files give the same bytes (with the same zlib), from a checkout and from an
installed package.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zipfile
from pathlib import Path

import draftwire
from draftwire.errors import ConfigError

_KINDS = {
    *(".py", ".toml", ".json", ".md", ".css", ".js", ".service", ".rules", ".conf"),
    *(".sh", ".typed", ".mplstyle"),
}
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # zip knows no earlier time
_WHEEL = """\
Wheel-Version: 1.0
Generator: draftwire
Root-Is-Purelib: true
Tag: py3-none-any
"""
_METADATA = """\
Metadata-Version: 2.1
Name: draftwire
Version: {version}
Summary: A frozen draft model on the board, the target model in the cloud
License: Apache-2.0
Requires-Python: >=3.8
Requires-Dist: numpy>=1.24
Requires-Dist: websockets>=13.1,<18
Requires-Dist: tomli>=2; python_version < "3.11"
"""
_ENTRY = "[console_scripts]\ndraftwire = draftwire.__main__:main\n"


def own_wheel() -> tuple[str, bytes]:
    """Return the name and the content of draftwire's wheel; a ConfigError where it runs
    from something that is not a folder."""
    folder = Path(draftwire.__file__).absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"draftwire does not run from a folder ({folder})")
    version = draftwire.__version__
    files = {}
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            path = Path(here) / name
            if path.suffix in _KINDS or name == "py.typed":
                inside = path.relative_to(folder).as_posix()
                files[f"draftwire/{inside}"] = path.read_bytes()
    info = f"draftwire-{version}.dist-info"
    files[f"{info}/METADATA"] = _METADATA.format(version=version).encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    files[f"{info}/entry_points.txt"] = _ENTRY.encode()
    record = "".join(f"{name},{_digest(data)}\n" for name, data in sorted(files.items()))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return f"draftwire-{version}-py3-none-any.whl", zip_bytes(files)


def zip_bytes(files: dict[str, bytes]) -> bytes:
    """Return a zip of ``files``: sorted, and without the time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # Unix, whatever wrote it
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    raw = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={raw.decode('ascii')},{len(data)}"
