// The laws and the noise of PROTOCOL.md section 6: greedy, argmax, coupled (philox, sparse).
const high = (a, b) => Math.floor((a * (b >>> 16) + Math.floor((a * (b & 65535)) / 65536)) / 65536);

function philox([k, l], [a, b, c, d], rounds = 10) { // Philox 4x32: four words from two and four
  if (!rounds) return [a, b, c, d];
  const [x, y] = [0xd2511f53, 0xcd9e8d57];
  const words = [high(y, c) ^ b ^ k, Math.imul(y, c), high(x, a) ^ d ^ l, Math.imul(x, a)];
  const key = [(k + 0x9e3779b9) >>> 0, (l + 0xbb67ae85) >>> 0];
  return philox(key, words.map((word) => word >>> 0), rounds - 1);
}

/** A number in (0, 1] that belongs to seed (a BigInt), position, token id, sample and domain. */
export function uniform(seed, position, id, sample = 0, domain = 0) {
  const key = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  const [h, l] = philox(key, [id >>> 1, position, sample, domain]).slice(id % 2 ? 2 : 0);
  return ((h >>> 5) * 2 ** 26 + (l >>> 6) + 1) * 2 ** -53;
}

const G = 0x9e3779b97f4a7c15n;
const u64 = (x) => BigInt.asUintN(64, x);
export function mix(word) { // the finaliser of SplitMix64
  const x = u64((u64(word) ^ (u64(word) >> 30n)) * 0xbf58476d1ce4e5b9n);
  const y = u64((x ^ (x >> 27n)) * 0x94d049bb133111ebn);
  return y ^ (y >> 31n);
}

const POISSON = ((one) => { // floor(2^64 P(N <= j)) for a mean of 4, by e^4 in fixed point
  const terms = [one];
  for (let n = 1n; terms.at(-1); n++) terms.push((terms.at(-1) * 4n) / n);
  const sum = (list) => list.reduce((a, b) => a + b);
  return Array.from({ length: 31 }, (_, j) => (sum(terms.slice(0, j + 1)) << 64n) / sum(terms));
})(1n << 256n);

const exponential = (u) => Math.max(-Math.log(u), 2 ** -54);
function sparse(seed, position, sample, ids) {
  const k = mix(mix(seed + G) + (BigInt(position) + (BigInt(sample) << 32n)) * G);
  const early = new Map();
  for (let cell = 0n; cell <= BigInt(ids.at(-1)) >> 12n; cell++) {
    const word = mix(k + (cell + (1n << 40n)) * G);
    for (let s = 0n; s < POISSON.filter((entry) => entry <= word).length; s++) {
      const r = mix(k + (32n * cell + s + (1n << 41n)) * G);
      const id = Number(4096n * cell + (r % 4096n));
      early.set(id, Math.min(early.get(id) ?? Infinity, Number((r >> 12n) + 1n) * 2 ** -62));
    }
  }
  return ids.map((id) => early.get(id) ?? 2 ** -10 + exponential(
    Number((mix(k + BigInt(id + 1) * G) >> 11n) + 1n) * 2 ** -53));
}

/** The exponential noise of `ids`, which rise, by a noise profile. */
export const times = (noise, seed, position, sample, ids) => (noise === 'sparse'
  ? sparse(seed, position, sample, ids)
  : ids.map((id) => exponential(uniform(seed, position, id, sample))));

/** The place of the largest number, the first of equal ones. */
export const argmax = (list) => list.reduce((best, x, i) => (x > list[best] ? i : best), 0);

/** The kept ids, rising, and their probabilities. */
export function law(logits, { temperature, top_k: topK, top_p: topP }) {
  if (temperature === 0) return { ids: [argmax(logits)], p: [1] };
  const top = logits[argmax(logits)] / temperature;
  const weights = logits.map((x) => Math.exp(x / temperature - top));
  const sum = (ids) => [...ids].sort((a, b) => a - b).reduce((s, id) => s + weights[id], 0);
  let kept = [...weights.keys()].sort((a, b) => logits[b] - logits[a] || a - b);
  if (topK) kept = kept.slice(0, topK);
  if (topP < 1) {
    let [reached, enough] = [0, topP * sum(kept) * (1 - 1e-12)];
    kept = kept.slice(0, kept.findIndex((id) => (reached += weights[id]) >= enough) + 1);
  }
  const [ids, all] = [kept.sort((a, b) => a - b), sum(kept)];
  return { ids, p: ids.map((id) => weights[id] / all) };
}

/** The token at `position` (prompt included) by the scheme and the settings of an open. */
export function draw(logits, open, position) {
  const { scheme, seed, sample = 0, noise = 'philox' } = open;
  const sound = logits.every((x) => x < Infinity) && logits.some((x) => x > -Infinity);
  if (!sound) throw new RangeError('logits that are no distribution');
  if (scheme === 'greedy' || scheme === 'argmax') return argmax(logits);
  const { ids, p } = law(logits, open);
  return ids[argmax(times(noise, seed, position, sample, ids).map((time, i) => -time / p[i]))];
}
