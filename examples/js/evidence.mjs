// The schemes with evidence (PROTOCOL.md 6.3 and 6.4): residual, qs, separate, separate-lossy.
import { refuse } from './codec.mjs';
import { law, uniform } from './sampling.mjs';

const LEVELS = [2, 4, 8, 12, 16, 24, 32, 48, 64, 100, 128, 200, 256, 400, 512, 768];
const WHOLE = 2 ** 24;
const length = (n) => (n ? n.toString(2).length : 0);

function choose(n, k) {
  if (k > n) return 0n;
  let result = 1n;
  for (let i = 1; i <= k; i++) result = (result * BigInt(n - k + i)) / BigInt(i);
  return result;
}

export class Bits { // lowest first
  constructor(bytes = []) {
    this.bits = [...bytes].flatMap((byte) => [0, 1, 2, 3, 4, 5, 6, 7].map((i) => (byte >> i) & 1));
    this.at = 0;
  }

  put(value, width) {
    for (let i = 0n; i < width; i++) this.bits.push(Number((BigInt(value) >> i) & 1n));
  }

  get(width) {
    if (this.at + width > this.bits.length) refuse('evidence that is cut short');
    const taken = this.bits.slice(this.at, (this.at += width)).reverse().join('');
    return BigInt(`0b0${taken}`);
  }

  pad() { // to a byte, with zeros
    while (this.at % 8) if (this.get(1)) refuse('padding that is not 0');
  }

  bytes() {
    return Buffer.from(Array.from({ length: Math.ceil(this.bits.length / 8) }, (_, i) =>
      this.bits.slice(8 * i, 8 * i + 8).reduce((byte, bit, k) => byte | (bit << k), 0)));
  }
}

const rankBits = (n, k) => length(choose(n, k) - 1n);
function putRank(bits, members, n) {
  const rank = members.reduce((sum, c, i) => sum + choose(c, i + 1), 0n);
  bits.put(rank, rankBits(n, members.length));
}

function getRank(bits, k, n) {
  if (k > n) refuse(`${k} members out of ${n}`);
  let rank = bits.get(rankBits(n, k));
  if (rank >= choose(n, k)) refuse('no set of that rank');
  const members = [];
  for (let [i, c] = [k, n - 1]; i > 0; i--) {
    while (choose(c, i) > rank) c -= 1;
    rank -= choose(c, i);
    members.unshift(c);
  }
  return members;
}

const cut = (k, n) => Math.max(0, length(Math.floor(n / (4 * k))) - 1);
export function putSet(bits, members, n) {
  if (!members.length) return;
  const r = cut(members.length, n);
  if (r === 0) return putRank(bits, members, n);
  putRank(bits, members.map((c, i) => (c >> r) + i), ((n - 1) >> r) + members.length);
  members.forEach((c) => bits.put(c % 2 ** r, r));
}

function getSet(bits, k, n) {
  if (k > n) refuse(`${k} members out of ${n}`);
  if (k === 0) return [];
  const r = cut(k, n);
  if (r === 0) return getRank(bits, k, n);
  const parts = getRank(bits, k, ((n - 1) >> r) + k).map((part, i) => part - i);
  const members = parts.map((part) => part * 2 ** r + Number(bits.get(r)));
  if (members.some((c, i) => c >= n || c <= members[i - 1])) refuse('members that are no set');
  return members;
}

const without = (ids, x) => ids.filter((id) => id !== x).map((id) => (id > x ? id - 1 : id));
const within = (ids, x) => ids.map((id) => (id >= x ? id + 1 : id));

/** The evidence of qs for the token x, drawn from `weights` of the rising `ids`. */
export function putQs(vocab, x, ids, weights) {
  const [bits, whole] = [new Bits(), weights.reduce((a, b) => a + b)];
  bits.put(ids.length - 1, 7);
  if (ids.length > 1) {
    bits.put(LEVELS.indexOf(whole), 4);
    putSet(bits, without(ids, x), vocab - 1);
    let sum = -1;
    putRank(bits, weights.slice(0, -1).map((weight) => (sum += weight)), whole - 1);
  }
  return bits.bytes();
}

function getQs(bits, vocab, x) {
  const n = Number(bits.get(7)) + 1;
  if (n === 1) return { ids: [x], W: [1], M: 1 };
  const M = LEVELS[bits.get(4)];
  const ids = [...within(getSet(bits, n - 1, vocab - 1), x), x].sort((a, b) => a - b);
  const sums = [...getRank(bits, n - 1, M - 1), M - 1];
  return { ids, W: sums.map((sum, i) => sum - (sums[i - 1] ?? -1)), M };
}

function half(bits) {
  const [m, e, sign] = [Number(bits.get(10)), Number(bits.get(5)), bits.get(1)];
  const value = e ? (1 + m / 1024) * 2 ** (e - 15) : m * 2 ** -24;
  return sign || e === 31 || value > 1 ? refuse('a half that is no probability') : value * WHOLE;
}

/** What each of `tokens` was drawn from: its ids and weights W, rising, and the whole M. */
export function readUp(scheme, tokens, evidence, vocab) {
  const bits = new Bits(evidence);
  const laws = tokens.map((x) => {
    if (x >= vocab) refuse(`the id ${x} is not below ${vocab}`);
    if (scheme.startsWith('separate')) return { ids: [x], W: [Number(bits.get(24)) + 1], M: WHOLE };
    if (scheme === 'qs') {
      const told = getQs(bits, vocab, x);
      bits.pad();
      return told;
    }
    if (scheme !== 'residual') return null;
    const W = Array.from({ length: vocab }, () => half(bits));
    const M = W.reduce((a, b) => a + b);
    if (!W[x] || M < 0.95 * WHOLE || M > 1.05 * WHOLE) refuse('no law of that draft');
    return { ids: [...W.keys()], W, M };
  });
  if (bits.at < bits.bits.length) refuse('bytes left over');
  return laws;
}

function lattice(p, M) {
  const W = p.map((x) => Math.floor(x * M + 0.5));
  const miss = M - W.reduce((a, b) => a + b);
  const sign = Math.sign(miss);
  const excess = (i) => W[i] - p[i] * M;
  const order = [...W.keys()].filter((i) => miss > 0 || W[i] > 0)
    .sort((a, b) => sign * (excess(a) - excess(b)) || a - b);
  order.slice(0, Math.abs(miss)).forEach((i) => { W[i] += sign; });
  return W;
}

function pick(ids, weights, u) {
  const whole = weights.reduce((a, b) => a + b);
  let sum = 0;
  return ids.find((_, i) => (sum += weights[i]) >= u * whole) ?? ids.at(-1);
}

const halfEven = (x) => {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor % 2) : Math.round(x);
};

/** A verdict: {accepted, token (-1: the device draws it), down}. */
export function judge(rows, tokens, evidence, open, t) {
  const { scheme, seed, sample, vocab_size: vocab } = open;
  const laws = readUp(scheme, tokens, evidence, vocab);
  const coin = (j, domain) => uniform(seed, t + j, 0, sample, domain);
  const bounded = (open.top_k > 0 && open.top_k <= 64) || vocab <= 64;
  const onLattice = scheme === 'separate' || (scheme === 'separate-lossy' && bounded);
  for (let j = 0; ; j++) {
    let { ids, p } = law(rows[j], open);
    if (onLattice) p = lattice(p, WHOLE).map((w) => w / WHOLE);
    if (j === tokens.length) return { accepted: j, token: pick(ids, p, coin(j, 3)), down: '' };
    const [x, q] = [tokens[j], laws[j]];
    const W = new Map(q.ids.map((id, i) => [id, q.W[i]]));
    if (coin(j, 2) * W.get(x) <= (p[ids.indexOf(x)] ?? 0) * q.M) continue;
    if (scheme.startsWith('separate')) {
      const P = p.map((y) => (y > 0 ? Math.max(1, halfEven(y * WHOLE)) : 0));
      const entries = [...ids.keys()].filter((i) => ids[i] !== x && P[i] > 0)
        .sort((a, b) => p[b] - p[a] || ids[a] - ids[b]).slice(0, 64).sort((a, b) => a - b);
      const bits = new Bits();
      bits.put(entries.length, 7);
      putSet(bits, without(entries.map((i) => ids[i]), x), vocab - 1);
      entries.forEach((i) => bits.put(P[i] - 1, 24));
      return { accepted: j, token: -1, down: bits.bytes().toString('hex') };
    }
    const rest = p.map((y, i) => Math.max(0, y - (W.get(ids[i]) ?? 0) / q.M));
    const weights = rest.some((y) => y > 0) ? rest : p;
    return { accepted: j, token: pick(ids, weights, coin(j, 3)), down: '' };
  }
}

/** The entries {ids, weights} of a commit's evidence. */
export function readDown(down, x, vocab) {
  const bits = new Bits(down);
  const n = Number(bits.get(7));
  if (n < 1 || n > 64) refuse(`${n} entries`);
  const ids = within(getSet(bits, n, vocab - 1), x);
  const weights = ids.map(() => Number(bits.get(24)) + 1);
  if (weights.reduce((a, b) => a + b) > WHOLE + 64) refuse('they sum to more than 1');
  bits.pad();
  return bits.at < bits.bits.length ? refuse('bytes left over') : { ids, weights };
}

/** The correction that a device draws from `entries`, with its own law in W out of 2^24. */
export function correct({ ids, weights }, W, u) {
  const rest = weights.map((P, i) => Math.max(0, P - (W.get(ids[i]) ?? 0)));
  const [whole, ticket] = [rest.reduce((a, b) => a + b), []];
  ticket.push(Math.max(1, Math.ceil(u * whole)));
  let sum = 0;
  return ids.find((_, i) => (sum += rest[i]) >= ticket[0]);
}
