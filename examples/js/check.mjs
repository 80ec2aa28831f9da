// Tries codec.mjs and sampling.mjs against the vectors in tests/golden:
//   node check.mjs wire wire_v2.json | node check.mjs sampling sampling_v1.json
// Prints what differs as a JSON list; an empty one is a pass.
import { readFileSync } from 'node:fs';
import { decode, encode, ProtocolError } from './codec.mjs';
import { argmax, draw, law } from './sampling.mjs';

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

function sampling({ cases }) {
  const wrong = [];
  cases.forEach(({ logits, position, ...c }, i) => {
    const [seed, sample] = [BigInt(`0x${c.seed}`), c.sample ?? Math.floor(position / 2 ** 32)];
    const at = (scheme, noise) => draw(logits, { ...c, seed, sample, scheme, noise }, position % 2 ** 32);
    const got = {
      greedy: argmax(logits), kept: law(logits, c).ids,
      coupled: at('coupled', 'philox'), coupled_sparse: at('coupled', 'sparse'), match: at('match'),
    };
    for (const [name, value] of Object.entries(got)) {
      if (plain(value) !== plain(c[name])) wrong.push({ case: i, name, got: value });
    }
  });
  return wrong;
}

const [what, path] = process.argv.slice(2);
const checks = { wire, sampling };
console.log(JSON.stringify(checks[what](load(path))));
