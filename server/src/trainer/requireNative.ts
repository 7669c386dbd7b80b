import { findNativeAddon, NativeUnusable, thisPlatform, whyUnfit } from '@relora/engine/binaries';
import { ConfigInvalid, type Config } from '../config.js';

/** Throws ConfigInvalid where there is no native code for this system, with what to do: every job would fail by it. Loads nothing. */
export function requireNative({ native }: Pick<Config, 'native'>): void {
  try {
    const problem = whyUnfit(findNativeAddon(native), thisPlatform());
    if (problem !== null) throw new ConfigInvalid([problem]);
  } catch (error) {
    if (!(error instanceof NativeUnusable)) throw error;
    throw new ConfigInvalid([error.message]);
  }
}
