"""Ed25519 verification in plain Python: the one check that runs before any wheel is there.

Signing is done on the workstation by a well-kept library. A board may have an OpenSSL
that cannot verify Ed25519 from its command line (1.1.1 cannot), no ``cryptography``, no
compiler and no network, but it has Python. Nothing secret is handled here, so that the
time that it takes may depend on the data.

Source:
    RFC 8032, section 5.1 and the Python of section 6.
"""

from __future__ import annotations

import hashlib
from typing import Tuple

_Point = Tuple[int, int, int, int]

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT_OF_MINUS_1 = pow(2, (_P - 1) // 4, _P)


def verify_signature(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature (64 bytes) of a message is that of a key (32 bytes)."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    key = _decompress(public_key)
    commitment = _decompress(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    # A key of small order verifies anything; s + L would be a second signature.
    if key is None or commitment is None or s >= _ORDER or _is_small(key):
        return False
    hashed = hashlib.sha512(signature[:32] + public_key + message).digest()
    h = int.from_bytes(hashed, "little") % _ORDER
    return _equal(_multiply(s, _BASE), _add(commitment, _multiply(h, key)))


def _add(a: _Point, b: _Point) -> _Point:
    first, second = (a[1] - a[0]) * (b[1] - b[0]) % _P, (a[1] + a[0]) * (b[1] + b[0]) % _P
    third, fourth = 2 * a[3] * b[3] * _D % _P, 2 * a[2] * b[2] % _P
    e, f, g, h = second - first, fourth - third, fourth + third, second + first
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _multiply(scalar: int, point: _Point) -> _Point:
    result = (0, 1, 1, 0)
    while scalar > 0:
        if scalar & 1:
            result = _add(result, point)
        point = _add(point, point)
        scalar >>= 1
    return result


def _equal(a: _Point, b: _Point) -> bool:
    return (a[0] * b[2] - b[0] * a[2]) % _P == 0 == (a[1] * b[2] - b[1] * a[2]) % _P


def _is_small(point: _Point) -> bool:
    return _equal(_multiply(8, point), (0, 1, 1, 0))


def _decompress(data: bytes) -> _Point | None:
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P != 0:
        x = x * _ROOT_OF_MINUS_1 % _P
    if (x * x - square) % _P != 0 or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return (x, y, 1, x * y % _P)


_BASE_POINT = _decompress((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))
assert _BASE_POINT is not None
_BASE: _Point = _BASE_POINT
