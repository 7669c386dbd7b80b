import { DeviceFault, type DeviceFaultReason } from '../deviceFaults.js';

interface Known {
  reason: DeviceFaultReason;
  cure: string;
}

/** What an error code of a library means for an attempt, and what to do; null for other codes, which mean a fault of a card in use. */
function knownFault(code: string): Known | null {
  switch (code) {
    case 'LIBRARY_MISSING':
      return {
        reason: 'DEVICE_LIBRARY_MISSING',
        cure: 'install the NVIDIA driver, and the package nvidia-cuda-nvrtc or the CUDA toolkit for the compiler',
      };
    case 'LIBRARY_TOO_OLD':
      return { reason: 'DEVICE_LIBRARY_MISSING', cure: 'install a newer one: CUDA 12 or 13' };
    case 'CUDA_ERROR_NO_DEVICE':
      return {
        reason: 'DEVICE_NOT_FOUND',
        cure: 'check that nvidia-smi lists a card and that this process may use it',
      };
    case 'CUDA_ERROR_INVALID_DEVICE':
      return { reason: 'DEVICE_NOT_FOUND', cure: 'ask for a card that nvidia-smi lists' };
    case 'CUDA_ERROR_SYSTEM_DRIVER_MISMATCH':
      return {
        reason: 'DEVICE_DRIVER_TOO_OLD',
        cure: 'reboot the machine: the driver in memory is another than the one installed',
      };
    case 'CUBLAS_STATUS_3':
    case 'CUDA_ERROR_OUT_OF_MEMORY':
      return {
        reason: 'DEVICE_OUT_OF_MEMORY',
        cure: 'ask for smaller micro-batches, recomputation or moments in eight bits',
      };
    default:
      return null;
  }
}

/** Converts an error of the addon into the error that ends an attempt; errors of our own stay as they are. */
export function asDeviceFault(error: unknown): unknown {
  const code = (error as { code?: unknown }).code;
  if (!(error instanceof Error) || typeof code !== 'string') return error;
  const known = knownFault(code);
  if (known !== null)
    return new DeviceFault(known.reason, `${error.message} (${code}): ${known.cure}`, { cause: error });
  if (!code.startsWith('CUDA_ERROR_') && !code.startsWith('CUBLAS_STATUS_')) return error;
  return new DeviceFault(
    'DEVICE_LOST',
    `${error.message} (${code}): the card does not continue; the job resumes when it is back`,
    { cause: error },
  );
}

/** Wraps the functions of the addon or of a card, so that device errors are thrown as device faults. */
export function guarded<T extends object>(functions: T): T {
  const entries = Object.entries(functions).map(([name, call]: [string, unknown]) => [
    name,
    typeof call === 'function' ? guard(call as (...values: unknown[]) => unknown) : call,
  ]);
  return Object.fromEntries(entries) as T;
}

function guard(call: (...values: unknown[]) => unknown): (...values: unknown[]) => unknown {
  return (...values) => {
    try {
      const result = call(...values);
      if (!(result instanceof Promise)) return result;
      return result.catch((error: unknown) => {
        throw asDeviceFault(error);
      });
    } catch (error) {
      throw asDeviceFault(error);
    }
  };
}
