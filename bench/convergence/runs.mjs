import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Dataset } from '../../engine/dist/data/index.js';
import { engineVersion, loadNativeAddon } from '../../engine/dist/index.js';
import { specHash } from '../../engine/dist/plan/specHash.js';
import { Child } from '../sides/child.mjs';
import { preparedText } from '../text.mjs';

const childScript = fileURLToPath(new URL('trainChild.mjs', import.meta.url));

/**
 * Trains specifications, several in parallel, each in a process with one thread: that is faster than one run after another on all threads,
 * and does not change bits. Finished runs are stored in `cacheFolder` under a hash of everything that determines them, so that an
 * interrupted comparison resumes.
 */
export class Runs {
  #idle = [];
  #children = new Set();
  #waiting = [];

  /** Runs on the demo's text as bytes, with the instruction set that a run would use here; the cache is shared with other benches. */
  static async open({ parallelCount, isMeasured = false, say = (line) => console.error(line) }) {
    const datasetFolder = await preparedText({ kind: 'bytes' });
    const dataset = await Dataset.open(datasetFolder, { verify: false });
    await dataset.close();
    const { cpuModel, instructionSets } = loadNativeAddon().describe();
    return new Runs({
      datasetFolder,
      datasetSha256: dataset.manifestSha256,
      trainTokenCount: dataset.train.tokenCount,
      cpuModel,
      instructionSet: process.env.RELORA_INSTRUCTION_SET ?? instructionSets[0],
      cacheFolder: fileURLToPath(new URL('../../.relora/convergence/', import.meta.url)),
      parallelCount,
      isMeasured,
      say,
    });
  }

  /**
   * @param environment { datasetFolder, datasetSha256, instructionSet, cacheFolder, parallelCount, isMeasured, say }; further fields are
   * for callers. With `isMeasured` each run has a process of its own, so that its memory is measured, and stored runs without curves of
   * training are repeated.
   */
  constructor(environment) {
    Object.assign(this, environment);
    mkdirSync(this.cacheFolder, { recursive: true });
  }

  /** Returns the result of trainOne for a specification; `label` is for progress messages. */
  async train(spec, label) {
    const path = this.#pathOf(spec);
    if (existsSync(path)) {
      const stored = JSON.parse(readFileSync(path, 'utf8'));
      if (!this.isMeasured || stored.failure !== null || stored.bins !== undefined) return stored;
    }
    const child = await this.#takeChild();
    try {
      const startedAt = Date.now();
      const result = await child.ask({ spec, datasetFolder: this.datasetFolder });
      writeFileSync(`${path}.tmp`, JSON.stringify(result));
      renameSync(`${path}.tmp`, path);
      const loss = result.failure ?? `held-out loss ${result.curve.at(-1).loss.toFixed(4)}`;
      this.say(`  ${label}: ${loss}, ${((Date.now() - startedAt) / 1000).toFixed(0)} s`);
      return result;
    } finally {
      this.#giveBack(this.isMeasured ? await this.#renewed(child) : child);
    }
  }

  async #renewed(child) {
    this.#children.delete(child);
    await child.close();
    const next = await Child.start(process.execPath, [childScript]);
    this.#children.add(next);
    return next;
  }

  async close() {
    await Promise.all([...this.#children].map((child) => child.close()));
  }

  #pathOf(spec) {
    const { datasetSha256, instructionSet } = this;
    const { evaluation } = spec; // not in the hash, which covers only what determines the weights
    const deciding = {
      specHash: specHash(spec),
      evaluation,
      engineVersion,
      datasetSha256,
      instructionSet,
    };
    const hash = createHash('sha256').update(JSON.stringify(deciding)).digest('hex');
    return join(this.cacheFolder, `${hash}.json`);
  }

  async #takeChild() {
    if (this.#idle.length > 0) return this.#idle.pop();
    if (this.#children.size >= this.parallelCount)
      return await new Promise((resolve) => this.#waiting.push(resolve));
    const reserved = Symbol('a child that starts');
    this.#children.add(reserved);
    try {
      const child = await Child.start(process.execPath, [childScript]);
      this.#children.add(child);
      return child;
    } finally {
      this.#children.delete(reserved);
    }
  }

  #giveBack(child) {
    const next = this.#waiting.shift();
    if (next === undefined) this.#idle.push(child);
    else next(child);
  }
}
