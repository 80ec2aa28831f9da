"""The error tree: exit codes, hints, pickling."""

import pickle

import pytest

from draftwire import errors
from draftwire.errors import DraftwireError

EXIT_CODES = {"DraftwireError": 1, "ConfigError": 2, "BoardError": 3, "SensorError": 3}
EXIT_CODES.update(dict.fromkeys(["TransportError", "ProtocolError", "VerifierError"], 4))
EXIT_CODES.update(RefusedError=4, BusyError=4, ModelError=5, PackageError=5)
EXIT_CODES.update(IncompatibleError=5, OutputError=6)
KINDS = [getattr(errors, name) for name in errors.__all__]


def test_the_module_lists_every_class_and_its_docstring_draws_it():
    defined = {n for n, v in vars(errors).items() if isinstance(v, type)}
    ours = {n for n in defined if issubclass(getattr(errors, n), Exception)}
    assert ours == set(errors.__all__) == set(EXIT_CODES)
    assert all(name in (errors.__doc__ or "") for name in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_exit_code(kind):
    assert kind("x").exit_code == EXIT_CODES[kind.__name__]
    assert issubclass(kind, DraftwireError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind):
    error = kind("the draft has 12 layers, not 6", hint="export it again")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.hint == "export it again"


def test_what_an_error_carries_survives_pickling_too():
    error = errors.BusyError("the verifier is full", retry_after_s=2.5)
    assert pickle.loads(pickle.dumps(error)).retry_after_s == 2.5
    assert errors.BusyError("the verifier is full").retry_after_s is None


def test_a_hint_falls_back_to_the_class():
    class Late(DraftwireError):
        default_hint = "wait"

    assert Late("x").hint == "wait"
    assert Late("x", hint="hurry").hint == "hurry"
    assert DraftwireError("x").hint == ""
