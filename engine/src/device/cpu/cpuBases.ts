import type * as api from '../device.js';
import { scaleOf } from './fusedHalves.js';
import type { CpuBase } from './cpuMemory.js';
import { CpuUpdates } from './cpuUpdates.js';

/** Frozen weights of the device `native`: packed for products, merged into, and parked in files. */
export class CpuBases extends CpuUpdates implements api.FrozenBaseCalls {
  packBase(weight: api.DeviceBuffer, inFeatures: number, outFeatures: number): api.FrozenBase {
    const panels = this.addon.packBase(this.floats(weight), inFeatures, outFeatures, this.basePrecision);
    const base: CpuBase = { inFeatures, outFeatures, bytes: this.addon.packedBaseBytes(panels), panels };
    this.rest(weight);
    return base;
  }

  repackBase(base: api.FrozenBase, weight: api.DeviceBuffer): void {
    this.addon.repackBase(this.panels(base), this.floats(weight));
    this.rest(weight);
  }

  readonly packMergedReadsWeight = true;

  packMerged(base: api.FrozenBase, weight: api.DeviceBuffer, adapter: api.LayerAdapter): void {
    // The sum would be quantized again at every step, and small changes by the adapter lost.
    if (!['float32', 'bfloat16'].includes(this.basePrecision))
      throw new TypeError(`packMerged: a base in ${this.basePrecision} takes no adapter`);
    const { a, b, rank } = adapter;
    this.addon.packMerged(
      this.panels(base),
      this.floats(weight),
      this.floats(a),
      this.floats(b),
      scaleOf(this, adapter.scale),
      rank,
    );
    this.rest(weight);
  }

  releaseBase(base: api.FrozenBase): void {
    this.addon.releaseBase(this.panels(base));
    (base as CpuBase).panels = null;
  }

  park(weight: api.DeviceBuffer, folder: string | null): void {
    if (folder !== null) this.mapTo(weight, folder);
  }

  mergeAdapter(
    into: api.DeviceBuffer | null,
    weight: api.DeviceBuffer,
    adapter: api.LayerAdapter,
    { inFeatures, outFeatures }: { inFeatures: number; outFeatures: number },
  ): Promise<{ finite: boolean; deltaNorm: number }> {
    const { a, b, rank, scale } = adapter;
    // Into a separate buffer, so that the weight is unchanged if the sum is not finite.
    const merged = this.take(weight.length);
    const result = this.addon.mergeAdapter(
      merged,
      this.floats(weight),
      this.floats(a),
      this.floats(b),
      typeof scale === 'number' ? scale : Math.tanh(this.floats(scale)[0]!),
      inFeatures,
      rank,
      outFeatures,
    );
    if (into !== null && result.finite) this.floats(into).set(merged);
    this.give(merged);
    this.rest(weight);
    return Promise.resolve(result);
  }
}
