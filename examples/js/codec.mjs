// Frames of draftwire.v2, by the tables of transport/protocol.json (PROTOCOL.md, 2 and 3).
import { readFileSync } from 'node:fs';

const SCHEMA = JSON.parse(readFileSync(new URL('../../transport/protocol.json', import.meta.url)));
const ACTED_ON = ['finish', 'objective', 'activity']; // codes that are refused when unknown (3.1)
export const SUBPROTOCOL = SCHEMA.subprotocol;
export const MAX_FRAME = 8 * 2 ** 20;
export class ProtocolError extends Error {}
export const refuse = (why) => { throw new ProtocolError(why); };

class Reader {
  constructor(bytes) { this.rest = bytes; }

  take(n = this.rest.length) {
    if (n > this.rest.length) refuse(`cut short: ${n} bytes wanted, ${this.rest.length} left`);
    const taken = Buffer.from(this.rest.subarray(0, n));
    this.rest = this.rest.subarray(n);
    return taken;
  }

  varint(max = 2 ** 64) {
    for (let value = 0n, shift = 0n; ; shift += 7n) {
      const [byte] = this.take(1);
      if (shift === 63n && byte > 1) refuse('a number of more than 64 bits');
      value |= BigInt(byte & 127) << shift;
      if (byte > 127) continue;
      if (byte === 0 && shift) refuse('a number longer than it needs');
      return value > max ? refuse(`${value} is above ${max}`) : Number(value);
    }
  }

  ids(count, vocab) {
    const width = widthOf(vocab ?? refuse('ids before the welcome'));
    const bytes = this.take(Math.ceil((count * width) / 8));
    const bits = Array.from(bytes, (byte) => byte.toString(2).padStart(8, '0')).reverse().join('');
    const ids = slices(bits, width).slice(0, count);
    return packIds(ids, vocab).equals(bytes) ? ids : refuse('spare bits that are not 0');
  }

  text() {
    const [bytes, text] = [this.rest, this.take().toString()];
    return bytes.length <= 4096 && Buffer.from(text).equals(bytes) ? text : refuse('not UTF-8');
  }
}

const varint = (v) => (v < 128 ? [v] : [(v % 128) + 128, ...varint(Math.floor(v / 128))]);
const widthOf = (vocab) => Math.max(1, 32 - Math.clz32(vocab - 1));
const slices = (bits, width) => Array.from({ length: Math.ceil(bits.length / width) },
  (_, i) => parseInt(bits.slice(0, bits.length - i * width).slice(-width), 2));

function packIds(ids, vocab) {
  const bits = ids.map((id) => id.toString(2).padStart(widthOf(vocab), '0')).reverse().join('');
  if (!ids.every((id) => id < vocab)) refuse(`an id that is not below ${vocab}`);
  return Buffer.from(slices(bits, 8));
}

// A mantissa that is rounded up to 128 is the next exponent.
const packTime = (s, e = Math.max(0, Math.floor(Math.log2(s * 1e6)) - 6)) =>
  (e ? Math.min(4095, e * 128 + Math.round((s * 1e6) / 2 ** (e - 1)) - 128) : Math.round(s * 1e6));
const unpackTime = (t) => (t < 128 ? t : (128 + (t & 127)) * 2 ** ((t >> 7) - 1)) / 1e6;
const finite = (x) => (Number.isFinite(x) ? x : refuse('a real that is not finite'));
const namesOf = (part) => SCHEMA.codes[part.registry];
const known = (part, number) => namesOf(part)[number]
  ?? (ACTED_ON.includes(part.registry) ? refuse(`${part.name} ${number}`) : 'other');

const readAll = (r, read, most = 256, found = []) => {
  while (r.rest.length) found.length < most ? found.push(read()) : refuse('too many entries');
  return found;
};
const single = (r, x = r.take(4).readFloatLE()) => (Number.isNaN(x) ? refuse('not a number') : x);
const TYPES = { // of each: what it is when left out, how it is read, how it is written
  varint: [0, (r, part) => r.varint(part.max), varint],
  byte: [0, (r) => r.take(1)[0], (v) => [v]],
  ids: [[], (r, part, V) => r.ids(r.varint(part.max ?? MAX_FRAME * 8), V),
    (v, part, V) => [...varint(v.length), ...packIds(v, V)]],
  id: [null, (r, part, V) => r.ids(1, V)[0], (v, part, V) => packIds([v], V)],
  times: [null, (r) => ((t) => [t % 4096, t >> 12].map(unpackTime))(r.take(3).readUIntLE(0, 3)),
    (v) => ((t) => [t & 255, (t >> 8) & 255, t >> 16])(packTime(v[0]) + packTime(v[1]) * 4096)],
  real: [0, (r) => finite(r.take(8).readDoubleLE()), (v) => new Float64Array([v]).buffer],
  u64: [0n, (r) => r.take(8).readBigUInt64LE(), (v) => new BigUint64Array([BigInt(v)]).buffer],
  flag: [false, (r) => r.varint(1) === 1, (v) => [Number(v)]],
  text: ['', (r) => r.text(), (v) => v],
  words: [[], (r) => r.text().split(' ').filter(Boolean), (v) => v.join(' ')],
  numbers: [[], (r) => readAll(r, () => r.varint()), (v) => v.flatMap(varint)],
  pairs: [[], (r, _, V) => readAll(r, () => [r.varint(V - 1), single(r)], 65536),
    (v) => v.flatMap(([i, x]) => [...varint(i), ...Buffer.from(new Float32Array([x]).buffer)])],
  lists: [[], (r, _, V) => readAll(r, () => [...Array(r.varint(256))].map(() => r.varint(V - 1))),
    (v) => v.flatMap((row) => [...varint(row.length), ...row.flatMap(varint)])],
  bytes: [Buffer.alloc(0), (r, { sizes = [r.rest.length], name }) => (
    sizes.includes(r.rest.length) ? r.take() : refuse(`the length of ${name}`)), (v) => v],
  code: [null, (r, part) => known(part, r.varint()),
    (v, part) => varint(Number(Object.keys(namesOf(part)).find((n) => namesOf(part)[n] === v)))],
};
const defaultOf = (part) => (part.default !== undefined ? part.default
  : part.type === 'code' ? namesOf(part)[0] : TYPES[part.type][0]);
const heads = ({ head = [], flags = [] }, message) =>
  head.filter((part) => !flags.some(({ name, absent }) => absent === part.name && message[name]));

/** The bytes of `message`: {kind, stream, ...parts by name}; `vocab` is the welcome's. */
export function encode(message, vocab) {
  const kind = SCHEMA.kinds.find(({ name }) => name === message.kind);
  const stream = kind.scope === 'connection' || message.fatal ? 0 : message.stream;
  const flags = (kind.flags ?? []).filter(({ name }) => message[name]);
  const first = flags.reduce((byte, { bit }) => byte | bit, kind.kind | (Math.min(stream, 3) << 6));
  const chunks = [[first], stream > 2 ? varint(stream) : []];
  const put = (part, value) => Buffer.from(TYPES[part.type][2](value, part, vocab));
  for (const part of heads(kind, message)) chunks.push(put(part, message[part.name]));
  for (const part of kind.fields ?? []) {
    const value = message[part.name] ?? defaultOf(part);
    if (!part.required && String(value) === String(defaultOf(part))) continue;
    const [bytes, must] = [put(part, value), part.must || part.required ? 1 : 0];
    chunks.push(varint(part.number * 2 + must), varint(bytes.length), bytes);
  }
  return Buffer.concat(chunks.map((chunk) => Buffer.from(chunk)));
}

/** The message in `frame`, every part of it by name; throws ProtocolError. */
export function decode(frame, vocab) {
  const r = new Reader(frame);
  const [first] = r.take(1);
  const kind = SCHEMA.kinds.find((one) => one.kind === first % 16) ?? refuse('an unknown kind');
  const { flags = [], fields = [] } = kind;
  if (first & 48 & ~flags.reduce((bits, { bit }) => bits | bit, 0)) refuse('an unknown flag');
  const message = { kind: kind.name, from: kind.from };
  for (const { name, bit } of flags) message[name] = (first & bit) > 0;
  if (kind.scope !== 'connection' && !message.fatal) {
    message.stream = first >> 6 < 3 ? first >> 6 : r.varint(16383);
    if (first >> 6 === 3 && message.stream < 3) refuse('a stream number longer than it needs');
  } else if (first >> 6) refuse('a stream number on a message of the connection');
  const get = (part, reader) => { message[part.name] = TYPES[part.type][1](reader, part, vocab); };
  heads(kind, message).forEach((part) => get(part, r));
  const found = new Map();
  while (r.rest.length) {
    const [must, number] = [r.rest[0] % 2, Math.floor(r.varint() / 2)];
    const strange = must && !fields.some((part) => part.number === number);
    if (strange || found.has(number)) refuse(`field ${number} is unknown or comes twice`);
    found.set(number, new Reader(r.take(r.varint())));
  }
  for (const part of fields) {
    const field = found.get(part.number) ?? (part.required ? refuse(`no ${part.name}`) : null);
    if (field) get(part, field);
    else message[part.name] = defaultOf(part);
    if (field?.rest.length) refuse(`bytes after the end of ${part.name}`);
  }
  return message;
}
