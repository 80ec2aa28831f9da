"""One verifier process for the tests of a file, and a session of each."""

import live
import pytest
from tools.faults import FaultProxy


@pytest.fixture(scope="module")
def verifier():
    with live.serving() as found:
        yield found


@pytest.fixture
def session(verifier):
    with live.connect(verifier) as found:
        yield found


@pytest.fixture
def proxy(verifier):
    found = FaultProxy(verifier.port)
    yield found
    found.close()
