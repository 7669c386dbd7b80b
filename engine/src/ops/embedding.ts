import { gather, tensor1d, type Tensor2D } from '@tensorflow/tfjs-core';
import { fusedOp } from '../backend/fusedOp.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

/** Rows of table[vocabulary, dim] at ids[rows] -> [rows, dim]. Ids must be in 0 .. vocabulary - 1. */
export function embedding(table: Tensor2D, ids: Int32Array): Tensor2D {
  const native = currentNative();
  return native === null ? plainEmbedding(table, ids) : nativeEmbedding(native, table, ids);
}

export function plainEmbedding(table: Tensor2D, ids: Int32Array): Tensor2D {
  return gather(table, tensor1d(ids, 'int32'));
}

function nativeEmbedding(native: NativeBackend, table: Tensor2D, ids: Int32Array): Tensor2D {
  const [vocabulary, dim] = table.shape;
  return fusedOp<Tensor2D>(
    native,
    [table],
    () => {
      const y = native.output<Tensor2D>([ids.length, dim]);
      native.addon.embeddingForward(y.values, native.array(table), ids, ids.length, vocabulary, dim);
      return { value: y.tensor, saved: [] };
    },
    (dy) => {
      const dtable = native.output<Tensor2D>([vocabulary, dim]);
      native.addon.embeddingBackward(dtable.values, native.array(dy), ids, ids.length, vocabulary, dim);
      return [dtable.tensor];
    },
  );
}
