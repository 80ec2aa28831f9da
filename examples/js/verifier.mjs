// A verifier for draftwire.v2 with a toy target: node verifier.mjs --port 8765 --token T
// Serves loopback; prints its address. PROTOCOL.md says what it does and why.
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';
import { setTimeout as pause } from 'node:timers/promises';
import { WebSocketServer } from 'ws';
import { decode, encode, MAX_FRAME, ProtocolError, refuse, SUBPROTOCOL } from './codec.mjs';
import { draw } from './sampling.mjs';
import { options, target, Text } from './text.mjs';

const told = options({
  port: 0, token: '', target: 'toy', tokenizer: '11'.repeat(32), backbone: '', family: 'toy',
  vocab_size: 256, context: 4096, max_block: 16, max_waiting: 64, streams: 8, most_streams: 64,
  forward_ms: 2, progress_ms: 500, parked_s: 60, retry_ms: 200,
}, process.argv.slice(2));
const CLOSE = { protocol: 1002, version: 1002, draining: 1001, internal: 1011 };
const known = new Map(); // by id: streams that run, are parked, or whose end nobody has seen
let [forwards, wake] = [0, () => {}]; // of the target, for anybody

const digest = (text) => createHash('sha256').update(text).digest();
const equal = (a, b) => timingSafeEqual(digest(a), digest(b));

class Stream extends Text {
  constructor(open) {
    super(open.prompt);
    Object.assign(this, { open, id: randomBytes(8), secret: randomBytes(16), finish: 'not yet' });
    Object.assign(this, { key: this.id.toString('hex'), forwards: 0, blockEnd: 0 });
    this.race = open.objective === 'latency';
    this.limit = Math.min(open.max_new_tokens, told.context - open.prompt.length);
  }

  get wants() { // a forward
    if (!this.link || this.finish !== 'not yet') return false;
    const allowed = this.open.credit ? this.blockEnd + this.open.credit : Infinity;
    return this.text.length < this.asked || (this.race && this.text.length < allowed);
  }

  block({ epoch, base, tokens, race, more, evidence, correction, instead }) {
    if (instead?.length) refuse('drafts beside a branch, without the capability trees');
    if (evidence.length || correction !== null) refuse('evidence that the scheme does not have');
    if (tokens.length > told.max_block) refuse(`a block of ${tokens.length} tokens`);
    if (!this.wants && !this.judging) this.since = performance.now();
    Object.assign(this, { race, blockEnd: base + tokens.length });
    const [lead, asks] = [(epoch - this.epoch + 256) % 256, base + Math.max(1, tokens.length)];
    if (lead && lead < 128) this.branch(epoch);
    if (lead < 128) {
      const fits = this.ahead.length ? base === this.end : base <= this.end;
      if (!fits) refuse(`a block at ${base} where the drafts end at ${this.end}`);
      if (tokens.every((token, i) => token === (this.text[base + i] ?? token))) {
        this.ahead.push(...tokens.slice(Math.max(0, this.text.length - base)));
        if (!more) this.asked = Math.max(this.asked, asks);
      } else this.branch(this.epoch + 1);
      if (this.ahead.length > told.max_waiting) refuse('too many drafts wait');
    }
    const needless = epoch !== this.epoch || asks <= this.text.length;
    this.idle = needless && !this.judging && !this.wants ? Date.now() : Infinity;
    wake();
  }

  progress(activity) {
    const { epoch, text: { length: position }, seen } = this;
    const work = activity === 'idle' ? 0 : forwards - seen;
    this.send({ kind: 'progress', activity, epoch, position, work });
    this.idle = Infinity;
  }

  async forward() { // over the text's last token and the drafts that are there
    const { epoch, open, text: { length: before }, sequence } = this;
    const [room, start, mine, tokens] = [this.limit - before, performance.now(), {}, []];
    const there = Math.min(this.ahead.length, this.race ? Infinity : this.asked - before);
    const drafts = this.ahead.slice(0, Math.min(there, room - 1));
    this.judging = mine;
    await pause(told.forward_ms);
    let finish = 'not yet';
    do {
      tokens.push(draw(target(sequence, told.vocab_size), open, sequence.length));
      sequence.push(tokens.at(-1));
      if (tokens.length === room) finish = 'length';
      if (open.stop_ids.includes(tokens.at(-1))) finish = 'stop';
    } while (finish === 'not yet' && tokens.at(-1) === drafts[tokens.length - 1]
      && (open.bonus || tokens.length < there));
    [forwards, this.forwards] = [forwards + 1, this.forwards + 1];
    if (this.judging !== mine) return; // the link was lost meanwhile: void
    this.grow(tokens);
    const accepted = tokens.filter((token, i) => token === drafts[i]).length;
    const hashed = finish !== 'not yet' || before >> 6 !== this.text.length >> 6;
    this.send({
      kind: 'commit', epoch, accepted, 'no token': accepted === tokens.length, finish,
      token: tokens[accepted], forwards: this.forwards, text_hash: hashed ? this.hash() : null,
      times: [(start - this.since) / 1000, (performance.now() - start) / 1000],
    });
    Object.assign(this, { finish, judging: null, since: performance.now() });
    if (finish !== 'not yet') this.leave(true);
  }

  send(message) {
    Object.assign(this, { quiet: Date.now(), seen: forwards });
    this.link.send({ ...message, stream: this.number });
  }

  leave(kept) { // its connection: for a resume, or for good; what is under way is void
    this.link?.streams.delete(this.number);
    Object.assign(this, { link: null, judging: null });
    if (kept) setTimeout(() => this.link ?? known.delete(this.key), told.parked_s * 1000).unref();
    else known.delete(this.key);
  }
}

class Link {
  constructor(socket) {
    Object.assign(this, { socket, streams: new Map() });
    socket.on('message', (data, binary) => this.heard(data, binary)).on('error', () => {});
    socket.on('close', () => this.streams.forEach((stream) => stream.leave(true)));
  }

  send(message) {
    if (this.socket.bufferedAmount > 2 ** 20) this.socket.terminate(); // it reads nothing
    else this.socket.send(encode(message, this.welcome?.vocab_size), () => {});
  }

  fatal(code, message) {
    this.send({ kind: 'error', fatal: true, code, message });
    this.socket.close(CLOSE[code] ?? 1008);
  }

  heard(data, binary) {
    if (this.socket.readyState !== this.socket.OPEN) return;
    try {
      const m = binary ? decode(data, this.welcome?.vocab_size) : refuse('a text frame');
      if (m.from === 'cloud' || (m.kind === 'hello') !== !this.welcome) refuse(`a ${m.kind} here`);
      if (m.fatal) this.socket.close(1000);
      else if (m.kind === 'block') this.streams.get(m.stream)?.block(m);
      else this[{ open: 'begin', resume: 'begin', hello: 'hello' }[m.kind] ?? 'leave'](m);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.fatal('protocol', error.message);
    }
  }

  hello({ target: name, tokenizer, backbone, family, vocab_size, capabilities, noise }) {
    const [ours, base] = [told.tokenizer, told.backbone].map((hex) => Buffer.from(hex, 'hex'));
    if (name && name !== told.target) return this.fatal('target', `the target is ${told.target}`);
    if (!tokenizer.equals(ours)) return this.fatal('tokenizer', 'the tokenizers differ');
    const alike = backbone.length ? backbone.equals(base) : family === told.family;
    this.welcome = {
      ...told, kind: 'welcome', agent: 'draftwire-js', target_version: '1', numerics: 'exact',
      tokenizer, backbone: base, vocab_size: Math.min(vocab_size, told.vocab_size),
      compatibility: alike ? 'family' : 'tokenizer', schemes: ['greedy', 'coupled'],
      capabilities: capabilities.filter((word) => word === 'resume'),
      noise: noise.filter((profile) => profile === 'philox' || profile === 'sparse'),
    };
    this.send(this.welcome);
  }

  begin(m) { // an open or a resume
    if (this.streams.has(m.stream)) refuse(`stream ${m.stream} is running`);
    if (m.prefix?.length) refuse('a prefix, and the capability was not agreed');
    const old = m.kind === 'resume' && known.get(m.id.toString('hex'));
    const [code, message, retry_after_ms] = this.refusal(m, old) || [];
    if (code) return this.send({ kind: 'error', stream: m.stream, code, message, retry_after_ms });
    const stream = old || new Stream(m);
    stream.leave(true); // a link that is half open
    Object.assign(stream, { link: this, number: m.stream, since: performance.now() });
    this.streams.set(m.stream, stream);
    known.set(stream.key, stream);
    wake();
    const { id, secret, finish, forwards: all } = stream;
    const named = this.welcome.capabilities.length ? { id, secret } : {};
    if (!old) return stream.send({ kind: 'opened', ...named });
    stream.branch(stream.epoch + 1);
    const [tokens, text_hash] = [stream.text.slice(m.position), stream.hash()];
    const { epoch } = stream;
    stream.send({ ...m, kind: 'resumed', epoch, tokens, finish, forwards: all, text_hash });
    if (finish !== 'not yet') stream.leave(true);
  }

  refusal({ kind, stream, secret, position, text_hash: hash, ...open }, old) {
    if (this.streams.size >= told.streams) return ['limit', `at most ${told.streams} streams`];
    if (kind === 'resume') {
      const same = old && equal(old.secret, secret) && position <= old.text.length
        && (!hash.length || hash.equals(old.hash(position)));
      return !same && ['stream', 'no such stream, or another text'];
    }
    const { prompt, scheme, noise, temperature: t, top_p: topP, max_new_tokens: most } = open;
    const law = scheme === 'greedy' ? t === 0 : scheme === 'coupled' && t > 0 && t <= 100;
    if (!law || !(topP > 0 && topP <= 1)) return ['request', 'greedy at 0 or coupled above it'];
    if (!this.welcome.noise.includes(noise)) return ['request', `no noise ${noise} here`];
    const { min_p: m, repetition_penalty: r, presence_penalty: p, frequency_penalty: f } = open;
    const more = m || r !== 1 || p || f || open.logit_bias.length || open.bad_words.length;
    const beyond = more || open.logprobs;
    if (beyond) return ['request', 'processors or logprobs, and neither was agreed'];
    const fits = prompt.length && prompt.length < told.context && most > 0;
    if (!fits) return ['request', `no prompt, or no room for a token`];
    const running = [...known.values()].filter(({ link }) => link).length;
    return running >= told.most_streams && ['busy', 'no room now', told.retry_ms];
  }

  leave({ stream: number }) { // a bye or an error
    const stream = this.streams.get(number);
    stream?.send({ kind: 'bye', forwards: stream.forwards });
    stream?.leave(false);
  }
}

async function serve() { // one forward after another, for the streams in turn
  const next = [...known.values()].find((stream) => stream.wants);
  if (!next) await new Promise((resolve) => { wake = resolve; });
  else if (known.delete(next.key)) await known.set(next.key, next).get(next.key).forward();
  serve();
}

function progress() { // 4.5: for those that wait while the target works, or need not wait
  const before = Date.now() - told.progress_ms;
  for (const stream of [...known.values()].filter(({ link }) => link)) {
    const works = stream.quiet <= before && forwards > stream.seen;
    if (works && stream.wants) stream.progress(stream.judging ? 'judging' : 'queued');
    else if (stream.idle <= before && !stream.wants) stream.progress('idle');
  }
}

const health = JSON.stringify({ status: 'ok', draftwire: 'js', targets: [told.target] });
const server = createServer(({ url }, response) => {
  response.writeHead(url.endsWith('/healthz') ? 200 : 404).end(health);
});
const verifyClient = ({ req: { headers } }, done) => {
  const offered = (headers['sec-websocket-protocol'] ?? '').split(/, */);
  const wrong = told.token && !equal(headers.authorization ?? '', `Bearer ${told.token}`);
  const text = { 'Content-Type': 'text/plain' };
  if (wrong) done(false, 401, 'The token is wrong.', text);
  else done(offered.includes(SUBPROTOCOL), 426, `This verifier speaks ${SUBPROTOCOL}.`, text);
};
const limits = { perMessageDeflate: false, maxPayload: MAX_FRAME };
const sockets = { server, verifyClient, handleProtocols: () => SUBPROTOCOL, ...limits };
new WebSocketServer(sockets).on('connection', (socket) => new Link(socket));
server.listen(told.port, '127.0.0.1', () => {
  console.log(`ws://127.0.0.1:${server.address().port}`);
  setInterval(progress, told.progress_ms / 4);
  serve();
});
