import type { Config } from '../config.js';
import type { ExportCheckSettings } from './messages.js';

/** The settings for comparing exports with the weights of their run. */
export function exportCheckOf(
  config: Pick<
    Config,
    | 'exportCheckTokens'
    | 'exportDifferenceFloat32Max'
    | 'exportDifferenceFloat16Max'
    | 'exportDifferenceBfloat16Max'
    | 'exportDifferenceQ8Max'
  >,
): ExportCheckSettings {
  return {
    tokenCount: config.exportCheckTokens,
    ratioMax: {
      float32: config.exportDifferenceFloat32Max,
      float16: config.exportDifferenceFloat16Max,
      bfloat16: config.exportDifferenceBfloat16Max,
      q8_0: config.exportDifferenceQ8Max,
    },
  };
}
