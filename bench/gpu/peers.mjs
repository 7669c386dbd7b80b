import { execFile } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Child } from '../sides/child.mjs';

const script = fileURLToPath(new URL('peer.py', import.meta.url));

/** Seconds of patience with the first import of PyTorch, and with some steps. */
const startSecondsMax = 40;
const stepSecondsMax = 20;
/** So many times as much beside the model of a card, in tests on a busy machine. */
const modelPatience = 10;

/**
 * How PyTorch computes a step: `kind` as in peer.py; `pad`: intermediate widths are padded to a multiple of 64; `compile`: blocks one by
 * one, or the whole model at once; `autotune`: products are chosen by timing (max-autotune).
 * @typedef {{ kind: 'merged' | 'adapters' | 'full' | 'float8', pad?: boolean, compile?: 'blocks' | 'model' | 'nothing', autotune?: boolean }} Variant
 */

const families = { merged: 'merged', adapters: 'adapters', full: 'full rank', float8: 'full rank in float8' };

/** @param {Variant} variant */
export const familyOf = ({ kind }) => families[kind];

/** Seconds of patience with building and compiling a variant: a quarter of all, so that one form of PyTorch does not take the whole time. */
export const patienceOf = ({ seconds, secondsLeft }) => Math.min(seconds / 4, secondsLeft());

/** What a variant is called in the report. @param {Variant} variant */
export function nameOf({ kind, pad = true, compile = 'blocks', autotune = false }) {
  const parts = [
    families[kind],
    ...(pad ? [] : ['not padded']),
    ...(compile === 'model' ? ['compiled as a whole'] : []),
    ...(autotune ? ['max-autotune'] : []),
  ];
  return `PyTorch ${parts.join(', ')}`;
}

/** The padded and, where it is another, the unpadded form of a variant. */
export function widthsOf({ config }, variant) {
  const isPadded = config.intermediateSize % 64 !== 0;
  return [variant, ...(isPadded ? [{ ...variant, pad: false }] : [])];
}

/**
 * The process of PyTorch's side, for one variant after another. It begins when it is first needed, and again after one that was not done
 * in time, whose process is killed.
 */
export class PeerProcess {
  #command;
  #found;
  #child = null;

  /** Looks for a torch that finds a card. On the model of a card it may be without one, and then compiles nothing. */
  static async find({ python, isModel }) {
    const patience = isModel ? modelPatience : 1;
    try {
      const card = isModel ? '' : 'assert torch.cuda.is_available(), "no card";';
      const asked = `import torch; ${card} print(torch.__version__)`;
      const { stdout } = await promisify(execFile)(python, ['-c', asked], {
        timeout: 1e3 * startSecondsMax * patience,
      });
      return new PeerProcess(python, { version: stdout.trim(), compiles: !isModel, patience });
    } catch (error) {
      const said = error.killed
        ? `no answer in ${startSecondsMax * patience} s`
        : String(error.stderr || error.message);
      const reason = `no PyTorch with a card by ${python}: ${said.trim().split('\n').at(-1)}`;
      return new PeerProcess(python, { reason });
    }
  }

  constructor(command, { version = null, reason = null, compiles = true, patience = 1 }) {
    this.#command = command;
    this.#found = { version, reason, compiles, patience };
  }

  /** One more process of the same Python. */
  another() {
    return new PeerProcess(this.#command, this.#found);
  }

  get isThere() {
    return this.#found.reason === null;
  }

  /** A row for the report. */
  describe() {
    const { version, reason } = this.#found;
    return this.isThere
      ? { what: 'PyTorch', outcome: 'ok', figures: `${version} by ${this.#command}` }
      : { what: 'PyTorch', outcome: 'not measured', figures: reason };
  }

  /** Builds and compiles a variant; throws the reason if that is impossible, or not done within `seconds`. */
  async open(text, { config, rank, batch, time }, variant, seconds) {
    const { kind, pad = true, autotune = false } = variant;
    const compile = this.#found.compiles ? (variant.compile ?? 'blocks') : 'nothing';
    const begin = performance.now();
    const left = () => seconds - (performance.now() - begin) / 1e3 / this.#found.patience;
    await this.#ask({ open: { config, kind, rank, batch, time, pad, compile, autotune } }, left());
    const side = new PeerSide((request, limit) => this.#ask(request, limit), text, { batch, time });
    await side.steps(2, left()); // these compile
    return side;
  }

  async close() {
    const child = this.#child;
    this.#child = null;
    await child?.close();
  }

  async #ask(request, limit) {
    const seconds = limit * this.#found.patience;
    let timer;
    const late = new Promise((_, reject) => {
      const fail = () => reject(new Error(`not done in ${seconds.toFixed(0)} s`));
      timer = setTimeout(fail, Math.max(0, 1e3 * seconds));
    });
    try {
      this.#child ??= new Child(this.#command, [script]);
      return await Promise.race([this.#child.ask(request), late]);
    } catch (error) {
      // Whatever happened, the process gives back what it holds on the card.
      await this.close();
      throw error;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** PyTorch's side of a comparison, with the interface of Ours. */
class PeerSide {
  #ask;
  #text;
  #shape;
  #step = 0;
  peakBytes = 0;

  constructor(ask, text, shape) {
    this.#ask = ask;
    this.#text = text;
    this.#shape = shape;
  }

  async steps(count, seconds = stepSecondsMax) {
    const { batch, time } = this.#shape;
    const { inputs, targets } = this.#text.batchOf(this.#step++, batch, time);
    const ids = { inputs: Array.from(inputs), targets: Array.from(targets) };
    const answer = await this.#ask({ steps: { count, ...ids } }, seconds);
    this.peakBytes = answer.peakBytes;
    return answer;
  }

  async close() {
    await this.#ask({ close: {} }, stepSecondsMax);
  }
}
