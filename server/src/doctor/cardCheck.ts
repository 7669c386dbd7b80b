import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Config } from '../config.js';
import type { DeviceDescription } from '../jobs/jobDevices.js';
import { lockCard } from '../trainer/cardLock.js';
import { fault, ok, warning, type Finding } from './finding.js';

/** `npm run check:gpu`: it comes with a checkout and its archive, not with the packages. */
const script = fileURLToPath(new URL('../../../bench/gpu/check.mjs', import.meta.url));

/** The check begins nothing after two minutes; a driver that hangs must not keep the doctor. */
const checkMsMax = 600_000;

const name = 'check of a card';

/** Tests each card with the check for cards, in a child, unless a server uses the card. */
export async function cardCheckFindings(
  devices: readonly Pick<DeviceDescription, 'backend' | 'model' | 'uuid'>[],
  { cudaFolder }: Pick<Config, 'cudaFolder'>,
  args: readonly string[],
): Promise<Finding[]> {
  const cards = devices.filter(({ backend }) => backend === 'cuda');
  if (cards.length === 0)
    return [warning(name, 'not run: there is no card that can be used', 'see what is said about the card')];
  if (!existsSync(script))
    return [
      warning(
        name,
        'not run: it is not part of the installed package',
        'run `relora-server doctor --check` in a checkout, see docs/gpu.md',
      ),
    ];
  const findings = [];
  for (const { model, uuid } of cards) {
    const unlock = await lockCard(uuid);
    if (unlock === null) {
      const cure = 'stop that server, or wait until no job runs on the card';
      findings.push(warning(name, `not run on ${model} ${uuid}: a server uses it`, cure));
      continue;
    }
    const libraries = cudaFolder === null ? [] : ['--libraries', cudaFolder];
    const { isPassed, lines } = await runCheck([...libraries, ...args], uuid);
    unlock();
    const said = `${model} ${uuid}: ${lines.join('; ')}`;
    const cure = 'see docs/gpu.md, and tell the developers what it says: results of this card may be wrong';
    findings.push(isPassed ? ok(name, said) : fault(name, said, cure));
  }
  return findings;
}

/** Runs the check on one card; people see its rows as they come. Returns the rows with faults and the counts. */
async function runCheck(
  args: readonly string[],
  uuid: string,
): Promise<{ isPassed: boolean; lines: string[] }> {
  const folder = await mkdtemp(join(tmpdir(), 'relora-doctor-'));
  const child = spawn(process.execPath, [script, '--report', join(folder, 'report.md'), ...args], {
    env: { ...process.env, CUDA_VISIBLE_DEVICES: uuid },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: checkMsMax,
    killSignal: 'SIGKILL',
  });
  let [rows, errors] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    rows += text;
    process.stderr.write(text);
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => (errors += text));
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  await rm(folder, { recursive: true, force: true });
  const lines = rows.split('\n').map((line) => line.trim().replace(/ {2,}/g, ' '));
  const faults = lines.filter((line) => / s FAULT /.test(line));
  const counts = lines.findLast((line) => /^\d+ (ok|FAULT|not run)\b/.test(line))?.split('; ')[0];
  if (counts !== undefined) return { isPassed: code === 0, lines: [...faults, counts] };
  const thrown = errors.split('\n').find((line) => /^\w*Error: /.test(line)) ?? errors.trim();
  const end = signal === null ? `it ended with code ${code}` : `it was ended by ${signal}`;
  return { isPassed: false, lines: [...faults, `${end}${thrown === '' ? '' : `: ${thrown}`}`] };
}
