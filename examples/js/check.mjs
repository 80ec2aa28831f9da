// Tries codec.mjs and sampling.mjs against the vectors in tests/golden:
//   node check.mjs wire wire_v2.json | node check.mjs sampling sampling_v2.json
// Prints what differs as a JSON list; an empty one is a pass.
import { readFileSync } from 'node:fs';
import { decode, encode, ProtocolError } from './codec.mjs';
import { draw, law, mix, times, uniform } from './sampling.mjs';

// JSON.parse keeps 53 bits of a number; seeds have 64.
const load = (path) => JSON.parse(readFileSync(path, 'utf8').replace(/: (\d{16,})/g, ': "$1"'));
const plain = (value) => {
  if (Buffer.isBuffer(value)) return value.toString('hex');
  if (typeof value === 'bigint') return String(value);
  return Array.isArray(value) ? value.join(',') : value;
};

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
    try {
      decode(Buffer.from(hex, 'hex'), vocab);
      wrong.push({ hex, why, but: 'it was read' });
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
    }
  }
  return wrong;
}

// Section 6.5; of the schemes those without evidence.
const G = 0x9e3779b97f4a7c15n;
const number = (x) => ({ nan: NaN, inf: Infinity, '-inf': -Infinity })[x] ?? x;
function row(told) {
  if (Array.isArray(told)) return told.map(number);
  return Array.from({ length: told.size }, (_, id) => {
    const word = mix(BigInt(`0x${told.splitmix}`) + BigInt(id + 1) * G);
    const bytes = new Uint8Array(new BigUint64Array([word]).buffer);
    return (bytes.reduce((a, b) => a + b, 0) - 1020) / 64;
  });
}

function match(logits, open, position) {
  const { ids, p } = law(logits, open);
  const u = uniform(open.seed, position, 0, open.sample, 3) * p.reduce((a, b) => a + b);
  let sum = 0;
  return ids.find((_, i) => (sum += p[i]) >= u) ?? ids.at(-1);
}

function sampling({ noise, distributions, decisions, refused }) {
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
  for (const { seed: hex, tokens, rows, position, accepted, token, ...open } of decisions) {
    if (!['greedy', 'argmax', 'coupled', 'match'].includes(open.scheme)) continue;
    const seed = BigInt(`0x${hex}`);
    const logits = rows.map((told) => row(told).slice(0, open.vocab_size));
    const draws = open.scheme === 'match' ? match : draw;
    const own = logits.map((x, i) => draws(x, { ...open, seed }, position + i));
    const stands = [...tokens, -1].findIndex((draft, i) => draft !== own[i]);
    same({ scheme: open.scheme, seed: hex }, [stands, own[stands]], [accepted, token]);
  }
  for (const logits of refused.logits) {
    try {
      wrong.push({ logits, got: draw(row(logits), { scheme: 'argmax' }, 0) });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
    }
  }
  return wrong;
}

const [what, path] = process.argv.slice(2);
const checks = { wire, sampling };
console.log(JSON.stringify(checks[what](load(path))));
