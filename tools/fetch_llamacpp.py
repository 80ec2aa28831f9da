"""Builds llama.cpp's own server for ``make test-llamacpp``, where there is none.

From the source that llama-cpp-python's sdist carries (MIT), with the compiler at hand, into
.venvs/llamacpp: some six minutes on two free cores.  What cannot be had is said.
"""

import glob
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOME = os.path.join(ROOT, ".venvs", "llamacpp")
SERVER = os.path.join(HOME, "build", "bin", "llama-server")
SOURCE = "llama-cpp-python==0.3.36"
OFF = ["TESTS", "EXAMPLES", "UI", "APP"]
OPTIONS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_OPENMP=OFF",
    *(f"-DLLAMA_BUILD_{what}=OFF" for what in OFF),
]


def main():
    """Build the server; return the exit code."""
    if os.environ.get("LLAMA_SERVER") or shutil.which("llama-server"):
        return 0
    if os.path.isfile(SERVER):
        return 0
    if not (shutil.which("cmake") and shutil.which("c++")):
        print("NOT TESTED: llama-server cannot be built here (no cmake, or no c++)")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        pip += ["--no-binary", "llama-cpp-python", SOURCE, "-d", folder]
        if subprocess.call(pip):
            print(f"NOT TESTED: {SOURCE} cannot be fetched")
            return 0
        (archive,) = glob.glob(os.path.join(folder, "*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(folder)
        (source,) = glob.glob(os.path.join(folder, "llama_cpp_python-*/vendor/llama.cpp"))
        build = os.path.join(HOME, "build")
        subprocess.check_call(["cmake", "-S", source, "-B", build, *OPTIONS])
        jobs = str(os.cpu_count() or 1)
        command = ["cmake", "--build", build, "--target", "llama-server", "-j", jobs]
        return subprocess.call(command)


if __name__ == "__main__":
    sys.exit(main())
