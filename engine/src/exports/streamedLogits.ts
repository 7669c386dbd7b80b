import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Device, DeviceBuffer } from '../device/device.js';
import { trainedLayer } from '../model/adapterSet.js';
import { blockOf, normShape, passBlock, tableShape, type Pass } from '../model/decoder.js';
import type { TokenRows } from '../model/llama.js';
import { valuesOf, type Parameter } from '../model/parameter.js';
import { rotaryAngles } from '../model/rotaryTable.js';
import { embeddingName, finalNormName, givenWeight, headName, weightShapes } from '../model/weights.js';
import { headSize } from '../plan/parameters.js';
import type { LlamaConfig } from '../plan/runSpec.js';
import type { WeightReader } from './exportedWeights.js';

/** Rows of the head that are computed at a time. */
const headRows = 4096;

/** Logits of a part of the vocabulary: [rows, count], starting with token `first`. */
export interface LogitPart {
  first: number;
  count: number;
  values: Float32Array;
}

/**
 * Logits in float32 arithmetic, one part of the vocabulary after another, from weights that are read when needed: only those of one block,
 * or one table, are in memory at a time. The same values as `Llama.logits`.
 */
export async function* streamedLogits(
  device: Device,
  config: LlamaConfig,
  readWeight: WeightReader,
  { inputs, batch, time }: Omit<TokenRows, 'targets'>,
): AsyncGenerator<LogitPart> {
  const shapes = new Map(weightShapes(config).map((shape) => [shape.name, shape]));
  const read = async (name: string): Promise<Float32Array> => await readWeight(shapes.get(name)!);
  const { hiddenSize, numHiddenLayers, maxPositionEmbeddings, ropeTheta, ropeScaling } = config;
  const angles = rotaryAngles(
    device,
    Math.min(time, maxPositionEmbeddings),
    headSize(config),
    ropeTheta,
    ropeScaling,
  );
  const rows = inputs.length;
  const pass: Pass = {
    batch,
    time,
    precision: 'float32',
    backward: 'none',
    cache: null,
    documents: null,
    layer: trainedLayer,
  };
  let x = device.alloc(rows * hiddenSize, 'activation');
  try {
    device.upload(x, rowsOf(await read(embeddingName), inputs, hiddenSize));
    for (let block = 0; block < numHiddenLayers; block++) {
      const held = new Map<string, Parameter>();
      try {
        for (const shape of shapes.values())
          if (shape.name.startsWith(`model.layers.${block}.`))
            held.set(shape.name, givenWeight(device, shape, await readWeight(shape)));
        x = passBlock(
          { device, config, angles },
          blockOf(config, block, (name) => held.get(name)!),
          block,
          x,
          pass,
        );
        await nextTurn(); // lets the process answer its parent meanwhile
      } finally {
        for (const { buffer } of held.values()) device.release(buffer);
      }
    }
    x = normed(device, config, x, await read(finalNormName));
    yield* headLogits(device, config, x, await read(config.tieWordEmbeddings ? embeddingName : headName));
  } finally {
    device.release(x);
    device.release(angles.cos);
    device.release(angles.sin);
  }
}

/** The rows of a table named by ids, on the host: the device needs no others. */
function rowsOf(table: Float32Array, ids: Int32Array, hidden: number): Float32Array {
  const rows = new Float32Array(ids.length * hidden);
  for (const [row, id] of ids.entries())
    rows.set(table.subarray(id * hidden, (id + 1) * hidden), row * hidden);
  return rows;
}

/** Releases x. */
function normed(device: Device, config: LlamaConfig, x: DeviceBuffer, gain: Float32Array): DeviceBuffer {
  const [buffer, hidden] = [device.alloc(gain.length), device.alloc(x.length, 'activation')];
  device.upload(buffer, gain);
  const shape = normShape(config, x.length / config.hiddenSize);
  device.rmsNormForward(hidden, x, buffer, shape, { keepsState: false });
  device.release(buffer);
  device.release(x);
  return hidden;
}

/** For some rows of the head at a time. */
async function* headLogits(
  device: Device,
  config: LlamaConfig,
  x: DeviceBuffer,
  table: Float32Array,
): AsyncGenerator<LogitPart> {
  const { vocabSize, hiddenSize } = config;
  const rows = x.length / hiddenSize;
  for (let first = 0; first < vocabSize; first += headRows) {
    const count = Math.min(headRows, vocabSize - first);
    const [head, part] = [device.alloc(count * hiddenSize), device.alloc(rows * count)];
    device.upload(head, table.slice(first * hiddenSize, (first + count) * hiddenSize));
    const shape = { ...tableShape(config, rows), vocabulary: count };
    device.headLogits(part, { shape, x, head, firstRow: 0 }, 'float32');
    const values = await valuesOf(device, { buffer: part });
    device.release(head);
    device.release(part);
    yield { first, count, values };
  }
}
