import util from 'node:util';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { existsSync } from 'node:fs';

/** What we ask of TensorFlow's tfjs package; it is an optional peer and its types are not installed. */
interface TensorflowPackage {
  findBackend(name: string): { isUsingGpuDevice: boolean; binding: { TF_Version: string } } | null;
  version: Readonly<Record<string, string>>;
}

export interface Tensorflow {
  backendName: string;
  usesCard: boolean;
  /** By name, for the record of a job. */
  versions: Readonly<Record<string, string>>;
}

/** Made by `npm run setup:tensorflow`, from the sources as from the build. */
const ownPackage = fileURLToPath(
  new URL('../../../tensorflow/node_modules/@tensorflow/tfjs-node', import.meta.url),
);

/** Whether `npm run setup:tensorflow` was run to its end. */
export const isTensorflowSetUp = (): boolean => existsSync(`${ownPackage}/lib/napi-v8/tfjs_binding.node`);

/** Loads TensorFlow; throws with what to install. It registers the tfjs backend `tensorflow`. */
export async function loadTensorflow(): Promise<Tensorflow> {
  replaceRemoved();
  process.env['TF_CPP_MIN_LOG_LEVEL'] ??= '2'; // else it prints a page at every start
  const failures: string[] = [];
  for (const [name, path] of packages()) {
    try {
      const loaded = (await import(path)) as TensorflowPackage;
      const backend = loaded.findBackend('tensorflow')!;
      const { 'tfjs-node': binding = '' } = loaded.version;
      return {
        backendName: 'tensorflow',
        usesCard: backend.isUsingGpuDevice,
        versions: { tensorflow: backend.binding.TF_Version, 'tfjs-node': binding },
      };
    } catch (error) {
      failures.push(
        `${name}: ${error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error)}`,
      );
    }
  }
  throw new Error(
    'The device tensorflow needs @tensorflow/tfjs-node or @tensorflow/tfjs-node-gpu: in a checkout "npm run setup:tensorflow", ' +
      `else "npm install @tensorflow/tfjs-node" beside the server. ${failures.join('; ')}`,
  );
}

/** Best first. */
function packages(): [name: string, path: string][] {
  const byName = ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node'].map((name): [string, string] => [
    name,
    name,
  ]);
  if (!isTensorflowSetUp()) return byName;
  return [['engine/tensorflow', pathToFileURL(`${ownPackage}/dist/index.js`).href], ...byName];
}

/** Node.js 23 has dropped functions that tfjs-node 4.22 calls at every operation; it was mended in its sources and not released. */
function replaceRemoved(): void {
  const functions = util as unknown as Record<string, unknown>;
  functions['isNullOrUndefined'] ??= (value: unknown) => value === null || value === undefined;
  functions['isArray'] ??= Array.isArray;
}
