import { ConfigInvalid, type Config } from '../config.js';
import type { ServerFailure } from '../jobs/jobFailures.js';
import type { FoundDevices } from '../trainer/messages.js';
import { mayHaveCards } from '../trainer/slots.js';
import { TaskFailed } from '../trainer/taskRunner.js';
import { fault, ok, warning, type Finding } from './finding.js';

type CardSettings = Pick<Config, 'device' | 'cudaFolder' | 'gpuSlots'>;

/** Findings about the processor and cards. It is not a fault to have no card if the settings do not ask for one. */
export function findingsOfDevices(
  { native, devices, problems }: FoundDevices,
  settings: CardSettings,
): Finding[] {
  const findings = native === '' ? [] : [ok('native code', native)];
  for (const device of devices) {
    const { backend, model, instructionSet, threadCount, memoryBytes, uuid, computeCapability } = device;
    if (backend === 'native')
      findings.push(ok('processor', `${model}, ${instructionSet}, ${threadCount} threads`));
    if (backend === 'cuda')
      findings.push(
        ok('card', `${model} ${uuid}, compute capability ${computeCapability}, ${gib(memoryBytes)} GiB`),
      );
  }
  if (!devices.some(({ backend }) => backend === 'native'))
    findings.push(
      fault('processor', 'The native backend cannot be loaded', 'run `npm run build` in the checkout'),
    );
  const isForced = settings.device === 'cuda' || settings.cudaFolder !== null;
  for (const { backend, reason, message } of problems) {
    if (backend === 'tensorflow' && settings.device === 'tensorflow')
      findings.push(fault('tensorflow', message, 'install what it names, or leave RELORA_DEVICE unset'));
    if (backend !== 'cuda') continue;
    const [what, cure] = splitCure(message);
    if (isForced) findings.push(fault('card', `${what} (${reason})`, cure));
    else if (settings.gpuSlots > 0 && mayHaveCards(settings))
      findings.push(warning('card', `${what} (${reason})`, cure));
    else findings.push(ok('card', 'none: jobs run on the processor'));
  }
  return findings;
}

/** Why the search for devices failed. */
export function faultOfDevices(error: Error): Finding {
  if (error instanceof TaskFailed && error.reason === ('NATIVE_UNUSABLE' satisfies ServerFailure))
    return fault('native code', ...splitCure(error.message));
  const cure =
    error instanceof ConfigInvalid ? 'change the setting' : 'look at the messages above, and reinstall';
  return fault('devices', error.message, cure);
}

/** Messages about devices end with a colon and advice. */
function splitCure(message: string): [what: string, cure: string] {
  const at = message.lastIndexOf(': ');
  return at < 0
    ? [message, 'docs/gpu.md says what a card needs']
    : [message.slice(0, at), message.slice(at + 2)];
}

/** Where NVIDIA's libraries were found, and how several cards exchange sums. */
export function librariesFinding(
  { libraries, devices, nccl }: FoundDevices,
  settings: CardSettings,
): Finding {
  const { cudaFolder: folder } = settings;
  if (folder === null && !mayHaveCards(settings))
    return ok('libraries', 'those of NVIDIA are not needed without a card');
  const searched =
    folder === null ? 'else where the system looks' : `searched only in RELORA_CUDA_FOLDER (${folder})`;
  const files = libraries.length === 0 ? 'none was found by its path' : libraries.join(', ');
  if (folder !== null && !libraries.some((path) => path.includes('libnvrtc')))
    return fault(
      'libraries',
      `${files}, ${searched}`,
      'put libnvrtc.so.12 or .13 there, or leave RELORA_CUDA_FOLDER unset',
    );
  const exchange = nccl === null ? 'through the memory of the machine, without NCCL' : `by NCCL ${nccl}`;
  const areSeveral = devices.filter(({ backend }) => backend === 'cuda').length > 1;
  return ok(
    'libraries',
    `${files}, ${searched}${areSeveral ? `; several cards exchange sums ${exchange}` : ''}`,
  );
}

const gib = (bytes: number): string => (bytes / 2 ** 30).toFixed(1);
