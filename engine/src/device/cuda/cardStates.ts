import type { ForwardMode, HalfState } from '../device.js';
import type { CardHalfState } from './half.js';
import type { NormInput } from './norm.js';
import type { Scope } from './scope.js';

/** State for the backward pass of the last norm. */
export interface CardNormState {
  readonly scope: Scope;
  readonly x: NormInput;
  readonly rstd: number;
}

const asState = (state: CardHalfState | CardNormState): HalfState => state as unknown as HalfState;

/** The state that a call returns; null, with its memory released, if the mode keeps none. */
export function keptState(
  state: CardHalfState | CardNormState,
  { keepsState }: Pick<ForwardMode, 'keepsState'>,
): HalfState | null {
  if (keepsState) return asState(state);
  state.scope.end();
  return null;
}

/** Casts to the kind of state that the caller expects: of a half, or of the norm. */
export const stateOf = <T extends CardHalfState | CardNormState>(kept: HalfState | null): T | null =>
  kept as unknown as T | null;
