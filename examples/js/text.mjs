// What both ends share: a text and its branch (PROTOCOL.md 4.2), toy models, options.
import { createHash } from 'node:crypto';
import { mix } from './sampling.mjs';

/** The committed text of a stream, and the drafts of the present branch ahead of it. */
export class Text {
  constructor(prompt) {
    Object.assign(this, { prompt, text: [], epoch: 0, ahead: [], asked: 0 });
  }

  get sequence() {
    return [...this.prompt, ...this.text];
  }

  get end() { // of the branch
    return this.text.length + this.ahead.length;
  }

  branch(epoch) {
    Object.assign(this, { epoch: epoch % 256, ahead: [], asked: 0 });
  }

  grow(tokens) { // a token that contradicts the branch ends it
    for (const token of tokens) {
      this.text.push(token);
      if (this.ahead.length && this.ahead.shift() !== token) this.branch(this.epoch + 1);
    }
  }

  hash() { // 4.6
    const ids = Buffer.from(Uint32Array.from(this.sequence).buffer);
    return createHash('sha256').update(ids).digest().subarray(0, 8);
  }
}

const state = (ids) => mix((BigInt(ids.at(-2) ?? 0) << 32n) + BigInt(ids.at(-1)));
const byte = (word, id) => Number(mix(word + BigInt(id + 1) * 0x9e3779b97f4a7c15n) >> 56n);

/** The target's logits after `ids`: 32nds, below 8, by SplitMix64 of the last two ids. */
export const target = (ids, vocab) =>
  Array.from({ length: vocab }, (_, id) => byte(state(ids), id) / 32);

/** The draft's: the target's and up to a half more. */
export const draft = (ids, vocab) =>
  target(ids, vocab).map((x, id) => x + byte(state(ids) + 1n, id) / 512);

/** `defaults` with what `--name value` says otherwise; a list takes several. */
export function options(defaults, args) {
  const told = structuredClone(defaults);
  for (let i = 0; i < args.length; i += 2) {
    const name = args[i].replace(/^--/, '').replaceAll('-', '_');
    if (!(name in defaults) || i + 1 === args.length) throw new Error(`what is ${args[i]}?`);
    if (Array.isArray(told[name])) told[name].push(args[i + 1]);
    else told[name] = typeof told[name] === 'number' ? Number(args[i + 1]) : args[i + 1];
  }
  return told;
}
export const numbers = (list) => list.split(',').filter(Boolean).map(Number);
