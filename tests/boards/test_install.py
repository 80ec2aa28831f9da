"""The installer as a board meets it: killed at any step, short of room, or not for it."""

import errno
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys

import bundles
import pytest
from bundles import bundle, fake_root, forked, install, key_argument, tree

from draftwire.boards.install.disk import Disk
from draftwire.boards.install.layout import SYSTEM_FILES, WANTED_BY, Layout
from draftwire.boards.install.main import run
from draftwire.boards.install.trouble import InstallError


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two versions of a bundle, signed by the same maker."""
    folder = tmp_path_factory.mktemp("bundles")
    return bundle(folder, "one"), bundle(folder, "two")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A sync waits for everything that the machine writes, not for ours alone."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def words(path, prefix, *more):
    found = [str(path), "--key", key_argument(), "--prefix", str(prefix), "--no-system"]
    return ["install", *found, "--no-compile", "--python", sys.executable, "-q", *more]


def verb(name, prefix, *more):
    return run([name, "--prefix", str(prefix), "--no-system", "-q", *more])


def works(prefix):
    """Return what the installed command says: which version it is."""
    done = subprocess.run(
        [prefix / "bin" / "draftwire"], stdout=subprocess.PIPE, cwd="/", check=True
    )
    return done.stdout.decode().strip()


def test_install_update_roll_back_remove(pair, tmp_path, capsys):
    prefix = tmp_path / "opt"
    before = tree(tmp_path)
    assert run(words(pair[0], prefix)) == 0
    assert works(prefix) == "one"
    # The key is kept, so that an update names none; the owner's settings stay.
    (prefix / "etc" / "draftwire.toml").write_text('verifier = "wss://mine"\n')
    update = [w for w in words(pair[1], prefix) if w not in ("--key", key_argument())]
    assert run(update) == 0
    assert works(prefix) == "two"
    assert "mine" in (prefix / "etc" / "draftwire.toml").read_text()
    capsys.readouterr()
    assert verb("status", prefix) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["key"] == key_argument() and status["current"] != status["previous"]
    assert verb("rollback", prefix) == 0
    assert works(prefix) == "one"
    assert verb("rollback", prefix) == 0
    assert works(prefix) == "two"
    assert verb("verify", prefix) == 0
    draft = prefix / "current" / "draft" / "tiny.draft" / "draft.json"
    draft.write_text("{}")
    assert verb("verify", prefix) == 5
    assert verb("uninstall", prefix) == 0
    assert tree(tmp_path) == before


def test_the_script_runs_as_people_run_it(pair, tmp_path):
    prefix = tmp_path / "opt"
    done = install(tmp_path, *words(pair[0], prefix))
    assert (done.returncode, done.stderr) == (0, "")
    assert works(prefix) == "one"
    # What was installed can install the next one.
    again = subprocess.run(
        ["sh", str(prefix / "install.sh"), *words(pair[1], prefix)], check=False
    )
    assert again.returncode == 0
    assert works(prefix) == "two"
    assert "Illegal" not in install(tmp_path, "--help").stderr


def die_at(number):
    """Return a patch that kills the process before its ``number``-th change of the disk."""

    def patch():
        count = itertools.count()
        real = Disk._do

        def do(self, act, path):
            if next(count) == number:
                os._exit(99)
            real(self, act, path)

        Disk._do = do

    return patch


def test_killed_at_any_step_one_version_or_the_other_runs(pair, tmp_path):
    """Every change of the disk is a place to die; then the command is just run again."""
    first = tmp_path / "first"
    assert run(words(pair[0], first)) == 0
    seen = set()
    for number in itertools.count():
        prefix = tmp_path / f"opt{number}"
        shutil.copytree(first, prefix, symlinks=True)
        code = forked(words(pair[1], prefix), die_at(number))
        seen.add(works(prefix))
        if code == 0:
            break
        assert code == 99
        if number % 5 == 0:  # and what it left is no hindrance
            assert run(words(pair[1], prefix)) == 0
            assert works(prefix) == "two"
            assert not [n for n in os.listdir(prefix / "versions") if n.startswith(".")]
            assert verb("rollback", prefix) == 0
            assert works(prefix) == "one"
        shutil.rmtree(prefix)
    assert number > 15 and seen == {"one", "two"}


@pytest.mark.parametrize("step", [2, 9])
def test_a_full_disk_leaves_the_former_version(pair, tmp_path, capsys, step, monkeypatch):
    prefix = tmp_path / "opt"
    assert run(words(pair[0], prefix)) == 0
    before = tree(prefix / "versions")
    count = itertools.count()
    real = os.open

    def full(path, flags, *more, **named):
        if flags & os.O_CREAT and "versions" in str(path) and next(count) >= step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", full)
    assert run(words(pair[1], prefix)) == 3
    monkeypatch.undo()
    said = capsys.readouterr().err
    assert "No space left" in said and "df -h" in said
    assert tree(prefix / "versions") == before
    assert works(prefix) == "one"


def test_too_little_room_is_seen_before_anything_is_written(
    pair, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(Disk, "free_bytes", lambda self, path: 1 << 20)
    assert run(words(pair[0], tmp_path / "opt")) == 3
    assert "1 MiB free" in capsys.readouterr().err
    assert not (tmp_path / "opt").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arch": "sparc"}, "the bundle is for sparc, this system is"),
        ({"modules": ("there_is_no_such",)}, "No module named 'there_is_no_such'"),
        (
            {"userland": bundles.Userland("n", bundles.PYTHON, "9.1", "3")},
            "needs glibc 9.1",
        ),
    ],
)
def test_a_bundle_for_another_board_changes_nothing(
    pair, tmp_path, capsys, changes, complaint
):
    prefix = tmp_path / "opt"
    assert run(words(pair[0], prefix)) == 0
    before = tree(prefix)
    assert run(words(bundle(tmp_path, "odd", **changes), prefix)) == 3
    assert complaint in capsys.readouterr().err
    assert tree(prefix) == before
    assert works(prefix) == "one"


def test_a_python_that_is_not_there_is_named(tmp_path, capsys):
    odd = bundle(tmp_path, "odd", userland=bundles.Userland("odd", "3.77", "2.17", "3"))
    without_python = [w for w in words(odd, tmp_path / "opt") if w != sys.executable]
    without_python.remove("--python")
    assert run(without_python) == 3
    assert "for Python 3.77, found here:" in capsys.readouterr().err


def test_another_python_is_taken_for_a_version_that_is_there(pair, tmp_path, capsys):
    prefix, odd = tmp_path / "opt", tmp_path / "an odd ü" / "python3"

    def again(python, *more):
        said = [str(python) if w == sys.executable else w for w in words(pair[0], prefix)]
        return run([w for w in [*said, *more] if w != "-q"])

    assert again(sys.executable) == 0
    command = prefix / "current" / "bin" / "draftwire"
    before = command.read_bytes()
    odd.parent.mkdir()
    odd.write_text("#!/bin/sh\nexit 9\n")
    odd.chmod(0o755)
    assert again(odd) == 3 and command.read_bytes() == before  # it does not run there
    odd.write_text(f'#!/bin/sh\necho "$0" >&2\nexec "{sys.executable}" "$@"\n')
    assert again(odd, "--dry-run") == 0 and command.read_bytes() == before
    assert again(odd) == 0 and "from now on" in capsys.readouterr().out
    assert works(prefix) == "one" and command.stat().st_mode & 0o777 == 0o755
    done = subprocess.run([command], stderr=subprocess.PIPE, check=True)
    assert done.stderr.decode() == f"{odd}\n"
    assert again("bin/python3") == 2  # it would be looked for from wherever one stands
    shutil.rmtree(prefix)
    assert again(odd) == 0 and works(prefix) == "one"


def test_two_installations_at_once_are_one_too_many(pair, tmp_path, capsys):
    import fcntl

    prefix = tmp_path / "opt"
    assert run(words(pair[0], prefix)) == 0
    with open(prefix / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(words(pair[1], prefix)) == 3
    assert "another installation" in capsys.readouterr().err
    assert works(prefix) == "one"


# ---- an unpacked root file system


def root_words(path, root, *more):
    return ["install", str(path), "--key", key_argument(), "--rootfs", str(root), *more]


def orin(folder, mark="one", **changes):
    userland = bundles.Userland("L4T R36", "3.10", "2.35", "3.4.30")
    return bundle(folder, mark, arch="aarch64", userland=userland, **changes)


def test_a_rootfs_needs_nothing_at_its_first_boot(tmp_path):
    root = fake_root(tmp_path)
    before = tree(root)
    path = orin(tmp_path)
    done = install(tmp_path, *root_words(path, root, "--no-compile"))
    assert (done.returncode, done.stderr) == (0, "")
    after = tree(root)
    outside = {n for n in set(after) - set(before) if not n.startswith("opt/draftwire")}
    files = {n for n in outside if after[n] != "folder"}
    assert files == {place.lstrip("/") for place in (*SYSTEM_FILES.values(), WANTED_BY)}
    # As the board will see it: from its own root.
    at_boot = os.readlink(root / WANTED_BY.lstrip("/"))
    assert at_boot == SYSTEM_FILES["system/draftwire.service"]
    command = (root / "opt/draftwire/current/bin/draftwire").read_text()
    assert "exec /usr/bin/python3.10 -s" in command and str(tmp_path) not in command
    unit = (root / "etc/systemd/system/draftwire.service").read_text()
    assert "ExecStart=/opt/draftwire/current/bin/draftwire service run" in unit
    assert "@" not in unit.replace("journald@", "")
    for name, text in after.items():
        if text.startswith("->") and "draftwire" in name:
            assert str(tmp_path) not in text
    assert run(["uninstall", "--rootfs", str(root), "-q"]) == 0
    left = {n for n, kind in tree(root).items() if kind != "folder"}
    assert left == {n for n, kind in before.items() if kind != "folder"}
    assert "opt/draftwire" not in tree(root)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ({"machine": 62}, "for aarch64, this system is x86_64"),
        ({"machine": 40, "bits": 1}, "this system is armv7l"),
        ({"glibc": "2.31"}, "needs glibc 2.35 or newer, this system has 2.31"),
        ({"python": "3.8"}, "for Python 3.10, found here: 3.8"),
    ],
)
def test_a_rootfs_that_does_not_fit_stays_as_it_is(tmp_path, kind, complaint, capsys):
    root = fake_root(tmp_path, **kind)
    before = tree(root)
    assert run(root_words(orin(tmp_path), root)) == 3
    said = capsys.readouterr().err
    assert complaint in said
    if "this system is" in said:  # the hint is for the board that is here
        assert "--board generic-" in said and "orin" not in said
    assert tree(root) == before


def test_a_dry_run_writes_nothing_and_names_every_file(tmp_path, capsys):
    root = fake_root(tmp_path)
    path = orin(tmp_path)
    before = tree(tmp_path)
    assert run(root_words(path, root, "--dry-run")) == 0
    assert tree(tmp_path) == before
    said = capsys.readouterr().out
    for place in (*SYSTEM_FILES.values(), WANTED_BY, "/opt/draftwire/current"):
        assert place in said
    assert run(root_words(path, root, "--no-compile", "-q")) == 0
    capsys.readouterr()
    before = tree(tmp_path)
    for name in ("uninstall", "rollback"):
        run([name, "--rootfs", str(root), "--dry-run"])
        assert tree(tmp_path) == before
    assert "remove /etc/systemd/system/draftwire.service" in capsys.readouterr().out


def test_an_installation_without_system_files_stays_one(tmp_path):
    """Said once, at the installation; not with each rollback and update again."""
    root = fake_root(tmp_path)
    outside = [root / place[1:] for place in (*SYSTEM_FILES.values(), WANTED_BY)]
    there = lambda: [path for path in outside if os.path.lexists(path)]  # noqa: E731
    first, second = orin(tmp_path), orin(tmp_path, "two")
    assert run(root_words(first, root, "--no-compile", "-q", "--no-system")) == 0
    assert run(root_words(second, root, "--no-compile", "-q")) == 0
    assert run(["rollback", "--rootfs", str(root), "-q"]) == 0
    assert there() == []
    assert run(root_words(second, root, "--no-compile", "-q", "--system")) == 0
    assert run(["rollback", "--rootfs", str(root), "-q"]) == 0
    assert there() == outside
    assert run(["uninstall", "--rootfs", str(root), "-q"]) == 0
    assert there() == []


def test_links_of_a_rootfs_do_not_lead_out_of_it(tmp_path):
    root = fake_root(tmp_path)
    outside = tmp_path / "workstation"
    outside.mkdir()
    (root / "opt").rmdir()
    # Absolute, relative with too many steps up: both mean the board's own root.
    (root / "opt").symlink_to("/data/opt")
    (root / "data").symlink_to("../../../../workstation-data")
    assert run(root_words(orin(tmp_path), root, "--no-compile", "-q")) == 0
    assert (root / "workstation-data/opt/draftwire/current").is_symlink()
    assert not list(outside.iterdir())
    assert not (tmp_path / "workstation-data").exists()
    circle = Disk(root, dry=False, say=print)
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(InstallError, match="circle"):
        circle.real("/a/x")


@pytest.mark.parametrize(
    "prefix", ["relative", "/", "/usr", "/opt/a b", "/opt/../etc", "/opt/$x"]
)
def test_an_odd_prefix_is_refused(prefix):
    with pytest.raises(InstallError, match="prefix"):
        Layout(prefix)


def test_modes_and_the_handover(tmp_path, pair):
    prefix = tmp_path / "opt"
    mask = os.umask(0o077)  # a careful root's: the service's user must read it all the same
    try:
        assert run(words(pair[0], prefix)) == 0
    finally:
        os.umask(mask)
    for path in (prefix, *prefix.rglob("*")):
        if not path.is_symlink():
            wanted = 0o755 if path.is_dir() else 0o444
            assert path.stat().st_mode & wanted == wanted or path.name == ".lock", path
    mode = stat.S_IMODE((prefix / "current/bin/draftwire").stat().st_mode)
    assert mode == 0o755
    (prefix / "etc" / "token").write_text("secret\n")
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    handover = prefix / "current/system/handover.sh"
    for _ in range(2):  # at every start
        subprocess.run(["sh", handover, prefix / "etc", runtime], check=True)
    assert (runtime / "token").read_text() == "secret\n"
    assert stat.S_IMODE((runtime / "token").stat().st_mode) == 0o400
    assert not (runtime / "tls.key").exists()


def test_systemd_accepts_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: the unit is not checked")
    root = fake_root(tmp_path)
    assert run(root_words(orin(tmp_path), root, "--no-compile", "-q")) == 0
    unit = root / "etc/systemd/system/draftwire.service"
    text = unit.read_text().replace("/opt/draftwire", str(root / "opt/draftwire"))
    unit.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Failed to" in said.stderr and "bus" in said.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {said.stderr[:200]}")
    lines = (said.stdout + said.stderr).splitlines()
    assert not [line for line in lines if "draftwire.service" in line], lines


def test_words_may_come_in_any_order_and_none_too_many(pair, tmp_path, capsys):
    prefix = tmp_path / "opt"
    first, *rest = words(pair[0], prefix)[1:]
    assert run([*rest, first]) == 0  # --key KEY ... BUNDLE
    assert works(prefix) == "one"
    capsys.readouterr()
    assert run(["check", "--key", key_argument(), first]) == 0
    assert '"schema"' in capsys.readouterr().out
    for odd in (["verify", first], ["check", first, first], [first, "check"]):
        with pytest.raises(SystemExit) as ended:  # not a bundle that nobody looks at
            run([*odd, "--prefix", str(prefix)])
        assert ended.value.code == 2
        assert "one word too many" in capsys.readouterr().err


def test_what_is_kept_can_be_removed_later(pair, tmp_path, capsys):
    prefix = tmp_path / "opt"
    before = tree(tmp_path)
    assert run(words(pair[0], prefix)) == 0
    (prefix / "etc" / "token").write_text("secret\n")
    assert run(["uninstall", "--keep-config", "--prefix", str(prefix), "-q"]) == 0
    assert (prefix / "etc" / "token").read_text() == "secret\n"
    # That nothing outside the prefix is ours is still known: no other's state is removed.
    assert json.loads((prefix / "installed.json").read_text())["prefix_only"]
    assert run(["uninstall", "--prefix", str(prefix), "-q"]) == 0
    assert tree(tmp_path) == before
    assert run(["uninstall", "--prefix", str(prefix), "-q"]) == 2
    assert "no installation" in capsys.readouterr().err


def test_a_removal_that_is_cut_off_is_finished_by_the_next(pair, tmp_path):
    first = tmp_path / "first"
    assert run(words(pair[0], first)) == 0
    whole = set(tree(first))
    for number in itertools.count():
        prefix = tmp_path / f"opt{number}"
        shutil.copytree(first, prefix, symlinks=True)
        code = forked(["uninstall", "--prefix", str(prefix), "-q"], die_at(number))
        if code == 0:
            break
        left = set(tree(prefix)) & whole - {".lock"}
        if any((prefix / name).is_file() for name in left):
            assert (prefix / "installed.json").exists()
            assert run(["uninstall", "--prefix", str(prefix), "-q"]) == 0
            assert not prefix.exists()
    assert number > 5


def test_what_the_system_refuses_is_a_sentence(pair, tmp_path, capsys, monkeypatch):
    """No right to read a bundle, a folder in its place, a lock that cannot be taken."""
    prefix = tmp_path / "opt"
    assert run(words(pair[0], prefix)) == 0
    assert run(words(tmp_path, prefix)) == 3
    said = capsys.readouterr().err
    assert "Is a directory" in said and "copy" not in said
    missing = str(tmp_path / "nopython")
    assert run([w if w != sys.executable else missing for w in words(pair[1], prefix)]) == 2
    assert f"there is no Python at {missing}" in capsys.readouterr().err

    def refuse(name, *more, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))

    monkeypatch.setattr("gzip.open", refuse)
    assert run(words(pair[1], prefix)) == 3
    said = capsys.readouterr().err
    assert "one.tar" not in said and "Permission denied" in said and "root" in said
    monkeypatch.setattr("builtins.open", refuse)
    assert run(["uninstall", "--prefix", str(prefix)]) == 3
    monkeypatch.undo()
    assert ".lock: Permission denied" in capsys.readouterr().err
    assert works(prefix) == "one"
