"""The messages of ``draftwire.v1``: what the two ends say to each other.

``PROTOCOL.md`` beside this file is the specification; :mod:`draftwire.transport.codec`
turns these into bytes and back.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Union

__all__ = [
    "Block",
    "Bye",
    "Commit",
    "Error",
    "Finish",
    "Hello",
    "Kind",
    "Message",
    "Open",
    "Opened",
    "Provisional",
    "Resume",
    "Resumed",
    "Welcome",
]


class Kind(enum.IntEnum):
    """Message kinds; numbers are part of the wire format, never reuse one."""

    HELLO = 1
    WELCOME = 2
    OPEN = 3
    OPENED = 4
    BLOCK = 5
    PROVISIONAL = 6
    COMMIT = 7
    RESUME = 8
    RESUMED = 9
    ERROR = 10
    BYE = 11


class Finish(enum.IntEnum):
    """Why the verifier ended a stream, two bits of every commit."""

    NOT_YET = 0
    LENGTH = 1
    STOP = 2
    BUDGET = 3


@dataclass(frozen=True)
class Hello:
    """Device to cloud, first message.

    Attributes:
        versions: Protocol versions the device speaks, best first.
        agent: Program and version, for logs.
        target: Name or version of the wanted target; "" takes the default.
        tokenizer: Fingerprint of the draft's tokenizer, 32 bytes.
        backbone: Fingerprint of the draft's shared backbone, 32 bytes, or empty.
        vocab_size: Ids the draft can propose are below this.
        draft_id: Content hash of the draft package, 32 bytes, or empty.
        family: Family name, for error messages.
        capabilities: What the device can do beyond the base, e.g. ``"resume"``.
    """

    versions: tuple[int, ...]
    agent: str
    target: str
    tokenizer: bytes
    backbone: bytes
    vocab_size: int
    draft_id: bytes = b""
    family: str = ""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Welcome:
    """Cloud to device, answer to :class:`Hello`.

    Attributes:
        version: Protocol version of this connection.
        agent: Program and version, for logs.
        target: Name of the target.
        target_version: Its version.
        family: Its family name.
        tokenizer: Fingerprint, 32 bytes.
        backbone: Fingerprint, 32 bytes, or empty.
        vocab_size: Ids on this connection are below this: the smaller vocabulary.
        context: Longest sequence of the target, prompt included.
        max_block: Most drafted tokens of one block.
        eos_ids: Ids that end a text.
        compatibility: ``"family"`` or ``"tokenizer"`` (the draft may age faster).
        capabilities: Those of the device's that the verifier has too.
        schemes: Sampling schemes that the verifier can judge.
        target_id: Content hash of the target package, 32 bytes, or empty.
    """

    version: int
    agent: str
    target: str
    target_version: str
    family: str
    tokenizer: bytes
    backbone: bytes
    vocab_size: int
    context: int
    max_block: int
    eos_ids: tuple[int, ...] = ()
    compatibility: str = "family"
    capabilities: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    target_id: bytes = b""


@dataclass(frozen=True)
class Open:
    """Device to cloud: start a stream. The context crosses the network here, once.

    Attributes:
        stream: Number of the stream on this connection, counts from 1.
        prompt: Token ids, at least one.
        scheme: Sampling scheme.
        temperature: See ``draftwire.sampling.SamplingParams``, as the next three.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        seed: 64 bits.
        max_new_tokens: Tokens after the prompt, at most.
        stop_ids: Ids that end the stream; the id itself is still committed.
        objective: ``"cost"`` (forwards wait for blocks) or ``"latency"`` (they do not).
        bonus: Draw a token after a block that was accepted whole. Without it the next
            block of a pipeline, which is on its way, need not guess that token.
        exits: Send what the target's early exits expect (capability ``exits``).
    """

    stream: int
    prompt: tuple[int, ...]
    scheme: str
    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    objective: str = "cost"
    bonus: bool = True
    exits: bool = False


@dataclass(frozen=True)
class Opened:
    """Cloud to device: the stream is accepted.

    Attributes:
        stream: Its number.
        session: Identifier for resuming, 8 bytes.
        secret: Proof of ownership for resuming, 16 bytes.
    """

    stream: int
    session: bytes = b""
    secret: bytes = b""


@dataclass(frozen=True)
class Block:
    """Device to cloud: drafted tokens.

    Attributes:
        epoch: Branch number modulo 256: up by one whenever drafts are thrown away.
        base: Position of ``tokens[0]``, counted from the end of the prompt.
        tokens: Drafted ids.
        evidence: What the sampling scheme needs beside the ids.
        more: The block goes on in the next frame; judge it when that has come.
        correction: Id at ``base - 1`` that the device drew itself, or None.
        race: Go on decoding without waiting for the next block.
    """

    epoch: int
    base: int
    tokens: tuple[int, ...]
    evidence: bytes = b""
    more: bool = False
    correction: int | None = None
    race: bool = False


@dataclass(frozen=True)
class Provisional:
    """Cloud to device: what an early exit expects of the verdict; a hint, never final.

    Attributes:
        epoch: Branch that is being judged.
        accepted: Drafted tokens that would be kept.
        token: The id that would follow them.
    """

    epoch: int
    accepted: int
    token: int


@dataclass(frozen=True)
class Commit:
    """Cloud to device: final tokens.

    Attributes:
        epoch: Branch of the accepted tokens.
        accepted: So many of the drafted tokens after the committed text are final.
        token: The id that follows them (correction or bonus), or None.
        finish: Whether and why the stream ends with this.
        queue_s: Seconds that the block waited for the model.
        compute_s: Seconds of the forward.
        evidence: From which the device draws the correction itself (``token`` None).
        forwards: Forwards of the target that ran for this stream since its open,
            prompts apart; None is one more than the last message said.
    """

    epoch: int
    accepted: int
    token: int | None
    finish: Finish = Finish.NOT_YET
    queue_s: float = 0.0
    compute_s: float = 0.0
    evidence: bytes = b""
    forwards: int | None = None


@dataclass(frozen=True)
class Resume:
    """Device to cloud, instead of :class:`Open`: go on with a stream after a lost link.

    Attributes:
        session: From :class:`Opened`.
        secret: From :class:`Opened`.
        position: Committed tokens after the prompt that the device holds.
    """

    session: bytes
    secret: bytes
    position: int


@dataclass(frozen=True)
class Resumed:
    """Cloud to device: the stream goes on.

    Attributes:
        epoch: Branch number to go on with.
        position: Where ``tokens`` start, counted from the end of the prompt.
        tokens: Committed ids that the device had not received.
        finish: Whether the stream has ended meanwhile.
        forwards: Forwards of the target that ran for it since its open, prompts apart.
    """

    epoch: int
    position: int
    tokens: tuple[int, ...]
    finish: Finish = Finish.NOT_YET
    forwards: int = 0


@dataclass(frozen=True)
class Error:
    """Either way: something is wrong.

    Attributes:
        code: Short word for programs, see PROTOCOL.md.
        message: One sentence for people.
        hint: What to do, or "".
        fatal: The sender closes the connection; otherwise only the stream ends.
    """

    code: str
    message: str
    hint: str = ""
    fatal: bool = True


@dataclass(frozen=True)
class Bye:
    """Either way: the stream ends here, by choice. The connection stays usable.

    Attributes:
        reason: ``"cancelled"``, ``"deadline"``, ``"stop"``, ``"draining"``...
    """

    reason: str = ""


Message = Union[
    Hello,
    Welcome,
    Open,
    Opened,
    Block,
    Provisional,
    Commit,
    Resume,
    Resumed,
    Error,
    Bye,
]
