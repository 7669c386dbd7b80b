import { createRequire } from 'node:module';

/** Version of this package, written into checkpoints and artifacts; a test holds it equal to package.json. */
export const engineVersion = '0.1.0';

/** Read from its description: loading tfjs for its version takes longer than everything else of a start. */
export const { version: tfjsVersion } = createRequire(import.meta.url)(
  '@tensorflow/tfjs-core/package.json',
) as { version: string };
