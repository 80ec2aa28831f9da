"""What a device says first."""

from __future__ import annotations

import draftwire
from draftwire.packages import DraftPackage
from draftwire.transport.codec import VERSION
from draftwire.transport.messages import Hello

__all__ = ["hello_of"]


def hello_of(package: DraftPackage, target: str) -> Hello:
    """Return the greeting for ``target`` (name or version, "" for the default)."""
    backbone = package.family.backbone
    return Hello(
        (VERSION,),
        f"draftwire/{draftwire.__version__}",
        target,
        bytes.fromhex(package.family.tokenizer),
        bytes.fromhex(backbone) if backbone else b"",
        package.vocab_size,
        bytes.fromhex(package.id),
        package.family.name,
        ("resume",),
    )
