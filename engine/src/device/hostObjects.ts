import type * as api from './device.js';
import { HostCache } from './hostCache.js';
import { HostDocuments } from './hostDocuments.js';
import { HostMemory } from './hostMemory.js';
import { HostResult } from './hostResult.js';

/** Objects of devices that compute in JavaScript's memory, besides buffers: step results, key-value caches, documents. */
export class HostObjects extends HostMemory {
  repeat(_key: api.RepeatKey, inputs: api.StepInputs, work: (inputs: api.StepInputs) => void): void {
    work(inputs);
  }

  newCache(
    { kvHeads, headDim }: Pick<api.AttentionShape, 'kvHeads' | 'headDim'>,
    blockCount: number,
    positionsMax: number,
  ): api.KeyValueCache {
    return new HostCache(blockCount, positionsMax, kvHeads * headDim);
  }

  advanceCache(cache: api.KeyValueCache, idCount: number): void {
    (cache as HostCache).length += idCount;
  }

  releaseCache(_cache: api.KeyValueCache): void {
    // Plain arrays: freed by the garbage collector.
  }

  newDocuments(begins: Int32Array, time: number): api.Documents {
    return new HostDocuments(begins, time);
  }

  releaseDocuments(_documents: api.Documents | null): void {
    // Plain arrays: freed by the garbage collector.
  }

  newResult(rowCount: number): api.ResultBuffer {
    return new HostResult(rowCount);
  }

  clearResult(result: api.ResultBuffer): void {
    (result as HostResult).clear();
  }

  readResult(result: api.ResultBuffer): Promise<api.StepResult> {
    return Promise.resolve((result as HostResult).read());
  }

  writeLosses(result: api.ResultBuffer, losses: Omit<api.StepResult, 'squaredNorm'>): void {
    (result as HostResult).write(losses);
  }

  releaseResult(_result: api.ResultBuffer): void {
    // Plain arrays: freed by the garbage collector.
  }
}
