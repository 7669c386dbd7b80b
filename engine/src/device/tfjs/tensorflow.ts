/** What we ask of TensorFlow's tfjs package; it is an optional peer and its types are not installed. */
interface TensorflowPackage {
  findBackend(name: string): { isUsingGpuDevice?: boolean } | null;
}

/** Best first. Each registers the tfjs backend `tensorflow` when it is imported. */
const packages = ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node'] as const;

/**
 * Loads TensorFlow. `gpuOnly`: throws unless the GPU package is there and sees a GPU. `any`: throws with what to install.
 */
export async function tensorflowDevice(
  wanted: 'gpuOnly' | 'any',
): Promise<{ backendName: string; usesGpu: boolean }> {
  const candidates = wanted === 'gpuOnly' ? packages.slice(0, 1) : packages;
  const failures: string[] = [];
  for (const name of candidates) {
    let loaded: TensorflowPackage;
    try {
      loaded = (await import(name as string)) as TensorflowPackage;
    } catch (error) {
      failures.push(
        `${name}: ${error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error)}`,
      );
      continue;
    }
    const usesGpu = loaded.findBackend('tensorflow')?.isUsingGpuDevice === true;
    if (usesGpu || wanted === 'any') return { backendName: 'tensorflow', usesGpu };
    failures.push(`${name}: it sees no GPU`);
  }
  throw new Error(
    `The device tensorflow needs one of ${packages.join(' or ')} ("npm install @tensorflow/tfjs-node" beside the server). ` +
      failures.join('; '),
  );
}
