import util from 'node:util';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { existsSync } from 'node:fs';

/** The parts of TensorFlow's tfjs package that we use; it is an optional peer dependency and its types are not installed. */
interface TensorflowPackage {
  findBackend(name: string): { isUsingGpuDevice: boolean; binding: { TF_Version: string } } | null;
  version: Readonly<Record<string, string>>;
}

export interface Tensorflow {
  backendName: string;
  usesCard: boolean;
  /** By name, for a job's record. */
  versions: Readonly<Record<string, string>>;
}

/** Installed by `npm run setup:tensorflow`; found from the source tree as from the build. */
const ownPackage = fileURLToPath(
  new URL('../../../tensorflow/node_modules/@tensorflow/tfjs-node', import.meta.url),
);

/** Whether `npm run setup:tensorflow` has completed. */
export const isTensorflowSetUp = (): boolean => existsSync(`${ownPackage}/lib/napi-v8/tfjs_binding.node`);

/** Loads TensorFlow, which registers the tfjs backend `tensorflow`; throws with instructions for installing it. */
export async function loadTensorflow(): Promise<Tensorflow> {
  replaceRemoved();
  process.env['TF_CPP_MIN_LOG_LEVEL'] ??= '2'; // otherwise it prints a page at every start
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
      `else "npm install @tensorflow/tfjs-node" where the server is installed. ${failures.join('; ')}`,
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

/** Node.js 23 removed functions that tfjs-node 4.22 calls at every operation; the fix in its sources was not released. */
function replaceRemoved(): void {
  const functions = util as unknown as Record<string, unknown>;
  functions['isNullOrUndefined'] ??= (value: unknown) => value === null || value === undefined;
  functions['isArray'] ??= Array.isArray;
}
