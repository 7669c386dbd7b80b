import type * as api from '../device.js';
import type { HostResult } from '../hostResult.js';
import { CpuMemory } from './cpuMemory.js';
import type { NativeMatrices, NativeMoments } from './nativeAddon.js';

/** Operations on gradients and weights between two passes, by the addon. */
export class CpuUpdates extends CpuMemory implements api.UpdateCalls {
  addInPlace(accumulator: api.DeviceBuffer, x: api.DeviceBuffer): void {
    this.addon.addInPlace(this.floats(accumulator), this.floats(x));
  }

  scaleInPlace(values: api.DeviceBuffer, factor: number): void {
    const floats = this.floats(values);
    for (let i = 0; i < floats.length; i++) floats[i]! *= factor;
  }

  sumSquares(result: api.ResultBuffer, buffers: readonly api.DeviceBuffer[]): void {
    const sum = this.addon.sumSquares(this.allFloats(buffers));
    (result as HostResult).addSquares(sum);
  }

  adamW({ members }: api.ParameterGroup, { clip, ...rest }: api.AdamWOptions): void {
    const gradientScale = scaleBy(clip);
    if (gradientScale === null) return;
    const options = { ...rest, gradientScale };
    const parameters = this.allFloats(members.map(({ parameter }) => parameter));
    const gradients = this.allFloats(members.map(({ gradient }) => gradient));
    const first = this.momentsOf(members.map((member) => member.first));
    const second = this.momentsOf(members.map((member) => member.second));
    if (first.values !== null && second.values !== null)
      this.addon.adamWInPlace(parameters, first.values, second.values, gradients, options);
    else if (first.values === null && second.values === null)
      this.addon.codedAdamWInPlace(
        parameters,
        first.codes as Int8Array[],
        first.scales,
        second.codes as Uint8Array[],
        second.scales,
        gradients,
        options,
      );
    else throw new TypeError('adamW: the moments of one group must all be float32 or all be coded');
  }

  muon({ shape, members }: api.MatrixGroup, { clip, ...rest }: api.MuonOptions): void {
    const gradientScale = scaleBy(clip);
    if (gradientScale === null) return;
    const { precision } = this;
    this.addon.muonInPlace(shape, this.matricesOf(members), { ...rest, gradientScale, precision });
  }

  loraMuon({ shape, members }: api.AdapterGroup, { clip, scale, ...rest }: api.LoraMuonOptions): void {
    const gradientScale = scaleBy(clip);
    if (gradientScale === null) return;
    const { precision } = this;
    const [a, b] = [members.map((member) => member.a), members.map((member) => member.b)];
    const options = { ...rest, gradientScale, precision };
    this.addon.loraMuonInPlace(shape, this.matricesOf(a), this.matricesOf(b), scale, options);
  }

  apolloMini({ shape, members }: api.ShadowGroup, { clip, ...rest }: api.AdamWOptions): void {
    const gradientScale = scaleBy(clip);
    if (gradientScale === null) return;
    const each = (of: (member: api.ShadowGroup['members'][number]) => api.DeviceBuffer) =>
      this.allFloats(members.map(of));
    const matrices = {
      parameters: each(({ parameter }) => parameter),
      gradients: each(({ gradient }) => gradient),
      projections: each(({ projection }) => projection),
      first: each(({ first }) => first),
      second: each(({ second }) => second),
      norms: each(({ norm }) => norm),
    };
    this.addon.apolloMiniInPlace(shape, matrices, { ...rest, gradientScale });
  }

  private matricesOf(members: readonly api.MatrixMember[]): NativeMatrices {
    const parameters = this.allFloats(members.map(({ parameter }) => parameter));
    const trained = members.flatMap(({ gradient, first }) =>
      gradient === null || first === null ? [] : [{ gradient, first }],
    );
    if (trained.length === 0) return { parameters, gradients: null, moments: null };
    if (trained.length < members.length) throw new TypeError('One group must train all of its matrices');
    const gradients = this.allFloats(trained.map(({ gradient }) => gradient));
    return { parameters, gradients, moments: this.momentsOf(trained.map(({ first }) => first)) };
  }

  private momentsOf(moments: readonly api.Moment[]): NativeMoments {
    const coded = moments.flatMap((moment) => ('codes' in moment ? [moment] : []));
    if (coded.length === 0)
      return { values: this.allFloats(moments as api.DeviceBuffer[]), codes: null, scales: null };
    if (coded.length < moments.length)
      throw new TypeError('The moments of one group must all be float32 or all be coded');
    return {
      values: null,
      codes: coded.map(({ codes }) => this.codes(codes)),
      scales: this.allFloats(coded.map(({ scales }) => scales)),
    };
  }

  private allFloats(buffers: readonly api.DeviceBuffer[]): Float32Array[] {
    return buffers.map((buffer) => this.floats(buffer));
  }
}

/** Factor for the gradients; null if the update must not change anything. */
function scaleBy({ result, normMax }: api.Clip): number | null {
  return (result as HostResult).clipFactor(normMax);
}
