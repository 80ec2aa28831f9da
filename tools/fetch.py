"""Fetches what a verb of the Makefile wants from outside, where it is not there yet.

    python tools/fetch.py proxies     nginx, Caddy and HAProxy, for ``make test-proxies``
    python tools/fetch.py engines     llama-server and SGLang, for ``make test-engines``

Proxies are Debian's packages, unpacked into out/proxies and never installed.  llama.cpp's
server is built from the source that llama-cpp-python's sdist carries (MIT) into
.venvs/llamacpp: some six minutes on two free cores; of SGLang the decoder of requests
alone, Python from its wheel, goes into .venvs/sglang.  Nothing is started and no root is
needed; what cannot be had is said, and its tests are skipped.
"""

import glob
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOME = os.path.join(ROOT, "out", "proxies")
# Program -> its packages, and the libraries that a small system may lack.
PROXIES = {"nginx": ["nginx"], "caddy": ["caddy"], "haproxy": ["haproxy", "liblua5.3-0"]}
PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    + [os.path.join(HOME, "usr", name) for name in ("sbin", "bin")]
)
LLAMA, SGLANG = "llama-cpp-python==0.3.36", "sglang==0.5.23"
MSGSPEC = "msgspec==0.23.0"  # the decoder's own want
BUILD = os.path.join(ROOT, ".venvs", "llamacpp", "build")
DECODER = "sglang/api/v1/api_types.py"
OPTIONS = "-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_CURL=OFF".split()
OPTIONS += ["-DLLAMA_OPENSSL=OFF", "-DGGML_OPENMP=OFF"]
OPTIONS += [f"-DLLAMA_BUILD_{what}=OFF" for what in ("TESTS", "EXAMPLES", "UI", "APP")]


def unpacked(packages, place):
    """Unpack Debian packages below ``place``."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # apt downloads as a user of its own
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = ["apt-get", "download", "-qq", *packages]
        subprocess.run(command, cwd=folder, check=True, timeout=300, **quiet)
        for name in sorted(os.listdir(folder)):
            subprocess.check_call(["dpkg-deb", "-x", os.path.join(folder, name), place])


def runs(program):
    """Tell whether a proxy is there, with what it needs."""
    found = shutil.which(program, path=PATH)
    word = "version" if program == "caddy" else "-v"
    return found and not subprocess.run([found, word], capture_output=True).returncode


def proxies():
    """Fetch the proxies that do not run here."""
    os.makedirs(HOME, exist_ok=True)
    for program, packages in PROXIES.items():
        if runs(program):
            continue
        try:
            unpacked(packages, HOME)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"{program} cannot be fetched ({error}): its tests are skipped")
            continue
        found = "fetched" if runs(program) else "does not run here, its tests are skipped"
        print(f"{program}: {found}")


def download(folder, *words):
    """Fetch one package of Python's as it is; return its file, or None."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
    if subprocess.call([*pip, *words]):
        print(f"NOT TESTED: {words[-1]} cannot be fetched")
        return None
    (found,) = glob.glob(os.path.join(folder, "*"))
    return found


def llama(folder):
    """Build llama.cpp's server."""
    made = os.path.isfile(os.path.join(BUILD, "bin", "llama-server"))
    if made or os.environ.get("LLAMA_SERVER") or shutil.which("llama-server"):
        return
    if not (shutil.which("cmake") and shutil.which("c++")):
        print("NOT TESTED: llama-server cannot be built here (no cmake, or no c++)")
        return
    archive = download(folder, "--no-binary", "llama-cpp-python", LLAMA)
    if archive is None:
        return
    with tarfile.open(archive) as packed:
        packed.extractall(folder)
    (source,) = glob.glob(os.path.join(folder, "llama_cpp_python-*/vendor/llama.cpp"))
    subprocess.check_call(["cmake", "-S", source, "-B", BUILD, *OPTIONS])
    build = ["cmake", "--build", BUILD, "--target", "llama-server"]
    subprocess.check_call([*build, "-j", str(os.cpu_count() or 1)])


def sglang(folder):
    """Unpack SGLang's decoder; the rest of the wheel wants CUDA."""
    home = os.path.join(ROOT, ".venvs", "sglang")
    if os.path.isfile(os.path.join(home, DECODER)):
        return
    wheel = download(folder, SGLANG)
    if wheel is not None:
        with zipfile.ZipFile(wheel) as packed:
            packed.extract(DECODER, home)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", home]
        subprocess.check_call([*pip, MSGSPEC])


if __name__ == "__main__":
    if sys.argv[1:] == ["proxies"]:
        proxies()
    elif sys.argv[1:] == ["engines"]:
        for fetch in (llama, sglang):
            with tempfile.TemporaryDirectory() as scratch:
                fetch(scratch)
    else:
        raise SystemExit(__doc__)
