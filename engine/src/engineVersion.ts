import { createRequire } from 'node:module';

/** Version of this package, written into checkpoints and artifacts; a test checks that it equals package.json. */
export const engineVersion = '0.1.0';

/** Read from tfjs's package.json: importing tfjs to get its version takes longer than the rest of the startup. */
export const { version: tfjsVersion } = createRequire(import.meta.url)(
  '@tensorflow/tfjs-core/package.json',
) as { version: string };
