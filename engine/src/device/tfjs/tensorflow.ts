/** What we ask of TensorFlow's tfjs package; it is an optional peer and its types are not installed. */
interface TensorflowPackage {
  findBackend(name: string): { isUsingGpuDevice?: boolean } | null;
}

/** Best first. Each registers the tfjs backend `tensorflow` when it is imported. */
const packages = ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node'] as const;

/** Loads TensorFlow; throws with what to install. */
export async function tensorflowDevice(): Promise<{ backendName: string; usesGpu: boolean }> {
  const failures: string[] = [];
  for (const name of packages) {
    try {
      const loaded = (await import(name as string)) as TensorflowPackage;
      const usesGpu = loaded.findBackend('tensorflow')?.isUsingGpuDevice === true;
      return { backendName: 'tensorflow', usesGpu };
    } catch (error) {
      failures.push(
        `${name}: ${error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error)}`,
      );
    }
  }
  throw new Error(
    `The device tensorflow needs one of ${packages.join(' or ')} ("npm install @tensorflow/tfjs-node" beside the server). ` +
      failures.join('; '),
  );
}
