import type { HalfState } from '../device.js';
import type { Masks } from './fusedHalves.js';

/** What a kernel keeps for the backward pass: the state of a half with its dropout masks, or of a norm. */
export type State = { kept: Float32Array; masks: Masks } | { rstd: Float32Array };

export const asState = (state: State): HalfState => state as unknown as HalfState;
export const stateOf = (state: HalfState): State => state as unknown as State;
