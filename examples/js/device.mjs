// A device for draftwire.v2 with a toy draft: node device.mjs ws://HOST:PORT --prompt 1,2,3
// Every --prompt is a stream, side by side with the others; prints their texts as JSON.
import { readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import WebSocket from 'ws';
import { decode, encode, MAX_FRAME, ProtocolError, refuse, SUBPROTOCOL } from './codec.mjs';
import { draw } from './sampling.mjs';
import { draft, numbers, options, Text } from './text.mjs';

const told = options({
  token: '', target: '', tokenizer: '11'.repeat(32), backbone: '', family: 'toy', vocab_size: 256,
  prompt: [], scheme: 'greedy', temperature: 0, top_k: 0, top_p: 1, seed: '0', max_new_tokens: 64,
  stop_ids: '', objective: 'cost', bonus: 1, sample: 0, noise: 'philox', credit: 0,
  // mode: wait (one block at a time), pipeline, or race (the verifier decodes on meanwhile)
  // draft: a JSON file of sequences, prompt and text, to draft from instead of the toy
  // cancel_after: so many tokens; patience_ms: without growth or a sign of work
  mode: 'pipeline', block: 4, draft: '', draft_ms: 0, patience_ms: 10000, cancel_after: Infinity,
}, process.argv.slice(3));
const SCRIPT = told.draft ? JSON.parse(readFileSync(told.draft)) : [];
const [streams, waiting] = [new Map(), []]; // by number; and those without one
let [socket, welcome, lost, over] = [null, null, 0, false];

async function connect() {
  const headers = { authorization: `Bearer ${told.token}` };
  const limits = { headers, perMessageDeflate: false, maxPayload: MAX_FRAME };
  socket = new WebSocket(process.argv[2], SUBPROTOCOL, limits).on('message', heard);
  await new Promise((resolve, reject) => socket.on('open', resolve).once('error', reject));
  socket.on('error', () => {}).on('close', again);
  const [tokenizer, backbone] = [told.tokenizer, told.backbone].map((h) => Buffer.from(h, 'hex'));
  const able = { agent: 'draftwire-js', capabilities: ['resume'], noise: ['philox', 'sparse'] };
  send({}, { ...told, ...able, kind: 'hello', tokenizer, backbone });
}

const send = ({ number: stream }, message) =>
  socket.send(encode({ ...message, stream }, welcome?.vocab_size), () => {});

function heard(data, binary) {
  try {
    const m = binary ? decode(data, welcome?.vocab_size) : refuse('a text frame');
    if (m.fatal) return end(new Error(`${m.code}: ${JSON.stringify(m.message)}`));
    if (m.from === 'device' || (m.kind === 'welcome') === !!welcome) refuse(`a ${m.kind} here`);
    if (m.kind !== 'welcome') return streams.get(m.stream)?.received(m);
    welcome = m;
    waiting.splice(0).forEach((stream) => stream.start());
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    send({}, { kind: 'error', fatal: true, code: 'protocol', message: error.message });
    end(error, 1002);
  }
}

async function again() { // after a lost link: streams resume when there is a welcome
  if (over) return;
  for (const stream of streams.values()) {
    if (stream.state === 'leaving') stream.ended('cancelled');
    else waiting.push(Object.assign(stream, { state: 'lost' }));
  }
  streams.clear();
  welcome = null;
  await pause(20 * 2 ** lost * (1 + Math.random()));
  return ++lost > 9 ? end(new Error('the link is lost')) : connect().catch(again);
}

function end(error, code = 1000) {
  over = true;
  for (const { reject } of [...streams.values(), ...waiting]) reject(error);
  socket.close(code);
}

class Stream extends Text {
  constructor(open) {
    Object.assign(super(open.prompt), { open, before: [], tries: 0, forwards: 0, resumes: 0 });
    this.result = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }

  get drafts() { return this.state === 'opening' || this.state === 'open'; } // not in a resume

  start() { // with an open, or with a resume if the verifier knows the stream
    const { open, id, secret } = this;
    if (!this.placed()) return;
    Object.assign(this, { state: id?.length ? 'resuming' : 'opening', alive: Date.now() });
    const held = { id, secret, position: this.text.length, text_hash: this.hash() };
    if (this.state === 'resuming') return send(this, { kind: 'resume', ...held });
    this.before.push(...this.text);
    Object.assign(this, { prompt: this.sequence, text: [], forwards: 0 });
    this.branch(0);
    const max_new_tokens = open.max_new_tokens - this.before.length;
    this.limit = Math.min(max_new_tokens, welcome.context - this.prompt.length);
    send(this, { ...open, kind: 'open', prompt: this.prompt, max_new_tokens });
    this.pump();
  }

  placed() { // at the lowest number that is free; or the stream waits for one
    this.number = [...Array(welcome?.streams ?? 0).keys()].find((n) => !streams.has(n));
    return this.number === undefined ? !waiting.push(this) : streams.set(this.number, this);
  }

  free(state) {
    this.state = state;
    streams.delete(this.number);
    waiting.shift()?.start();
  }

  async pump() { // drafts a block and sends it, if it is the time for one
    if (this.drafting || !this.drafts) return;
    const { epoch, end: base } = this;
    const [before, { max_block: longest, max_waiting: most }] = [socket, welcome];
    const room = Math.min(told.block, longest, (most || longest) - this.ahead.length);
    const count = Math.min(room, this.limit - 1 - base);
    if (this.waits && (told.mode === 'wait' || count < 1)) return;
    const sequence = [...this.sequence, ...this.ahead];
    this.drafting = true;
    for (let i = 0; i < count; i++) sequence.push(this.next(sequence));
    await pause(told.draft_ms);
    this.drafting = false;
    // The text may have grown meanwhile: drafts that contradict it must not be sent.
    const holds = this.sequence.every((id, i) => id === (sequence[i] ?? id));
    if (holds && socket === before && epoch === this.epoch && this.drafts) {
      const from = Math.max(base, this.text.length);
      const tokens = sequence.slice(this.prompt.length + from);
      this.ahead.push(...tokens);
      this.asked = Math.max(this.asked, from + Math.max(1, tokens.length));
      send(this, { kind: 'block', epoch, base: from, tokens, race: told.mode === 'race' });
    }
    this.pump();
  }

  next(sequence) {
    const script = SCRIPT.find((ids) => this.open.prompt.every((id, i) => id === ids[i]));
    const vocab = Math.min(told.vocab_size, welcome.vocab_size);
    return script?.[sequence.length] ?? draw(draft(sequence, vocab), this.open, sequence.length);
  }

  received(m) {
    const { kind, finish = 'not yet' } = m;
    const ends = kind === 'bye' || kind === 'error' || finish !== 'not yet';
    if (this.state === 'leaving') return ends && this.ended('cancelled'); // the rest is dropped
    if (kind === 'opened') Object.assign(this, { id: m.id, secret: m.secret, state: 'open' });
    else if (kind === 'commit') {
      const sent = m.epoch === this.epoch ? this.ahead : [];
      if (m.evidence.length || m.accepted > sent.length) refuse('a commit of what was not sent');
      this.grown([...sent.slice(0, m.accepted), ...(m['no token'] ? [] : [m.token])], m);
    } else if (kind === 'resumed') {
      if (this.state !== 'resuming' || m.position !== this.text.length) refuse('resumed elsewhere');
      Object.assign(this, { state: 'open', resumes: this.resumes + 1 });
      this.branch(m.epoch);
      this.grown(m.tokens, m);
    } else if (kind === 'progress' && m.work) this.alive = Date.now();
    else if (kind === 'error') this.failed(m);
    else if (kind === 'bye') this.ended(m.reason);
    this.pump();
  }

  grown(tokens, { forwards, text_hash: hash, finish }) {
    this.grow(tokens);
    if (this.text.length > this.limit) refuse('more text than was asked for');
    lost = 0;
    Object.assign(this, { forwards: forwards ?? this.forwards + 1, alive: Date.now(), tries: 0 });
    if (hash.length && !hash.equals(this.hash())) this.leave('error', 'not the text hashed');
    else if (finish !== 'not yet') this.ended(finish);
    else if (this.text.length >= told.cancel_after) this.leave('cancelled');
  }

  leave(reason, problem) { // the number stays in use until the verifier has answered
    Object.assign(this, { state: 'leaving', alive: Infinity });
    if (problem) this.reject(new Error(problem));
    send(this, { kind: 'bye', reason });
  }

  ended(finish) {
    this.free('ended');
    const { before, text, forwards, resumes } = this;
    this.resolve({ ids: before.concat(text), finish, forwards, resumes });
  }

  async failed({ code, message, retry_after_ms: least }) {
    const anew = code === 'stream' || (code === 'internal' && !this.tries);
    const full = ['busy', 'limit', 'draining'].includes(code) && this.tries < 9;
    const later = anew || (full && this.state !== 'open');
    this.free(later ? 'pausing' : 'ended');
    if (!later) return this.reject(new Error(`${code}: ${JSON.stringify(message)}`));
    if (anew) this.id = null;
    await pause(Math.max(least ?? 0, 20 * 2 ** this.tries++) * (1 + Math.random()));
    this.start();
  }
}

setInterval(() => streams.forEach((stream) => {
  if (Date.now() - stream.alive > told.patience_ms) stream.leave('deadline', 'no verdict came');
}), 100).unref();
try {
  await connect();
  const [stop_ids, seed] = [numbers(told.stop_ids), BigInt(told.seed)];
  const open = { ...told, stop_ids, seed, bonus: told.bonus > 0 };
  const all = told.prompt.map((prompt) => new Stream({ ...open, prompt: numbers(prompt) }));
  all.forEach((stream) => stream.start());
  console.log(JSON.stringify(await Promise.all(all.map(({ result }) => result))));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
end();
