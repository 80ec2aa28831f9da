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
const known = new Map(); // streams by id: those that run, are parked, or whose end is unseen
let forwards = 0; // of the target, for anybody

const digest = (text) => createHash('sha256').update(text).digest();
const equal = (a, b) => timingSafeEqual(digest(a), digest(b));

class Stream extends Text {
  constructor(open) {
    super(open.prompt);
    Object.assign(this, { open, id: randomBytes(8), secret: randomBytes(16), finish: 'not yet' });
    Object.assign(this, { key: this.id.toString('hex'), forwards: 0, said: 0, unhashed: 0 });
    Object.assign(this, { race: open.objective === 'latency', lastEnd: 0 });
    this.limit = Math.min(open.max_new_tokens, told.context - open.prompt.length);
  }

  get wants() { // a forward
    if (!this.link || this.finish !== 'not yet') return false;
    const { credit } = this.open;
    return this.text.length < this.asked
      || (this.race && (!credit || this.text.length < this.lastEnd + credit));
  }

  block({ epoch, base, tokens, race, more, evidence, correction }) {
    const asks = base + Math.max(1, tokens.length);
    const lead = (epoch - this.epoch + 256) % 256;
    if (tokens.length > told.max_block) return this.fail('limit', 'a block is too long');
    if (evidence.length || correction !== null) refuse('evidence that the scheme does not have');
    Object.assign(this, { race, lastEnd: base + tokens.length });
    if (!this.wants && !this.judging) this.since = performance.now();
    if (lead && lead < 128) this.branch(epoch);
    if (lead < 128) {
      if (this.ahead.length ? base !== this.end : base > this.end) {
        refuse(`a block at ${base} where the drafts end at ${this.end}`);
      }
      if (tokens.some((token, i) => token !== (this.text[base + i] ?? token))) {
        this.branch(this.epoch + 1);
      } else {
        this.ahead.push(...tokens.slice(this.text.length - Math.min(base, this.text.length)));
        if (!more) this.asked = Math.max(this.asked, asks);
      }
      if (this.ahead.length > told.max_waiting) return this.fail('limit', 'too many drafts wait');
    }
    if (!this.judging && !this.wants && (lead > 127 || epoch !== this.epoch || asks <= this.text.length)) {
      this.send({ kind: 'progress', activity: 'idle', ...this.work() });
    }
    wake();
  }

  work() {
    return { epoch: this.epoch, position: this.text.length, work: forwards - this.seen };
  }

  async forward() { // over the text's last token and the drafts that are there
    const { epoch, open, link, limit, text } = this;
    const room = limit - text.length;
    const there = Math.min(this.ahead.length, this.race ? Infinity : this.asked - text.length);
    const drafts = this.ahead.slice(0, Math.min(there, room - 1));
    const mine = this.judging = {};
    const start = performance.now();
    await pause(told.forward_ms);
    const [tokens, sequence] = [[], this.sequence];
    let finish = 'not yet';
    do {
      tokens.push(draw(target(sequence, told.vocab_size), open, sequence.length));
      sequence.push(tokens.at(-1));
      if (open.stop_ids.includes(tokens.at(-1))) finish = 'stop';
      else if (tokens.length === room) finish = 'length';
    } while (finish === 'not yet' && tokens.at(-1) === drafts[tokens.length - 1]
      && (open.bonus || tokens.length !== there));
    forwards += 1;
    this.forwards += 1;
    if (this.judging !== mine) return; // the link was lost meanwhile: void
    this.judging = null;
    const accepted = tokens.filter((token, i) => token === drafts[i]).length;
    const times = [start - this.since, performance.now() - start].map((ms) => ms / 1000);
    this.since = performance.now();
    this.grow(tokens);
    this.finish = finish;
    this.unhashed += tokens.length;
    const hash = finish !== 'not yet' || this.unhashed > 255 - told.max_block;
    this.send({
      kind: 'commit', epoch, accepted, token: tokens[accepted], 'no token': accepted === tokens.length,
      times, finish, text_hash: hash ? this.hash() : Buffer.alloc(0),
      forwards: this.forwards === this.said + 1 ? null : this.forwards,
    });
    if (hash) this.unhashed = 0;
    this.said = this.forwards;
    if (finish !== 'not yet') link.finished(this);
  }

  send(message) {
    Object.assign(this, { quiet: Date.now(), seen: forwards });
    this.link.send({ ...message, stream: this.number });
  }

  fail(code, message, more = {}) {
    this.send({ kind: 'error', code, message, ...more });
    this.forget();
  }

  detach() { // what is under way is void
    this.link?.streams.delete(this.number);
    Object.assign(this, { link: null, judging: null });
  }

  forget() {
    this.detach();
    known.delete(this.key);
  }

  park() {
    this.detach();
    setTimeout(() => this.link ?? this.forget(), told.parked_s * 1000).unref();
  }
}

class Link {
  constructor(socket) {
    Object.assign(this, { socket, streams: new Map(), ended: new Map(), vocab: undefined });
    socket.on('message', (data, binary) => this.frame(data, binary));
    socket.on('error', () => {});
    socket.on('close', (code) => { // 1006: no close frame came, so the end may be unseen
      for (const stream of this.streams.values()) stream.park();
      for (const stream of this.ended.values()) if (code === 1006) stream.park(); else stream.forget();
    });
  }

  send(message) {
    if (this.socket.bufferedAmount > 2 ** 20) this.socket.terminate(); // it reads nothing
    else this.socket.send(encode(message, this.vocab), () => {});
  }

  fatal(code, message) {
    this.send({ kind: 'error', fatal: true, code, message });
    this.socket.close(CLOSE[code] ?? 1008);
  }

  frame(data, binary) {
    if (this.socket.readyState !== this.socket.OPEN) return;
    try {
      const m = binary ? decode(data, this.vocab) : refuse('a text frame');
      if (m.from === 'cloud' || (m.kind === 'hello') !== !this.vocab) refuse(`a ${m.kind} here`);
      if (m.kind === 'hello') this.hello(m);
      else if (m.fatal) this.socket.close(1000);
      else if (m.kind === 'open' || m.kind === 'resume') this.begin(m);
      else if (m.kind === 'block') this.streams.get(m.stream)?.block(m);
      else this.leave(m);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.fatal('protocol', error.message);
    }
  }

  hello({ target: name, tokenizer, backbone, family, vocab_size, capabilities, noise }) {
    if (name && name !== told.target) return this.fatal('target', `the target here is ${told.target}`);
    if (tokenizer.toString('hex') !== told.tokenizer) {
      return this.fatal('tokenizer', 'the draft has another tokenizer than the target');
    }
    const alike = backbone.length ? backbone.toString('hex') === told.backbone : family === told.family;
    this.vocab = Math.min(vocab_size, told.vocab_size);
    this.resumes = capabilities.includes('resume');
    this.noise = ['philox', 'sparse'].filter((profile) => noise.includes(profile));
    this.send({
      ...told, kind: 'welcome', agent: 'draftwire-js', target_version: '1', vocab_size: this.vocab,
      tokenizer, backbone: Buffer.from(told.backbone, 'hex'), noise: this.noise, numerics: 'exact',
      compatibility: alike ? 'family' : 'tokenizer', schemes: ['greedy', 'coupled'],
      capabilities: this.resumes ? ['resume'] : [],
    });
  }

  begin(m) {
    if (this.streams.has(m.stream)) refuse(`stream ${m.stream} is running`);
    this.ended.get(m.stream)?.forget();
    const no = (code, message, more) =>
      this.send({ kind: 'error', stream: m.stream, code, message, ...more });
    if (this.streams.size >= told.streams) return no('limit', `at most ${told.streams} streams`);
    if (m.kind === 'resume') return this.resume(m, no);
    const { prompt, scheme, noise, temperature, top_p: topP, max_new_tokens: most } = m;
    if (prompt.length > 2 * told.context + 1024) refuse('a prompt far above the context');
    if (!prompt.length || most < 1) refuse('a prompt or a length of 0');
    if (!(temperature >= 0 && temperature <= 100 && topP > 0 && topP <= 1)) refuse('a law that is none');
    if (prompt.length >= told.context) return no('request', 'the prompt is too long');
    if (scheme !== 'greedy' && scheme !== 'coupled') return no('request', `no scheme ${scheme} here`);
    if (!this.noise.includes(noise)) return no('request', `the noise ${noise} was not agreed`);
    if (known.size >= told.most_streams) return no('busy', 'no room', { retry_after_ms: told.retry_ms });
    const stream = new Stream(m);
    this.hold(stream, m.stream);
    const { id, secret } = this.resumes ? stream : {};
    stream.send({ kind: 'opened', id, secret });
    wake();
  }

  resume({ stream: number, id, secret, position, text_hash: hash }, no) {
    const stream = known.get(id.toString('hex'));
    if (!stream || !equal(stream.secret, secret)) return no('stream', 'no such stream');
    const theirs = Object.assign(new Text(stream.prompt), { text: stream.text.slice(0, position) });
    if (position > stream.text.length || (hash.length && !hash.equals(theirs.hash()))) {
      return no('stream', 'it is another text');
    }
    stream.detach();
    this.hold(stream, number);
    stream.branch(stream.epoch + 1);
    stream.said = stream.forwards;
    const { epoch, text, finish, forwards: count } = stream;
    stream.send({
      kind: 'resumed', epoch, position, tokens: text.slice(position), finish, forwards: count,
      text_hash: stream.hash(),
    });
    if (finish !== 'not yet') this.finished(stream);
    wake();
  }

  hold(stream, number) {
    Object.assign(stream, { link: this, number, since: performance.now() });
    this.streams.set(number, stream);
    known.set(stream.key, stream);
  }

  finished(stream) { // kept until its end has been seen (4.3)
    this.streams.delete(stream.number);
    this.ended.set(stream.number, stream);
  }

  leave({ kind, stream: number }) {
    const stream = this.streams.get(number);
    this.ended.get(number)?.forget();
    if (!stream) return;
    stream.send({ kind: 'bye', forwards: stream.forwards });
    stream.forget();
  }
}

let wake = () => {};
async function serve() { // one forward after another, for the streams in turn
  for (;;) {
    const next = [...known.values()].find((stream) => stream.wants);
    if (!next) await new Promise((resolve) => { wake = resolve; });
    else {
      known.delete(next.key);
      known.set(next.key, next);
      await next.forward();
    }
  }
}

function progress() { // 4.5: for those that wait while the target works for others
  for (const stream of known.values()) {
    const quiet = Date.now() - stream.quiet >= told.progress_ms;
    if ((stream.wants || stream.judging) && quiet && forwards > stream.seen) {
      const activity = stream.judging ? 'judging' : 'queued';
      stream.send({ kind: 'progress', activity, ...stream.work() });
    }
  }
}

const server = createServer((request, response) => {
  const health = { status: 'ok', draftwire: 'js', targets: [told.target] };
  const well = request.url === '/healthz';
  response.writeHead(well ? 200 : 404, { 'content-type': well ? 'application/json' : 'text/plain' });
  response.end(well ? JSON.stringify(health) : 'This is a verifier; it speaks draftwire.v2.\n');
});
const sockets = new WebSocketServer({
  noServer: true, perMessageDeflate: false, maxPayload: MAX_FRAME, handleProtocols: () => SUBPROTOCOL,
});
server.on('upgrade', (request, socket, head) => {
  const { authorization = '', 'sec-websocket-protocol': offered = '' } = request.headers;
  const no = (status, sentence) => socket.end(`HTTP/1.1 ${status}\r\nContent-Type: text/plain\r\n`
    + `Connection: close\r\nContent-Length: ${sentence.length}\r\n\r\n${sentence}`);
  if (told.token && !equal(authorization, `Bearer ${told.token}`)) no('401 Unauthorized', 'The token is wrong.\n');
  else if (!offered.split(/, */).includes(SUBPROTOCOL)) {
    no('426 Upgrade Required', `This verifier speaks ${SUBPROTOCOL}.\n`);
  } else sockets.handleUpgrade(request, socket, head, (ws) => new Link(ws));
});
server.listen(told.port, '127.0.0.1', () => {
  console.log(`ws://127.0.0.1:${server.address().port}`);
  setInterval(progress, told.progress_ms / 4);
  serve();
});
