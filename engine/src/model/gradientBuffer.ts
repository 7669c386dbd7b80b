import type { Device, DeviceBuffer } from '../device/device.js';
import type { Parameter } from './parameter.js';

/** A gradient in a buffer of many. */
export interface PlacedGradient {
  parameter: Parameter;
  part: DeviceBuffer;
  /** How many values of the buffer end with it. */
  end: number;
}

/** Gradients of the parameters that a step trains, one after another in one allocation. */
export class GradientBuffer {
  readonly whole: DeviceBuffer;
  /** In the order of the parameters. */
  readonly parts: readonly DeviceBuffer[];
  /** In the order of memory. */
  readonly placed: readonly PlacedGradient[];
  private readonly byParameter: ReadonlyMap<Parameter, DeviceBuffer>;

  /** `order`: of the parameters in memory. */
  constructor(
    private readonly device: Device,
    readonly parameters: readonly Parameter[],
    order = parameters,
  ) {
    const { whole, parts, ends } = device.allocTogether(order.map(({ buffer }) => buffer.length));
    this.whole = whole;
    this.placed = order.map((parameter, index) => ({ parameter, part: parts[index]!, end: ends[index]! }));
    this.byParameter = new Map(this.placed.map(({ parameter, part }) => [parameter, part]));
    this.parts = parameters.map((parameter) => this.byParameter.get(parameter)!);
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

  /** A buffer of its own for the same gradients. */
  alike(): GradientBuffer {
    return new GradientBuffer(
      this.device,
      this.parameters,
      this.placed.map(({ parameter }) => parameter),
    );
  }

  dispose(): void {
    this.device.release(this.whole);
  }
}
