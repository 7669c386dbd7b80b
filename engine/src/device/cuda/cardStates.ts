import type { ForwardMode, HalfState } from '../device.js';
import type { CardHalfState } from './half.js';
import type { NormInput } from './norm.js';
import type { Scope } from './scope.js';

/** What the backward pass of the last norm needs. */
export interface CardNormState {
  readonly scope: Scope;
  readonly x: NormInput;
  readonly rstd: number;
}

const asState = (state: CardHalfState | CardNormState): HalfState => state as unknown as HalfState;

/** The state of a call as its caller holds it; null, and given back, where the mode keeps none. */
export function keptState(
  state: CardHalfState | CardNormState,
  { keepsState }: Pick<ForwardMode, 'keepsState'>,
): HalfState | null {
  if (keepsState) return asState(state);
  state.scope.end();
  return null;
}

/** Of the half, or of the norm, that the caller says it is. */
export const stateOf = <T extends CardHalfState | CardNormState>(kept: HalfState | null): T | null =>
  kept as unknown as T | null;
