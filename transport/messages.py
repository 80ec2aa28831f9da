"""The messages of ``draftwire.v2``: what the two ends say to each other.

``PROTOCOL.md`` beside this file is the specification and ``protocol.json`` its tables. A
message does not name its stream: that is the frame's business (:class:`Frame`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, Union


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
    PROGRESS = 12
    GRAMMAR = 13


class Finish(enum.IntEnum):
    """Why the verifier ended a stream."""

    NOT_YET = 0
    LENGTH = 1
    STOP = 2
    BUDGET = 3


@dataclass(frozen=True)
class Hello:
    """Device to cloud, first message."""

    agent: str  # program and version, for logs
    target: str  # name or version of the wanted target; "" takes the default
    tokenizer: bytes  # fingerprint of the draft's tokenizer, 32 bytes
    backbone: bytes  # fingerprint of the draft's shared backbone, 32 bytes, or empty
    vocab_size: int  # ids the draft can propose are below this
    draft_id: bytes = b""  # content hash of the draft package, 32 bytes, or empty
    family: str = ""  # family name, for error messages
    capabilities: tuple[str, ...] = ()  # what the device can do beyond the base
    noise: tuple[str, ...] = ("philox",)  # noise profiles that it can draw


@dataclass(frozen=True)
class Welcome:
    """Cloud to device, answer to :class:`Hello`."""

    agent: str  # program and version, for logs
    target: str  # name of the target
    target_version: str  # its version
    family: str  # its family name
    tokenizer: bytes  # fingerprint, 32 bytes
    backbone: bytes  # fingerprint, 32 bytes, or empty
    vocab_size: int  # ids on this connection are below this: the smaller vocabulary
    context: int  # longest sequence of the target, prompt included
    max_block: int  # most drafted tokens of one block
    max_waiting: int = 0  # most drafted tokens that may wait; 0: as ``max_block``
    eos_ids: tuple[int, ...] = ()  # ids that end a text
    compatibility: str = "family"  # or "tokenizer": the draft may age faster
    capabilities: tuple[str, ...] = ()  # those of the device's that the verifier has too
    schemes: tuple[str, ...] = ()  # sampling schemes that the verifier can judge
    target_id: bytes = b""  # content hash of the target package, 32 bytes, or empty
    noise: tuple[str, ...] = ("philox",)  # those of the device's that it can draw too
    numerics: str = "unstated"  # or "exact", "close"
    streams: int = 1  # most streams at once on this connection
    progress_ms: int = 0  # progress of a stream that waits comes so often; 0: never

    @property
    def room(self) -> int:
        """Most drafted tokens of a stream that may wait for judgement."""
        return self.max_waiting or self.max_block


@dataclass(frozen=True)
class Open:
    """Device to cloud: start a stream. The context crosses the network here, once."""

    prompt: tuple[int, ...]  # token ids behind the prefix, at least one
    scheme: str  # sampling scheme
    temperature: float  # see ``draftwire.sampling.SamplingParams``, as the next three
    top_k: int  # 0 keeps all
    top_p: float  # 1 keeps all
    seed: int  # 64 bits
    max_new_tokens: int  # tokens after the prompt, at most
    stop_ids: tuple[int, ...] = ()  # ids that end the stream, committed themselves
    objective: str = "cost"  # forwards wait for blocks; "latency": they do not
    # draw a token after a block that was accepted whole. Without it the next block of a
    # pipeline, which is on its way, need not guess that token.
    bonus: bool = True
    exits: bool = False  # send what the target's early exits expect (capability ``exits``)
    sample: int = 0  # which of several texts of one seed
    noise: str = "philox"  # noise profile
    credit: int = 0  # in a race, how far the text may run ahead of the blocks; 0: any
    # hash of ids in front of the prompt that are not sent, 16 bytes, or empty; of a brief
    # one as it came: 8 bytes, :func:`~.codec.check_of`
    prefix: bytes = b""
    prefix_length: int = 0  # how many they are
    logprobs: int = 0  # so many log-probabilities for each new token; 0: none
    min_p: float = 0.0  # see ``draftwire.sampling.SamplingParams``, as the next five
    repetition_penalty: float = 1.0  # 1 does nothing
    presence_penalty: float = 0.0  # 0 does nothing
    frequency_penalty: float = 0.0  # 0 does nothing
    logit_bias: tuple[tuple[int, float], ...] = ()  # pairs of an id and what is added
    bad_words: tuple[tuple[int, ...], ...] = ()  # rows of ids
    text_before: int = 0  # so many ids at the end of the context count as text already
    grammar: bytes = b""  # digest of the grammar that the text keeps to, 32 bytes, or empty
    forced: bool = True  # what the grammar forces is text at once
    trace: bytes = b""  # the device's span (W3C traceparent in 26 bytes), or empty
    brief: bool = False  # where it is shorter, leave out what the open before said


@dataclass(frozen=True)
class Opened:
    """Cloud to device: the stream is accepted."""

    id: bytes = b""  # what a resume names, 8 bytes
    secret: bytes = b""  # proof of ownership for resuming, 16 bytes
    reused: int = 0  # ids of prefix and prompt that the target need not read again


@dataclass(frozen=True)
class Block:
    """Device to cloud: drafted tokens."""

    epoch: int  # branch number modulo 256: up by one whenever drafts are thrown away
    base: int  # position of ``tokens[0]``, counted from the end of the prompt
    tokens: tuple[int, ...]  # drafted ids
    evidence: bytes = b""  # what the sampling scheme needs beside the ids
    more: bool = False  # the block goes on in the next frame; judge it when that has come
    correction: int | None = None  # id at ``base - 1`` that the device drew itself, or None
    race: bool = False  # go on decoding without waiting for the next block
    leaves: tuple[int, ...] = ()  # second choices for the first of ``tokens``
    # where these stand behind another id than the branch has: how many positions before
    # ``base`` that stands, and the id
    instead: tuple[int, ...] = ()


@dataclass(frozen=True)
class Provisional:
    """Cloud to device: what an early exit expects of the verdict; a hint, never final."""

    epoch: int  # branch that is being judged
    accepted: int  # drafted tokens that would be kept
    token: int  # the id that would follow them


@dataclass(frozen=True)
class Commit:
    """Cloud to device: final tokens."""

    epoch: int  # branch of the accepted tokens
    accepted: int  # so many of the drafted tokens after the committed text are final
    token: int | None  # the id that follows them (correction or bonus), or None
    finish: Finish = Finish.NOT_YET  # whether and why the stream ends with this
    queue_s: float = 0.0  # seconds that the block waited for the model
    compute_s: float = 0.0  # seconds of the forward
    evidence: bytes = b""  # from which the device draws the correction (``token`` None)
    # forwards of the target that ran for this stream since its open, prompts apart; None is
    # one more than the last message said
    forwards: int | None = None
    text_hash: bytes = b""  # of the text after this, 8 bytes, or empty
    # positions of the stream so far that the target's numerics cannot tell, or None where
    # that is as it was
    near_ties: int | None = None
    further: tuple[int, ...] = ()  # ids of the text behind ``token``
    # for each new token so many pairs as the open says: its id and its log-probability,
    # then those of the likeliest ids
    logprobs: tuple[tuple[int, float], ...] = ()
    # drafts of the verifier's own that the stream had need of so far, and those of them
    # that the device had sent; now and then
    beside: tuple[int, ...] = ()


@dataclass(frozen=True)
class Resume:
    """Device to cloud, instead of :class:`Open`: go on with a stream after a lost link."""

    id: bytes  # from :class:`Opened`
    secret: bytes  # from :class:`Opened`
    position: int  # committed tokens after the prompt that the device holds
    text_hash: bytes = b""  # of the text up to there, 8 bytes, or empty


@dataclass(frozen=True)
class Resumed:
    """Cloud to device: the stream goes on."""

    epoch: int  # branch number to go on with
    position: int  # where ``tokens`` start, counted from the end of the prompt
    tokens: tuple[int, ...]  # committed ids that the device had not received
    finish: Finish = Finish.NOT_YET  # whether the stream has ended meanwhile
    forwards: int = 0  # of the target, for it, since its open, prompts apart
    text_hash: bytes = b""  # of the text with ``tokens``, 8 bytes, or empty
    near_ties: int | None = None  # as in :class:`Commit`
    logprobs: tuple[tuple[int, float], ...] = ()  # of ``tokens``, as in :class:`Commit`


@dataclass(frozen=True)
class Error:
    """Either way: something is wrong."""

    code: str  # for programs, see PROTOCOL.md; "other" is one that is not known here
    message: str  # one sentence for people
    hint: str = ""  # what to do, or ""
    fatal: bool = True  # the sender closes the connection; otherwise only the stream ends
    retry_after_ms: int | None = None  # not before, where that is known


@dataclass(frozen=True)
class Bye:
    """Either way: the stream ends here, by choice. The connection stays usable."""

    reason: str = "ended"  # see PROTOCOL.md; "other" is one that is not known here
    forwards: int | None = None  # from the cloud: those of the target for this stream
    near_ties: int | None = None  # from the cloud: as in :class:`Commit`


@dataclass(frozen=True)
class Progress:
    """Cloud to device: no verdict yet, or none to come."""

    activity: str  # "idle" (nothing to do), "queued", "reading" (its text) or "judging"
    epoch: int  # branch whose blocks would be judged now
    position: int  # committed tokens after the prompt
    work: int  # forwards of the target, for anybody, since the last frame of this stream


@dataclass(frozen=True)
class Grammar:
    """Device to cloud: a grammar that opens may name from now on."""

    format: str  # ``"json"``, ``"regex"`` or ``"lark"``; "other" is one not known here
    text: bytes  # UTF-8
    engine: bytes  # what the device's engine makes of grammars, 8 bytes


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
    Progress,
    Grammar,
]


class Frame(NamedTuple):
    """A message and the stream that it belongs to."""

    stream: int | None  # number on its connection, or None for a message of the connection
    message: Message  # what is said
    size: int = 0  # bytes of the frame
