import type { Device, DeviceBuffer } from '../device/device.js';
import type { Parameter } from './parameter.js';

/** Gradients of the parameters that a step trains, one after another in one allocation. */
export class GradientBuffer {
  readonly whole: DeviceBuffer;
  /** In the order of the parameters. */
  readonly parts: readonly DeviceBuffer[];
  private readonly byParameter: ReadonlyMap<Parameter, DeviceBuffer>;

  constructor(
    private readonly device: Device,
    readonly parameters: readonly Parameter[],
  ) {
    const { whole, parts } = device.allocTogether(parameters.map(({ buffer }) => buffer.length));
    this.whole = whole;
    this.parts = parts;
    this.byParameter = new Map(parameters.map((parameter, index) => [parameter, parts[index]!]));
  }

  /** Null if the parameter is not trained. */
  of(parameter: Parameter | null): DeviceBuffer | null {
    return parameter === null ? null : (this.byParameter.get(parameter) ?? null);
  }

  /** Whether it holds the gradients of exactly these parameters. */
  fits(parameters: readonly Parameter[]): boolean {
    return (
      parameters.length === this.parameters.length &&
      parameters.every((parameter) => this.byParameter.has(parameter))
    );
  }

  dispose(): void {
    this.device.release(this.whole);
  }
}
