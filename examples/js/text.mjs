// What both ends share: a text and its branch (PROTOCOL.md 4.2), toy models, options.
import { createHash } from 'node:crypto';
import { parseArgs } from 'node:util';
import { mix } from './sampling.mjs';

/** The committed text of a stream, and the drafts of the present branch ahead of it. */
export class Text {
  constructor(prompt) { Object.assign(this, { prompt, text: [], epoch: 0, ahead: [], asked: 0 }); }
  get sequence() { return [...this.prompt, ...this.text]; }
  get end() { return this.text.length + this.ahead.length; } // of the branch
  get waits() { return this.ahead.length > 0 || this.asked > this.text.length; } // for a verdict
  branch(epoch) { Object.assign(this, { epoch: epoch % 256, ahead: [], asked: 0 }); }

  grow(tokens) { // a token that contradicts the branch ends it
    for (const token of tokens) {
      this.text.push(token);
      if (this.ahead.length && this.ahead.shift() !== token) this.branch(this.epoch + 1);
    }
  }

  hash(length = this.text.length) { // 4.6
    const ids = Uint32Array.from([...this.prompt, ...this.text.slice(0, length)]);
    return createHash('sha256').update(Buffer.from(ids.buffer)).digest().subarray(0, 8);
  }
}

const state = (ids) => mix((BigInt(ids.at(-2) ?? 0) << 32n) + BigInt(ids.at(-1)));
const byte = (word, id) => Number(mix(word + BigInt(id + 1) * 0x9e3779b97f4a7c15n) >> 56n);
const row = (vocab, logit) => Array.from({ length: vocab }, (_, id) => logit(id));

/** The target's logits after `ids`: 32nds, below 8, by SplitMix64 of the last two ids. */
export const target = (ids, vocab, word = state(ids)) => row(vocab, (id) => byte(word, id) / 32);

/** The draft's: the target's and up to a half more. */
export const draft = (ids, vocab, word = state(ids)) =>
  row(vocab, (id) => byte(word, id) / 32 + byte(word + 1n, id) / 512);

/** `defaults` with what `--name value` says otherwise; a list takes several. */
export function options(defaults, args) {
  const each = (f) => Object.fromEntries(Object.entries(defaults).map(([k, v]) => [k, f(k, v)]));
  const kinds = each((name, value) => ({ type: 'string', multiple: Array.isArray(value) }));
  const { values: told } = parseArgs({ args, options: kinds });
  return each((k, v) => (typeof v === 'number' ? Number(told[k] ?? v) : told[k] ?? v));
}
export const numbers = (list) => list.split(',').filter(Boolean).map(Number);
