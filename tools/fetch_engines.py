"""Fetches what ``make test-engines`` wants of engines, where it is not there yet.

llama.cpp's own server, built from the source that llama-cpp-python's sdist carries (MIT)
into .venvs/llamacpp: some six minutes on two free cores; and of SGLang the decoder of
requests alone, Python from its wheel, into .venvs/sglang.  What cannot be had is said.
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
LLAMA, SGLANG = "llama-cpp-python==0.3.36", "sglang==0.5.23"
MSGSPEC = "msgspec==0.23.0"  # the decoder's own want
BUILD = os.path.join(ROOT, ".venvs", "llamacpp", "build")
SERVER = os.path.join(BUILD, "bin", "llama-server")
DECODER = "sglang/api/v1/api_types.py"
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_OPENMP=OFF",
    *(f"-DLLAMA_BUILD_{what}=OFF" for what in ("TESTS", "EXAMPLES", "UI", "APP")),
]


def download(folder, *words):
    """Fetch one package as it is; return its file, or None."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
    if subprocess.call([*pip, *words]):
        print(f"NOT TESTED: {words[-1]} cannot be fetched")
        return None
    (found,) = glob.glob(os.path.join(folder, "*"))
    return found


def llama(folder):
    """Build the server."""
    if os.environ.get("LLAMA_SERVER") or shutil.which("llama-server"):
        return
    if os.path.isfile(SERVER):
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
    jobs = str(os.cpu_count() or 1)
    subprocess.check_call(
        ["cmake", "--build", BUILD, "--target", "llama-server", "-j", jobs]
    )


def sglang(folder):
    """Unpack the decoder; the rest of the wheel wants CUDA."""
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
    for fetch in (llama, sglang):
        with tempfile.TemporaryDirectory() as scratch:
            fetch(scratch)
