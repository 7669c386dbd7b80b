import type { Tensor2D } from '@tensorflow/tfjs-core';
import type { PackedBase } from '../backend/nativeAddon.js';
import { currentNative, type NativeBackend } from '../backend/nativeBackend.js';

/**
 * A frozen weight [in, out]. On the native backend it is packed once, in the precision of products, and used in that form by
 * every step; the float32 weight stays the truth that merges are added to. Call `pack` again after each change of it, or
 * `packMerged` after each change of an adapter that is to be part of it.
 */
export class FrozenBase {
  private packed: { native: NativeBackend; panels: PackedBase } | null = null;

  constructor(readonly weight: Tensor2D) {
    this.pack();
  }

  pack(): void {
    const native = currentNative();
    if (native === null) return this.release();
    const weight = native.array(this.weight);
    if (this.packed?.native === native) return native.addon.repackBase(this.packed.panels, weight);
    this.release();
    const [inFeatures, outFeatures] = this.weight.shape;
    const panels = native.addon.packBase(weight, inFeatures, outFeatures, native.basePrecision);
    this.packed = { native, panels };
  }

  /** Packs w + scale a b instead; the weight itself does not change. */
  packMerged(native: NativeBackend, a: Tensor2D, b: Tensor2D, scale: number): void {
    native.addon.packMerged(
      this.panelsFor(native),
      native.array(this.weight),
      native.array(a),
      native.array(b),
      scale,
      b.shape[0],
    );
  }

  /** Throws when another backend was chosen since it was packed. */
  panelsFor(native: NativeBackend): PackedBase {
    if (this.packed?.native !== native)
      throw new Error('The frozen weight was not packed by the current backend');
    return this.packed.panels;
  }

  /** Memory of the packed panels. */
  get bytes(): number {
    return this.packed === null ? 0 : this.packed.native.addon.packedBaseBytes(this.packed.panels);
  }

  release(): void {
    this.packed?.native.addon.releaseBase(this.packed.panels);
    this.packed = null;
  }
}
