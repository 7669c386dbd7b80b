import { findNativeAddon, NativeUnusable, thisPlatform, whyUnfit } from '@relora/engine/binaries';
import { ConfigInvalid, type Config } from '../config.js';

/** Throws ConfigInvalid, with what to do, if there is no native code for this system: every job would fail. Loads nothing. */
export function requireNative({ native }: Pick<Config, 'native'>): void {
  try {
    const problem = whyUnfit(findNativeAddon(native), thisPlatform());
    if (problem !== null) throw new ConfigInvalid([problem]);
  } catch (error) {
    if (!(error instanceof NativeUnusable)) throw error;
    throw new ConfigInvalid([error.message]);
  }
}
