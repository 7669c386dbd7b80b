import { add, engine, type Tensor } from '@tensorflow/tfjs-core';
import { currentNative } from '../backend/nativeBackend.js';

/** accumulator += x, of one shape. Not for use inside a `tidy`. */
export function addInPlace(accumulator: Tensor, x: Tensor): void {
  const native = currentNative();
  if (native !== null && native.isSole(accumulator)) {
    native.addon.addInPlace(native.array(accumulator), native.array(x));
    return;
  }
  // What Variable.assign does, for any tensor: it lets go of its data and takes over the sum's.
  const sum = add(accumulator, x);
  engine().disposeTensor(accumulator);
  accumulator.dataId = sum.dataId;
  engine().incRef(accumulator, null as never);
  sum.dispose();
}
