// A device for draftwire.v2 with a toy draft: node device.mjs ws://HOST:PORT --prompt 1,2,3
// Every --prompt is a stream, side by side with the others; prints their texts as JSON.
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import WebSocket from 'ws';
import { decode, encode, MAX_FRAME, ProtocolError, refuse, SUBPROTOCOL } from './codec.mjs';
import { draw } from './sampling.mjs';
import { draft, numbers, options, Text } from './text.mjs';

const told = options({
  token: '', target: '', tokenizer: '11'.repeat(32), backbone: '', family: 'toy', vocab_size: 256,
  prompt: [], scheme: 'greedy', temperature: 1, top_k: 0, top_p: 1, seed: '0', max_new_tokens: 64,
  stop_ids: '', objective: 'cost', bonus: 1, sample: 0, noise: 'philox', credit: 0,
  mode: 'pipeline', // or wait: one block at a time; or race: the verifier decodes on meanwhile
  block: 4, // most drafts of one block
  draft: '', // a JSON file of sequences, prompt and text, to draft from instead of the toy
  draft_ms: 0, patience_ms: 10000, // for one block; without growth or a sign of work
  cancel_after: 0, // tokens
}, process.argv.slice(3));
const SCRIPT = told.draft ? JSON.parse(readFileSync(told.draft)) : [];

class Stream extends Text {
  constructor(link, open) {
    super(open.prompt);
    Object.assign(this, { link, open, before: [], tries: 0, forwards: 0, resumes: 0 });
    this.result = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }

  start() { // with an open, or with a resume if the verifier knows the stream
    const { link, open, id, secret } = this;
    if (!link.take(this)) return;
    Object.assign(this, { state: id?.length ? 'resuming' : 'opening', alive: Date.now() });
    if (this.state === 'resuming') {
      const [position, text_hash] = [this.text.length, this.hash()];
      return link.send(this, { kind: 'resume', id, secret, position, text_hash });
    }
    this.before.push(...this.text);
    Object.assign(this, { prompt: this.sequence, text: [], forwards: 0 });
    this.branch(0);
    const max_new_tokens = open.max_new_tokens - this.before.length;
    this.limit = Math.min(max_new_tokens, link.welcome.context - this.prompt.length);
    link.send(this, { ...open, kind: 'open', prompt: this.prompt, max_new_tokens });
    this.pump();
  }

  get mayDraft() { // blocks may follow an open at once, but not a resume
    return this.state === 'opening' || this.state === 'open';
  }

  async pump() { // drafts a block and sends it, if it is the time for one
    const { epoch, end: base, link: { socket, welcome } } = this;
    if (this.drafting || !this.mayDraft) return;
    const room = (welcome.max_waiting || welcome.max_block) - this.ahead.length;
    const most = Math.min(told.block, welcome.max_block, room, this.limit - 1 - base);
    const waits = this.ahead.length > 0 || this.asked > this.text.length;
    if (waits && (told.mode === 'wait' || most < 1)) return;
    const sequence = [...this.sequence, ...this.ahead];
    this.drafting = true;
    for (let i = 0; i < most; i++) sequence.push(this.next(sequence));
    await pause(told.draft_ms);
    this.drafting = false;
    // The text may have grown meanwhile: drafts that contradict it must not be sent.
    const holds = this.sequence.every((id, i) => id === (sequence[i] ?? id));
    if (holds && socket === this.link.socket && epoch === this.epoch && this.mayDraft) {
      const from = Math.max(base, this.text.length);
      const tokens = sequence.slice(this.prompt.length + from);
      this.ahead.push(...tokens);
      this.asked = Math.max(this.asked, from + Math.max(1, tokens.length));
      const race = told.mode === 'race';
      this.link.send(this, { kind: 'block', epoch, base: from, tokens, race });
    }
    this.pump();
  }

  next(sequence) {
    const script = SCRIPT.find((ids) => this.open.prompt.every((id, i) => id === ids[i]));
    if (script?.length > sequence.length) return script[sequence.length];
    const vocab = Math.min(told.vocab_size, this.link.welcome.vocab_size);
    return draw(draft(sequence, vocab), this.open, sequence.length);
  }

  received(m) {
    if (this.state === 'leaving') { // what was on its way is dropped, until the stream ends
      const ends = m.kind === 'bye' || m.kind === 'error' || (m.finish ?? 'not yet') !== 'not yet';
      return ends && this.ended('cancelled');
    }
    if (m.kind === 'opened') Object.assign(this, { id: m.id, secret: m.secret, state: 'open' });
    else if (m.kind === 'commit') {
      const most = m.epoch === this.epoch ? this.ahead.length : 0;
      if (m.evidence.length || m.accepted > most) refuse('a commit of what was not sent');
      this.grown([...this.ahead.slice(0, m.accepted), ...(m['no token'] ? [] : [m.token])], m);
    } else if (m.kind === 'resumed') {
      if (this.state !== 'resuming' || m.position !== this.text.length) refuse('resumed elsewhere');
      Object.assign(this, { state: 'open', resumes: this.resumes + 1 });
      this.branch(m.epoch);
      this.grown(m.tokens, m);
    } else if (m.kind === 'progress' && m.work) this.alive = Date.now();
    else if (m.kind === 'error') this.failed(m);
    else if (m.kind === 'bye') this.ended(m.reason);
    this.pump();
  }

  grown(tokens, { forwards, text_hash: hash, finish }) {
    this.grow(tokens);
    this.link.tries = 0;
    Object.assign(this, { forwards: forwards ?? this.forwards + 1, alive: Date.now(), tries: 0 });
    if (hash.length && !hash.equals(this.hash())) {
      this.leave('the text differs from the one that the verifier hashed', { code: 'internal' });
    } else if (finish !== 'not yet') this.ended(finish);
    else if (this.text.length >= (told.cancel_after || Infinity)) this.leave();
  }

  leave(problem, error) { // the number stays in use until the verifier has answered
    this.state = 'leaving';
    if (problem) this.reject(new Error(problem));
    this.link.send(this, error ? { kind: 'error', message: problem, ...error }
      : { kind: 'bye', reason: problem ? 'deadline' : 'cancelled' });
  }

  ended(finish) {
    this.state = 'ended';
    this.link.free(this);
    const { before, text, forwards, resumes } = this;
    this.resolve({ ids: [...before, ...text], finish, forwards, resumes });
  }

  async failed({ code, message, retry_after_ms: least }) {
    const begins = this.state !== 'open';
    const again = (begins && ['stream', 'busy', 'limit', 'draining'].includes(code) && this.tries < 9)
      || (code === 'internal' && !this.tries);
    this.link.free(this);
    this.state = again ? 'pausing' : 'ended';
    if (!again) return this.reject(new Error(`${code}: ${JSON.stringify(message)}`));
    if (code === 'stream' || code === 'internal') this.id = null; // it is opened anew
    await pause(Math.max(least ?? 0, 20 * 2 ** this.tries++) * (1 + Math.random()));
    this.start();
  }
}

class Link {
  constructor(url) {
    Object.assign(this, { url, welcome: null, streams: new Map(), waiting: [], tries: 0 });
  }

  async connect() {
    const socket = new WebSocket(this.url, SUBPROTOCOL, {
      headers: { authorization: `Bearer ${told.token}` }, perMessageDeflate: false, maxPayload: MAX_FRAME,
    });
    this.socket = socket;
    socket.on('message', (data, binary) => this.frame(data, binary));
    await once(socket, 'open');
    socket.on('error', () => {});
    socket.on('close', () => this.lost());
    this.send({}, {
      ...told, kind: 'hello', agent: 'draftwire-js', capabilities: ['resume'],
      noise: ['philox', 'sparse'], tokenizer: Buffer.from(told.tokenizer, 'hex'),
      backbone: Buffer.from(told.backbone, 'hex'),
    });
  }

  generate(open) {
    const stream = new Stream(this, open);
    stream.start();
    return stream.result;
  }

  send({ number: stream }, message) {
    this.socket.send(encode({ ...message, stream }, this.welcome?.vocab_size), () => {});
  }

  frame(data, binary) {
    try {
      const m = binary ? decode(data, this.welcome?.vocab_size) : refuse('a text frame');
      if (m.from === 'device' || (m.kind === 'welcome') !== !(this.welcome || m.fatal)) {
        refuse(`a ${m.kind} that does not belong here`);
      }
      if (m.fatal) this.over(new Error(`${m.code}: ${JSON.stringify(m.message)}`));
      else if (m.kind !== 'welcome') this.streams.get(m.stream)?.received(m);
      else this.welcome = m;
      if (m.kind === 'welcome') for (const stream of this.waiting.splice(0)) stream.start();
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.send({}, { kind: 'error', fatal: true, code: 'protocol', message: error.message });
      this.over(error, 1002);
    }
  }

  take(stream) { // the lowest number that is free; or the stream waits for one
    const numbers = [...Array(this.welcome?.streams ?? 0).keys()];
    stream.number = numbers.find((n) => !this.streams.has(n));
    if (stream.number === undefined) return !this.waiting.push(stream);
    return this.streams.set(stream.number, stream);
  }

  free({ number }) {
    this.streams.delete(number);
    this.waiting.shift()?.start();
  }

  async lost() {
    if (this.ending) return;
    for (const stream of this.streams.values()) {
      if (stream.state === 'leaving') stream.ended('cancelled');
      else stream.state = 'lost';
    }
    this.waiting.unshift(...this.streams.values());
    Object.assign(this, { streams: new Map(), welcome: null });
    await pause(20 * 2 ** this.tries * (1 + Math.random()));
    if (++this.tries > 9) return this.over(new Error('the link is lost'));
    this.connect().catch(() => this.lost());
  }

  over(error, code = 1000) {
    this.ending = true;
    for (const { reject } of [...this.streams.values(), ...this.waiting]) reject(error);
    this.socket.close(code);
  }

  patience() {
    const since = Date.now() - told.patience_ms;
    for (const stream of this.streams.values()) {
      if (stream.state !== 'leaving' && stream.alive < since) stream.leave('no verdict came');
    }
  }
}

const link = new Link(process.argv[2]);
const watch = setInterval(() => link.patience(), 100);
try {
  await link.connect();
  const open = {
    ...told, stop_ids: numbers(told.stop_ids), bonus: told.bonus > 0, seed: BigInt(told.seed),
  };
  const texts = told.prompt.map((prompt) => link.generate({ ...open, prompt: numbers(prompt) }));
  console.log(JSON.stringify(await Promise.all(texts)));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
clearInterval(watch);
link.over();
