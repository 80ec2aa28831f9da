// Tries codec.mjs and sampling.mjs against the vectors in tests/golden:
//   node check.mjs wire wire_v2.json | node check.mjs sampling sampling_v2.json
// Prints what differs as a JSON list; an empty one is a pass.
import { readFileSync } from 'node:fs';
import { decode, encode, ProtocolError } from './codec.mjs';
import { Bits, correct, judge, putQs, putSet, readDown, readUp } from './evidence.mjs';
import { draw, law, mix, times, uniform } from './sampling.mjs';

// JSON.parse keeps 53 bits of a number; seeds have 64.
const load = (path) => JSON.parse(readFileSync(path, 'utf8').replace(/: (\d{16,})/g, ': "$1"'));
const plain = (value) => {
  if (Buffer.isBuffer(value)) return value.toString('hex');
  if (typeof value === 'bigint') return String(value);
  return Array.isArray(value) ? value.join(',') : value;
};

const WITHOUT = ['greedy', 'argmax', 'coupled', 'match']; // evidence

function isRefused(call) {
  try {
    call();
    return false;
  } catch (error) {
    if (error instanceof ProtocolError || error instanceof RangeError) return true;
    throw error;
  }
}

function wire({ vocab_size: vocab, frames, refused }) {
  const wrong = [];
  for (const vector of frames) {
    const message = { kind: vector.kind, stream: vector.stream ?? 0 };
    if (vector.kind === 'error') message.fatal = vector.stream === null;
    const { queue_s: queue = 0, compute_s: compute = 0, ...fields } = vector.fields;
    if (vector.kind === 'commit') message.times = [queue, compute];
    if (vector.kind === 'commit') message['no token'] = fields.token === null;
    for (const [name, value] of Object.entries(fields)) {
      if (name === 'token' && value === null) continue;
      const isCode = name === 'finish';
      const isSeed = name === 'seed';
      message[name] = value?.hex !== undefined ? Buffer.from(value.hex, 'hex')
        : isCode ? ['not yet', 'length', 'stop', 'budget'][value] : isSeed ? BigInt(value) : value;
    }
    const written = encode(message, vocab).toString('hex');
    if (written !== vector.hex) wrong.push({ name: vector.name, written, expected: vector.hex });
    const read = decode(Buffer.from(vector.hex, 'hex'), vocab);
    for (const [name, value] of Object.entries(message)) {
      if (name === 'stream' && vector.stream === null) continue;
      if (plain(read[name]) !== plain(value)) {
        wrong.push({ name: vector.name, part: name, read: plain(read[name]) });
      }
    }
    const again = encode(read, vocab).toString('hex');
    if (again !== vector.hex) wrong.push({ name: vector.name, again });
  }
  for (const { hex, why } of refused) {
    if (!isRefused(() => decode(Buffer.from(hex, 'hex'), vocab))) wrong.push({ hex, why });
  }
  return wrong;
}

// Section 6.5.
const G = 0x9e3779b97f4a7c15n;
const number = (x) => ({ nan: NaN, inf: Infinity, '-inf': -Infinity })[x] ?? x;
function row(told) {
  if (Array.isArray(told)) return told.map(number);
  const words = new BigUint64Array(told.size);
  for (let id = 0; id < told.size; id++) {
    words[id] = mix(BigInt(`0x${told.splitmix}`) + BigInt(id + 1) * G);
  }
  const bytes = new Uint8Array(words.buffer);
  return Array.from(words, (_, id) => {
    let sum = 0;
    for (let i = 8 * id; i < 8 * id + 8; i++) sum += bytes[i];
    return (sum - 1020) / 64;
  });
}

function match(logits, open, position) {
  const { ids, p } = law(logits, open);
  const u = uniform(open.seed, position, 0, open.sample, 3) * p.reduce((a, b) => a + b);
  let sum = 0;
  return ids.find((_, i) => (sum += p[i]) >= u) ?? ids.at(-1);
}

function sampling({ noise, distributions, sets, quantised, decisions, corrections, refused }) {
  const wrong = [];
  const same = (what, got, expected, error = 0) => {
    const near = got.length === expected.length
      && got.every((x, i) => Math.abs(x - expected[i]) <= error * Math.abs(expected[i]));
    if (!near) wrong.push({ ...what, got, expected });
  };
  for (const { profile, seed: hex, sample, position, domain, ids, u, E } of noise) {
    const [seed, what] = [BigInt(`0x${hex}`), { profile, hex }];
    if (u) same(what, ids.map((id) => uniform(seed, position, id, sample, domain)), u);
    if (E) same(what, times(profile, seed, position, sample, ids), E, 2 ** -52);
  }
  for (const c of distributions) {
    const { ids, p } = law(row(c.row), c);
    const what = { temperature: c.temperature, top_k: c.top_k, top_p: c.top_p, size: c.row.size };
    same(what, [ids.length], [c.count]);
    if (c.ids) same(what, ids, c.ids);
    else same(what, [ids.reduce((a, b) => a + b), ...ids.slice(0, 4)], [c.sum, ...c.first]);
    same(what, p.slice(0, c.p.length), c.p, 1e-9);
  }
  for (const { universe, members, bits: count, hex } of sets) {
    const bits = new Bits();
    putSet(bits, members, universe);
    if (bits.bits.length !== count || bits.bytes().toString('hex') !== hex) wrong.push({ hex });
  }
  for (const { vocab_size: vocab, token, ids, weights, hex } of quantised) {
    if (putQs(vocab, token, ids, weights).toString('hex') !== hex) wrong.push({ vocab, hex });
    const [read] = readUp('qs', [token], Buffer.from(hex, 'hex'), vocab);
    same({ vocab, token }, [...read.ids, ...read.W], [...ids, ...weights]);
  }
  for (const { seed: hex, tokens, rows, position, evidence, ...c } of decisions) {
    const open = { ...c, seed: BigInt(`0x${hex}`) };
    const logits = rows.map((told) => row(told).slice(0, c.vocab_size));
    let verdict;
    if (WITHOUT.includes(c.scheme)) {
      const draws = c.scheme === 'match' ? match : draw;
      const own = logits.map((x, i) => draws(x, open, position + i));
      const accepted = [...tokens, -1].findIndex((draft, i) => draft !== own[i]);
      verdict = { accepted, token: own[accepted], down: '' };
    } else verdict = judge(logits, tokens, Buffer.from(evidence, 'hex'), open, position);
    const { accepted, token, down } = c;
    if (JSON.stringify(verdict) !== JSON.stringify({ accepted, token, down })) {
      wrong.push({ scheme: c.scheme, seed: hex, verdict, accepted, token, down });
    }
  }
  for (const { vocab_size: vocab, refused: x, down, q_ids: q, q_weights: w, ...c } of corrections) {
    const entries = readDown(Buffer.from(down, 'hex'), x, vocab);
    same({ x, down }, [...entries.ids, ...entries.weights], [...c.ids, ...c.weights]);
    const u = uniform(BigInt(`0x${c.seed}`), c.position, 0, c.sample, 3);
    same({ x, down }, [correct(entries, new Map(q.map((id, i) => [id, w[i]])), u)], [c.token]);
  }
  for (const { scheme, vocab_size: vocab, tokens, evidence, why } of refused.up) {
    const bytes = Buffer.from(evidence, 'hex');
    if (!isRefused(() => readUp(scheme, tokens, bytes, vocab))) wrong.push(why);
  }
  for (const { vocab_size: vocab, refused: x, down, why } of refused.down) {
    if (!isRefused(() => readDown(Buffer.from(down, 'hex'), x, vocab))) wrong.push(why);
  }
  for (const logits of refused.logits) {
    if (!isRefused(() => draw(row(logits), { scheme: 'argmax' }, 0))) wrong.push({ logits });
  }
  return wrong;
}

const [what, path] = process.argv.slice(2);
const checks = { wire, sampling };
console.log(JSON.stringify(checks[what](load(path))));
