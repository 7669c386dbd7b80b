import type { DeviceBuffer, FrozenBase, HostValues } from '../device.js';
import { HostObjects } from '../hostObjects.js';
import type { BasePrecision, NativeAddon, PackedBase, ProductPrecision } from './nativeAddon.js';

/** A base that the addon packed. */
export interface CpuBase extends FrozenBase {
  /** Null once released. */
  panels: PackedBase | null;
}

/** The addon and the memory of its kernels, shared by all parts of the device `native`. */
export class CpuMemory extends HostObjects {
  constructor(
    readonly addon: NativeAddon,
    readonly precision: ProductPrecision,
    readonly basePrecision: BasePrecision,
  ) {
    super();
  }

  /** State for the backward pass is kept in bfloat16 unless all products are exact float32. */
  get isCompact(): boolean {
    return this.precision !== 'float32' || this.basePrecision !== 'float32';
  }

  panels(base: FrozenBase): PackedBase {
    const { panels } = base as CpuBase;
    if (panels === null) throw new Error('The frozen base was given back already');
    return panels;
  }

  override memory(): { count: number; bytes: number } {
    const own = super.memory();
    const native = this.addon.allocations();
    return { count: own.count + native.count, bytes: own.bytes + native.bytes };
  }

  override discard(values: HostValues): void {
    // Only whole buffers: a view may share its buffer with values that are still in use.
    if (values.byteLength === values.buffer.byteLength) this.addon.freeBuffer(values.buffer as ArrayBuffer);
  }

  override rest(buffer: DeviceBuffer): void {
    if (this.isMapped(buffer)) this.addon.releasePages(this.floats(buffer));
  }

  /**
   * Moves a weight to memory that the system may keep on disk only. If the folder has no room for it, it stays where it is, since this only
   * saves memory.
   */
  mapTo(buffer: DeviceBuffer, folder: string): void {
    if (!this.isMapped(buffer)) {
      let mapped: Float32Array;
      try {
        mapped = this.addon.mapFloats(folder, buffer.length);
      } catch {
        return;
      }
      this.moveInto(buffer, mapped);
    }
    this.rest(buffer);
  }
}
