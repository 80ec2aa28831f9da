"""The adapter for vLLM's V2 model runner, on the real one, its kernels interpreted."""

import os
import re
import subprocess
import sys

import pytest
from places import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(2400)]

TRITON = os.environ.get("TRITON_FOLDER", "")


@pytest.mark.skipif(not TRITON, reason="needs Triton: make test-vllm")
def test_texts_with_drafts_are_the_engines_own_on_the_v2_runner():
    command = [sys.executable, str(ROOT / "tools" / "v2.py"), "--interpreted", TRITON]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert found.returncode == 0, found.stdout[-4000:]
    assert int(re.search(r"(\d+) passed", found.stdout)[1]) >= 27
    assert "skipped" not in found.stdout
