import type { Dropout, Layer } from '../device.js';
import { dropoutMask } from '../dropout.js';
import type { LinearPass } from './linear.js';
import type { Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { Scope } from './scope.js';

/** Version 1 is drawn sequentially on the host; version 2 is counter-based and computed on the card. */
export function maskOf(
  calls: MatrixCalls,
  x: Matrix,
  dropout: Dropout,
  layer: Layer,
  pass: LinearPass,
  kept: Scope,
): number {
  const length = x.rows * x.columns;
  const mask = kept.take(4 * length);
  const { share, place } = dropout;
  if (place.version === 1) {
    const drawn = new Float32Array(length);
    dropoutMask(drawn, dropout, layer, pass.time);
    calls.memory.card.upload(mask, drawn);
    return mask;
  }
  const sequenceLength = pass.time * x.columns;
  const threads = Math.ceil(sequenceLength / 4) * (length / sequenceLength);
  calls.launch(
    {
      file: 'elementwise',
      kernel: 'dropout_mask',
      grid: [Math.ceil(threads / 256)],
      parameters: {
        ...{ mask, place: calls.places.of(place), length, sequence_length: sequenceLength },
        ...{ layer: layer.index >>> 0, threshold: Math.ceil(share * 2 ** 32), kept: 1 / (1 - share) },
        ...{ key_low: place.seed >>> 0, key_high: Math.floor(place.seed / 2 ** 32) >>> 0 },
      },
    },
    'float',
  );
  return mask;
}
