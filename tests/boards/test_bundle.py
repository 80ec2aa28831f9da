"""What is in a bundle, and what is refused before a byte of it is written."""

import ast
import base64
import fnmatch
import gzip
import hashlib
import json
import os
import zipfile
from pathlib import Path

import bundles
import pytest
from bundles import MAKER, STRANGER, bundle, header, key_argument, members, pack, tree

import draftwire
from draftwire.boards.install import script as script_module
from draftwire.boards.install.archive import (
    check_bundle,
    check_name,
    read_key,
)
from draftwire.boards.install.ed25519 import verify_signature
from draftwire.boards.install.main import run
from draftwire.boards.install.trouble import InstallError
from draftwire.boards.ship.bundle import bundle_files, write_bundle
from draftwire.boards.ship.own_wheel import own_wheel
from draftwire.cli import main
from draftwire.errors import ConfigError, OutputError
from draftwire.io import scratch_in


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return bundle(tmp_path_factory.mktemp("bundle"), "good")


# ---- Ed25519

# RFC 8032, section 7.1: TEST 1, 2, 3 and SHA(abc), typed from the text.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bac"
        "c61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e"
        "458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290"
        "ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        hashlib.sha512(b"abc").hexdigest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ec"
        "fdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS)
def test_signatures_of_the_rfc(key, message, signature):
    raw = [bytes.fromhex(text) for text in (key, message, signature)]
    assert verify_signature(*raw)
    for place in range(3):
        for bit in (0, 7, 100, 255):
            changed = [bytearray(part or b"\0") for part in raw]
            changed[place][bit // 8 % len(changed[place])] ^= 1 << bit % 8
            assert not verify_signature(*(bytes(part) for part in changed))


def test_signatures_that_only_look_right():
    key, message, signature = (bytes.fromhex(text) for text in VECTORS[1])
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    assert not verify_signature(key, message, signature[:32] + s.to_bytes(32, "little"))
    # The neutral point as a key would verify a signature of zero over anything.
    neutral = (1).to_bytes(32, "little")
    assert not verify_signature(neutral, b"anything", neutral + bytes(32))
    off_curve = (2).to_bytes(32, "little")
    assert not verify_signature(off_curve, message, signature)
    assert not verify_signature((2**255 - 19).to_bytes(32, "little"), message, signature)
    for cut in (key[:31], key + b"\0"):
        assert not verify_signature(cut, message, signature)
    assert not verify_signature(key, message, signature[:63])


@pytest.mark.workstation
def test_our_verifier_and_cryptography_agree(tmp_path):
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    for number in range(8):
        seed, message = os.urandom(32), os.urandom(number * 37)
        secret = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        public = bundles.public_of(seed)
        assert public == secret.public_key().public_bytes_raw()
        assert verify_signature(public, message, secret.sign(message))
        assert bundles.rfc8032_sign(seed, message) == secret.sign(message)


@pytest.mark.workstation
def test_keys_are_made_kept_and_used(tmp_path):
    pytest.importorskip("cryptography")
    from draftwire.boards.ship import signing

    path = tmp_path / "maker.key"
    key = signing.make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(str(tmp_path / "maker.key.pub")) == key == read_key(key.text)
    with pytest.raises(ConfigError, match="there already"):
        signing.make_key(path)
    (tmp_path / "other.pub").write_text("somebody's")
    with pytest.raises(ConfigError, match="other.pub is there already"):
        signing.make_key(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    signer = signing.load_signer(path)
    made = bundle(tmp_path, by=signer)
    assert check_bundle(made, key, unsigned=False).key == key
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        signing.load_signer(path)
    (tmp_path / "odd").write_text("no key")
    (tmp_path / "odd").chmod(0o600)
    for name in ("odd", "maker.key.pub"):
        with pytest.raises(ConfigError, match="no secret key"):
            signing.load_signer(tmp_path / name)


# ---- trust


def refused(path, complaint, trusted=MAKER.key, **how):
    with pytest.raises(InstallError, match=complaint):
        check_bundle(path, trusted, unsigned=how.get("unsigned", False))


def test_whom_a_board_trusts(good, tmp_path, capsys):
    assert check_bundle(good, MAKER.key, unsigned=False).key == MAKER.key
    refused(good, "this board trusts", STRANGER.key)
    refused(good, "no key says whom to trust", None)
    bare = bundle(tmp_path, "bare", by=None)
    refused(bare, "not signed")
    assert check_bundle(bare, None, unsigned=True).key is None
    # The installed key decides, and changes only when told.
    prefix = ["--prefix", str(tmp_path / "opt"), "--no-system", "--no-compile", "-q"]
    prefix += ["--python", os.sys.executable]
    assert run(["install", str(good), *prefix]) == 2
    assert run(["install", str(good), "--key", key_argument(), *prefix]) == 0
    other = bundle(tmp_path, "other", by=STRANGER)
    assert run(["install", str(other), *prefix]) == 5
    stranger = ["--key", key_argument(STRANGER)]
    assert run(["install", str(other), *stranger, *prefix]) == 2
    assert "--replace-key" in capsys.readouterr().err
    assert run(["install", str(other), *stranger, "--replace-key", *prefix]) == 0
    assert run(["install", str(good), *prefix]) == 5
    for odd in ("ed25519:short", "rsa:" + "A" * 43 + "=", "/nowhere"):
        assert run(["install", str(good), "--key", odd, *prefix]) == 2


def test_every_changed_byte_of_a_manifest_or_signature_is_seen(good, tmp_path):
    parts = members(good)
    for index in (0, 1):
        head, data = parts[index]
        for at in range(0, len(data), max(1, len(data) // 12)):
            changed = bytearray(data)
            changed[at] ^= 1
            whole = [*parts[:index], (head, bytes(changed)), *parts[index + 1 :]]
            refused(pack(tmp_path / "bad", whole), "signature|signed by|not signed")
    empty = pack(tmp_path / "bad", [parts[0], (header("manifest.sig", 0), b""), *parts[2:]])
    refused(empty, "not signed")


def test_every_changed_file_is_seen(good, tmp_path):
    parts = members(good)
    for index in range(2, len(parts)):
        head, data = parts[index]
        changed = bytearray(data)
        changed[len(data) // 2] ^= 1
        whole = [*parts[:index], (head, bytes(changed)), *parts[index + 1 :]]
        refused(pack(tmp_path / "bad", whole), "hash")
        refused(pack(tmp_path / "bad", parts[:index] + parts[index + 1 :]), "lacks")
    refused(pack(tmp_path / "bad", [*parts, parts[2]]), "twice")
    more = (header("wheels/extra.whl", 3), b"abc")
    refused(pack(tmp_path / "bad", [*parts, more]), "does not name")
    longer = (header("install.sh", 3), b"abc")
    refused(pack(tmp_path / "bad", [*parts[:2], longer]), "has 3 bytes, the manifest says")


PATHS = ("../../etc/passwd", "/etc/passwd", "a/../../b", "a//b", ".hidden", "a\\b", "a b")
KINDS = {"device": b"3", "block": b"4", "folder": b"5", "pipe": b"6"}
LONGER = {"sparse": b"S", "longname": b"L", "pax": b"x", "global": b"g", "old": b"\0"}
TRICKS = [
    *(header(path, 1) for path in PATHS),
    header("link", 0, b"2", "/etc/passwd"),
    header("hard", 0, b"1", "install.sh"),
    *(header(name, 0, kind) for name, kind in KINDS.items()),
    *(header(name, 1, kind) for name, kind in LONGER.items()),
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda h: repr(h[:16].rstrip(b"\0")))
def test_tricks_with_paths_and_kinds(good, tmp_path, trick):
    parts = members(good)
    data = b"x" * int(trick[124:135], 8)
    bad = pack(tmp_path / "bad.tar.gz", [*parts, (trick, data)])
    refused(bad, "unfit name|no plain file")
    first = pack(tmp_path / "bad.tar.gz", [(trick, data), *parts])
    refused(first, "unfit name|no plain file|not where it must be")
    assert run(["check", str(bad), "--key", key_argument()]) == 5


def test_a_signed_manifest_cannot_name_a_bad_place_either(tmp_path, good):
    for name in ("../x", "/x", "a/.x", "a/" * 9 + "b", "x" * 200, ""):
        with pytest.raises(InstallError):
            check_name(name)
        manifest = json.loads(members(good)[0][1])
        manifest["files"] = {name: {"sha256": "0", "bytes": 0}}
        refused(pack(tmp_path / "bad", bundles.resigned(manifest)), "unfit name")
    for change in (
        {"schema": "draftwire.bundle/9"}, {"id": "../x"}, {"files": {}}, {"files": []},
        {"python": None}, {"modules": ["os; x"]}, {"installed_bytes": "1"},
    ):  # fmt: skip
        manifest = {**json.loads(members(good)[0][1]), **change}
        refused(pack(tmp_path / "bad", bundles.resigned(manifest)), ".")


def test_damaged_archives(good, tmp_path):
    raw = good.read_bytes()
    half = raw[: len(raw) // 2]
    for data in (b"", b"\x1f\x8b", b"PK\3\4" + raw, raw[:200], raw[:-20], half):
        bad = tmp_path / "bad"
        bad.write_bytes(data)
        with pytest.raises(InstallError):
            check_bundle(bad, MAKER.key, unsigned=False)
    plain = gzip.decompress(raw)
    for at in (100, 124, 148, 257):  # mode, size, checksum, magic of the first header
        changed = bytearray(plain)
        changed[at] ^= 1
        bad.write_bytes(gzip.compress(bytes(changed)))
        refused(bad, "damaged|no ustar")
    huge = [(header("manifest.json", 1 << 30), b"{}")]
    refused(pack(bad, huge), "at most")
    refused(tmp_path / "gone", "there is no bundle")


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../up.py", 0), ("/abs.py", 0), ("a/../../up.py", 0), ("a\\b.py", 0)]
    + [("link", 0o120777)],
)
def test_tricks_inside_a_wheel(tmp_path, name, mode, capsys):
    """Signed, so the maker's fault: still nothing lands outside."""
    path = tmp_path / "bad-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, b"x")
    made = bundle(tmp_path, "bad", wheels=[path], modules=())
    before = tree(tmp_path)
    words = ["--prefix", str(tmp_path / "opt"), "--no-system", "--no-compile"]
    words += ["--python", os.sys.executable, "--key", key_argument()]
    assert run(["install", str(made), *words]) == 5
    assert "unfit path" in (said := capsys.readouterr().err) or "no plain file" in said
    after = {n: v for n, v in tree(tmp_path).items() if not n.startswith("opt")}
    assert after == before


# ---- what is in it


def test_the_same_inputs_make_the_same_bytes(tmp_path, good):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        bundle(tmp_path / name, "good")
    os.utime(tmp_path / "b" / "marked-1.0-py3-none-any.whl", (0, 0))
    one, two = ((tmp_path / name / "good.tar.gz").read_bytes() for name in "ab")
    assert one == two
    again = check_bundle(good, MAKER.key, unsigned=False)
    assert again.manifest["draftwire"] == draftwire.__version__


def test_the_parts_of_a_bundle(tmp_path):
    content = bundles.content(
        tmp_path, group="robots", memory_mib=700, settings={"target": 'v"2'}
    )
    files = bundle_files(content)
    unit = files["system/draftwire.service"].decode()
    assert "MemoryMax=700M" in unit and "SupplementaryGroups=robots" in unit
    assert "--socket-group robots" in unit
    config = files["etc/draftwire.toml"].decode()
    from draftwire.settings import resolve

    place = tmp_path / "etc" / "draftwire.toml"
    place.parent.mkdir()
    place.write_text(config)
    values = resolve({}, config=place, environ={}, folder=tmp_path)
    assert values["target"].value == 'v"2'
    assert values["verifier"].value == "ws://127.0.0.1:1"
    assert values["draft"].value == place.parent / "../current/draft/tiny.draft"
    with pytest.raises(ConfigError, match="no group"):
        bundle_files(bundles.content(tmp_path, group="a b; rm"))


def test_a_bundle_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    content = bundles.content(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("draftwire.io.os.replace", full)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="No space left"):
        write_bundle(content, tmp_path / "out.tar.gz", MAKER)
    assert tree(tmp_path) == before


def test_our_own_wheel_holds_what_runs(tmp_path):
    name, data = own_wheel()
    assert name == f"draftwire-{draftwire.__version__}-py3-none-any.whl"
    assert own_wheel() == (name, data)
    (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / name) as archive:
        names = set(archive.namelist())
        info = f"draftwire-{draftwire.__version__}.dist-info"
        record = archive.read(f"{info}/RECORD").decode()
        for line in record.splitlines()[:-1]:
            path, digest, size = line.rsplit(",", 2)
            content = archive.read(path)
            raw = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            assert (digest, size) == (f"sha256={raw.decode()}", str(len(content)))
    assert {"draftwire/cli/__init__.py", "draftwire/runtime/session.py"} <= names
    assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
    # And the data files that setup.py says the rooms need.
    (said,) = (
        ast.literal_eval(word.value)
        for word in ast.walk(ast.parse((bundles.ROOT / "setup.py").read_text("utf-8")))
        if isinstance(word, ast.keyword) and word.arg == "package_data"
    )
    for package, patterns in said.items():
        for pattern in patterns:
            wanted = f"{package.replace('.', '/')}/{pattern}"
            assert fnmatch.filter(names, wanted), wanted


def test_the_script_defines_no_name_twice():
    text = script_module.installer_script().decode("ascii")
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [t.id for t in targets if isinstance(t, ast.Name)]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or node.names[0].name
            assert not module.startswith("draftwire")
    twice = {name for name in found if found.count(name) > 1}
    assert not twice, twice
    folder = Path(script_module.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "script"}
    assert modules == set(script_module.MODULES)


# ---- the command


def test_the_command_makes_what_the_installer_takes(tmp_path, capsys):
    """Without wheels from the registry: the board brings them, as a person may say."""
    own = bundles.wheel(tmp_path, "marked", {"marked/__init__.py": b""})
    words = ["boards", "bundle", "--board", "generic-x86", "--python", "3.11"]
    words += ["--draft", str(bundles.TINY), "--verifier", "wss://tower:1", "--target", "v1"]
    for name in ("numpy", "websockets", "tokenizers", "onnxruntime"):
        words += ["--without", name]
    out = tmp_path / "b.tar.gz"
    words += ["--wheel", str(own), "--out", str(out), "--json"]
    assert main(words) == 2
    assert "--new-key" in capsys.readouterr().out
    assert main([*words, "--unsigned", "--dry-run"]) == 0
    assert not out.exists()
    capsys.readouterr()
    assert main([*words, "--unsigned"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == out.stat().st_size and said["key"] is None
    manifest = check_bundle(out, None, unsigned=True).manifest
    assert manifest["id"] == said["id"] and manifest["glibc"] == "2.36"
    assert manifest["modules"] == ["marked"]
    assert manifest["system_modules"] == [
        "numpy", "onnxruntime", "tokenizers", "websockets",
    ]  # fmt: skip
    for wrong, complaint in (
        (["--board", "orin-nono"], "no board profile 'orin-nono'"),
        (["--python", "3.6"], "not known to come with Python 3.6"),
        (["--require", "numpy>=1"], "is not NAME==VERSION"),
        (["--without", "onxruntime"], "no bundle holds onxruntime"),
        (["--glibc", "abc"], "no version of glibc"),
        (["--glibc", "2"], "no version of glibc"),
        (["--group", "vidéo", "--dry-run"], "is no group"),
        (["--group", "a b", "--dry-run"], "is no group"),
        (["--memory-mib", "-5", "--dry-run"], "no memory limit"),
        (["--memory-mib", "9" * 30], "no memory limit"),
        (["--new-key", "k", "--show-key", "k"], "one at a time"),
        (["--draft", str(tmp_path)], "no draft package"),
        (["--verifier", "tower:8765"], "is not a verifier's address"),
        (["--wheel", str(tmp_path / "x-1-cp38-cp38-linux_armv7l.whl")], "does not fit"),
    ):
        assert main([*words, "--unsigned", *wrong]) in (2, 3, 5)
        assert complaint in capsys.readouterr().err


def test_a_cache_that_is_no_folder_is_a_sentence(tmp_path, capsys):
    """Before anything is fetched."""
    file = tmp_path / "file"
    file.touch()
    words = ["boards", "bundle", "--board", "generic-x86", "--python", "3.11", "--unsigned"]
    words += ["--draft", str(bundles.TINY), "--dry-run", "--cache", str(file)]
    assert main(words) == 2
    assert f"cannot write {file}: File exists" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot write"), scratch_in(file):
        pass


def test_the_installer_command(tmp_path, capsys):
    out = tmp_path / "install.sh"
    assert main(["boards", "installer", "--out", str(out)]) == 0
    assert hashlib.sha256(out.read_bytes()).hexdigest() in capsys.readouterr().out
    assert main(["boards", "installer"]) == 0
    assert capsys.readouterr().out.encode() == out.read_bytes()
    assert out.stat().st_mode & 0o100
