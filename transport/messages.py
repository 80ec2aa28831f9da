"""The messages of ``draftwire.v2``: what the two ends say to each other.

``PROTOCOL.md`` beside this file is the specification and ``protocol.json`` its tables;
:mod:`draftwire.transport.codec` turns these into bytes and back. A message does not name
its stream: that is the frame's business (:class:`Frame`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, Union

__all__ = [
    "Block",
    "Bye",
    "Commit",
    "Error",
    "Finish",
    "Frame",
    "Grammar",
    "Hello",
    "Kind",
    "Message",
    "Open",
    "Opened",
    "Progress",
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
    """Device to cloud, first message.

    Attributes:
        agent: Program and version, for logs.
        target: Name or version of the wanted target; "" takes the default.
        tokenizer: Fingerprint of the draft's tokenizer, 32 bytes.
        backbone: Fingerprint of the draft's shared backbone, 32 bytes, or empty.
        vocab_size: Ids the draft can propose are below this.
        draft_id: Content hash of the draft package, 32 bytes, or empty.
        family: Family name, for error messages.
        capabilities: What the device can do beyond the base, e.g. ``"resume"``.
        noise: Noise profiles that it can draw.
    """

    agent: str
    target: str
    tokenizer: bytes
    backbone: bytes
    vocab_size: int
    draft_id: bytes = b""
    family: str = ""
    capabilities: tuple[str, ...] = ()
    noise: tuple[str, ...] = ("philox",)


@dataclass(frozen=True)
class Welcome:
    """Cloud to device, answer to :class:`Hello`.

    Attributes:
        agent: Program and version, for logs.
        target: Name of the target.
        target_version: Its version.
        family: Its family name.
        tokenizer: Fingerprint, 32 bytes.
        backbone: Fingerprint, 32 bytes, or empty.
        vocab_size: Ids on this connection are below this: the smaller vocabulary.
        context: Longest sequence of the target, prompt included.
        max_block: Most drafted tokens of one block.
        max_waiting: Most drafted tokens of a stream that may wait; 0: as ``max_block``.
        eos_ids: Ids that end a text.
        compatibility: ``"family"`` or ``"tokenizer"`` (the draft may age faster).
        capabilities: Those of the device's that the verifier has too.
        schemes: Sampling schemes that the verifier can judge.
        target_id: Content hash of the target package, 32 bytes, or empty.
        noise: Those of the device's noise profiles that the verifier can draw too.
        numerics: ``"exact"``, ``"close"`` or ``"unstated"``.
        streams: Most streams at once on this connection.
        progress_ms: While a stream waits for the target, progress comes at this
            interval; 0: never.
    """

    agent: str
    target: str
    target_version: str
    family: str
    tokenizer: bytes
    backbone: bytes
    vocab_size: int
    context: int
    max_block: int
    max_waiting: int = 0
    eos_ids: tuple[int, ...] = ()
    compatibility: str = "family"
    capabilities: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    target_id: bytes = b""
    noise: tuple[str, ...] = ("philox",)
    numerics: str = "unstated"
    streams: int = 1
    progress_ms: int = 0

    @property
    def room(self) -> int:
        """Most drafted tokens of a stream that may wait for judgement."""
        return self.max_waiting or self.max_block


@dataclass(frozen=True)
class Open:
    """Device to cloud: start a stream. The context crosses the network here, once.

    Attributes:
        prompt: Token ids behind the prefix, at least one.
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
        sample: Which of several texts of one seed.
        noise: Noise profile.
        credit: In a race, the text may run so many tokens ahead of the end of the last
            block; 0: without limit.
        prefix: Hash of ids in front of the prompt that are not sent, 16 bytes, or empty;
            of a brief one as it came: 8 bytes, :func:`~.codec.check_of`.
        prefix_length: How many they are.
        logprobs: So many log-probabilities for each new token; 0: none.
        min_p: See ``draftwire.sampling.SamplingParams``, as the next five.
        repetition_penalty: 1 does nothing.
        presence_penalty: 0 does nothing.
        frequency_penalty: 0 does nothing.
        logit_bias: Pairs of an id and what is added.
        bad_words: Rows of ids.
        text_before: So many ids at the end of the context count as text already.
        grammar: Digest of the grammar that the text keeps to, 32 bytes, or empty.
        forced: What the grammar forces is text at once.
        trace: The device's span (W3C traceparent in 26 bytes), or empty.
        brief: Where it is agreed on and shorter, leave out what the open before said.
    """

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
    sample: int = 0
    noise: str = "philox"
    credit: int = 0
    prefix: bytes = b""
    prefix_length: int = 0
    logprobs: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    text_before: int = 0
    grammar: bytes = b""
    forced: bool = True
    trace: bytes = b""
    brief: bool = False


@dataclass(frozen=True)
class Opened:
    """Cloud to device: the stream is accepted.

    Attributes:
        id: What a resume names, 8 bytes.
        secret: Proof of ownership for resuming, 16 bytes.
        reused: Ids of prefix and prompt that the target need not read again.
    """

    id: bytes = b""
    secret: bytes = b""
    reused: int = 0


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
        leaves: Second choices for the first of ``tokens``; a drafted id itself is none.
    """

    epoch: int
    base: int
    tokens: tuple[int, ...]
    evidence: bytes = b""
    more: bool = False
    correction: int | None = None
    race: bool = False
    leaves: tuple[int, ...] = ()


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
        text_hash: Of the text after this, 8 bytes, or empty.
        near_ties: Positions of the stream so far that the target's numerics cannot
            tell, or None where that is as it was.
        further: Ids of the text behind ``token``.
        logprobs: For each new token so many pairs as the open says: its id and its
            log-probability, then those of the likeliest ids.
        beside: Drafts of the verifier's own that the stream had need of so far, and those
            of them that the device had sent; now and then.
    """

    epoch: int
    accepted: int
    token: int | None
    finish: Finish = Finish.NOT_YET
    queue_s: float = 0.0
    compute_s: float = 0.0
    evidence: bytes = b""
    forwards: int | None = None
    text_hash: bytes = b""
    near_ties: int | None = None
    further: tuple[int, ...] = ()
    logprobs: tuple[tuple[int, float], ...] = ()
    beside: tuple[int, ...] = ()


@dataclass(frozen=True)
class Resume:
    """Device to cloud, instead of :class:`Open`: go on with a stream after a lost link.

    Attributes:
        id: From :class:`Opened`.
        secret: From :class:`Opened`.
        position: Committed tokens after the prompt that the device holds.
        text_hash: Of the text up to there, 8 bytes, or empty.
    """

    id: bytes
    secret: bytes
    position: int
    text_hash: bytes = b""


@dataclass(frozen=True)
class Resumed:
    """Cloud to device: the stream goes on.

    Attributes:
        epoch: Branch number to go on with.
        position: Where ``tokens`` start, counted from the end of the prompt.
        tokens: Committed ids that the device had not received.
        finish: Whether the stream has ended meanwhile.
        forwards: Forwards of the target that ran for it since its open, prompts apart.
        text_hash: Of the text with ``tokens``, 8 bytes, or empty.
        near_ties: As in :class:`Commit`.
        logprobs: Of ``tokens``, as in :class:`Commit`.
    """

    epoch: int
    position: int
    tokens: tuple[int, ...]
    finish: Finish = Finish.NOT_YET
    forwards: int = 0
    text_hash: bytes = b""
    near_ties: int | None = None
    logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Error:
    """Either way: something is wrong.

    Attributes:
        code: Short word for programs, see PROTOCOL.md; "other" is one that this version
            does not know.
        message: One sentence for people.
        hint: What to do, or "".
        fatal: The sender closes the connection; otherwise only the stream ends.
        retry_after_ms: Not before, where that is known.
    """

    code: str
    message: str
    hint: str = ""
    fatal: bool = True
    retry_after_ms: int | None = None


@dataclass(frozen=True)
class Bye:
    """Either way: the stream ends here, by choice. The connection stays usable.

    Attributes:
        reason: ``"ended"``, ``"cancelled"``, ``"deadline"``, ``"stop"``, ``"budget"``,
            ``"error"``, or "other" for one that this version does not know.
        forwards: From the cloud: those of the target for this stream.
        near_ties: From the cloud: as in :class:`Commit`.
    """

    reason: str = "ended"
    forwards: int | None = None
    near_ties: int | None = None


@dataclass(frozen=True)
class Progress:
    """Cloud to device: no verdict yet, or none to come.

    Attributes:
        activity: ``"idle"`` (nothing to do for this stream), ``"queued"``, ``"reading"``
            (its text) or ``"judging"``.
        epoch: Branch whose blocks would be judged now.
        position: Committed tokens after the prompt.
        work: Forwards of the target, for anybody, since the last frame of this stream.
    """

    activity: str
    epoch: int
    position: int
    work: int


@dataclass(frozen=True)
class Grammar:
    """Device to cloud: a grammar that opens may name from now on.

    Attributes:
        format: ``"json"``, ``"regex"`` or ``"lark"``; "other" is one not known here.
        text: UTF-8.
        engine: What the device's engine makes of grammars, 8 bytes.
    """

    format: str
    text: bytes
    engine: bytes


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
    """A message and the stream that it belongs to.

    Attributes:
        stream: Number on its connection, or None for a message of the connection.
        message: What is said.
        size: Bytes of the frame.
    """

    stream: int | None
    message: Message
    size: int = 0
