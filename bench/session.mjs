import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { presets } from '../engine/dist/plan/index.js';
import { Child } from './sides/child.mjs';

const engineChild = fileURLToPath(new URL('sides/engineChild.mjs', import.meta.url));
const pytorchChild = fileURLToPath(new URL('sides/pytorch.py', import.meta.url));

/**
 * Settings that restrict oneDNN, MKL and ATen, the libraries under PyTorch, to the instructions of one of our sets. `portable` has none:
 * PyTorch does not support so small a set.
 */
const pytorchLimits = {
  avx512bf16: {
    ONEDNN_MAX_CPU_ISA: 'AVX512_CORE_BF16',
    MKL_ENABLE_INSTRUCTIONS: 'AVX512_E3',
    ATEN_CPU_CAPABILITY: 'avx512',
  },
  avx512: {
    ONEDNN_MAX_CPU_ISA: 'AVX512_CORE_VNNI',
    MKL_ENABLE_INSTRUCTIONS: 'AVX512_E1',
    ATEN_CPU_CAPABILITY: 'avx512',
  },
  avx2: { ONEDNN_MAX_CPU_ISA: 'AVX2', MKL_ENABLE_INSTRUCTIONS: 'AVX2', ATEN_CPU_CAPABILITY: 'avx2' },
};

/** Shared by all sections: the settings, and how both sides are started under them. */
export class Session {
  /** Results by section, for the targets and the plot. */
  results = {};
  /** Modes tried so far, see modes.mjs. */
  tried = new Map();

  /**
   * @param pytorch the result of findPytorch
   * @param say prints a line about progress
   */
  constructor({ addon, instructionSet, threads, pytorch, say }) {
    Object.assign(this, { addon, instructionSet, threads, pytorch, say });
    addon.configure({ instructionSet, threads });
    const isBest = instructionSet === addon.describe().instructionSets[0];
    this.pytorchLimit = isBest ? {} : (pytorchLimits[instructionSet] ?? {});
  }

  /** A child that trains what `side` describes; see sides.mjs for its fields. The caller closes it. */
  async open(side) {
    const { preset, layerCount, vocabSize, rank, batch, time, microBatch, graph, recompute, headPrecision } =
      side;
    const config = configOf({ preset, layerCount, vocabSize });
    return await this.#opened(side, {
      open: {
        ...{ config, rank, alpha: rank, batch, time, microBatch, graph, recompute, headPrecision },
        ...side.start,
      },
    });
  }

  /** A child whose step is the loss over a vocabulary and its gradients. The caller closes it. */
  async openHead({ rows, dim, vocabulary, ...side }) {
    return await this.#opened(side, { openHead: { rows, dim, vocabulary } });
  }

  async #opened(side, request) {
    const { engine, precision, compile, isProfiled = false } = side;
    const { threads, instructionSet } = {
      threads: this.threads,
      instructionSet: this.instructionSet,
      ...side,
    };
    const [[name, settings]] = Object.entries(request);
    const isOurs = engine === 'relora';
    const child = isOurs
      ? await Child.start(process.execPath, [engineChild])
      : await Child.start(this.#python(), [pytorchChild], {
          ...this.pytorchLimit,
          RELORA_BENCH_THREADS: String(threads),
        });
    try {
      if (isProfiled) await child.ask({ profile: {} });
      const mode = isOurs ? { precision, instructionSet, threads } : { precision, compile };
      await child.ask({ [name]: { ...settings, ...mode } });
      return child;
    } catch (error) {
      await child.close();
      throw error;
    }
  }

  #python() {
    if (this.pytorch.command === null) throw new Error(this.pytorch.reason);
    return this.pytorch.command;
  }
}

/** { command, version } of a Python with torch; if there is none, `command` is null and `reason` says why. */
export async function findPytorch(command = process.env.RELORA_BENCH_PYTHON ?? 'python3') {
  try {
    const script = 'import torch; print(torch.__version__)';
    const { stdout } = await promisify(execFile)(command, ['-c', script]);
    return { command, version: stdout.trim() };
  } catch {
    const reason = `${command} has no torch: "pip install torch" for it, or RELORA_BENCH_PYTHON=another python`;
    return { command: null, version: null, reason };
  }
}

export function configOf({ preset, layerCount, vocabSize = 32_000 }) {
  const shape = presets[preset];
  return { ...shape, vocabSize, numHiddenLayers: layerCount ?? shape.numHiddenLayers };
}
