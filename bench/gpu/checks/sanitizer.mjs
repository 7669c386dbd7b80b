import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const name = 'sanitizer';
export const title = "NVIDIA's compute-sanitizer over calls of a device: memory and races";
export const seconds = 0;

const child = fileURLToPath(new URL('../watchedCalls.mjs', import.meta.url));

export async function* run(context) {
  const tool = context.isModel ? null : findTool();
  if (tool === null)
    return yield {
      what: title,
      outcome: 'not run',
      figures: context.isModel ? 'no card' : 'compute-sanitizer is not installed',
    };
  // Reads of uninitialized memory are checked only on the model: the library's products read the gaps between rows, without using them.
  for (const kind of ['memcheck', 'racecheck']) {
    const patience = Math.min(40, context.secondsLeft());
    if (patience < 5) return yield { what: kind, outcome: 'not run', figures: 'the time is over' };
    yield await watched(tool, kind, patience, context);
  }
}

function watched(tool, kind, patience, { ordinal, libraryFolder }) {
  const args = ['--tool', kind, '--error-exitcode', '9', process.execPath, child];
  return new Promise((resolve) => {
    execFile(
      tool,
      [...args, JSON.stringify({ isModel: false, ordinal, libraryFolder })],
      { timeout: patience * 1000, maxBuffer: 2 ** 26, encoding: 'utf8' },
      (error, stdout, stderr) => {
        const said = `${stdout}\n${stderr}`;
        const summary = /(ERROR|RACECHECK) SUMMARY: .*/.exec(said)?.[0] ?? '';
        if (error === null) return resolve({ what: kind, outcome: 'ok', figures: summary });
        if (error.killed)
          return resolve({ what: kind, outcome: 'not run', figures: `not done in ${patience.toFixed(0)} s` });
        // Virtual machines that expose a card without its debugger interface cannot run the sanitizer.
        const isUnable =
          /not supported|Failed to initialize|Unable to|Device not supported/i.test(said) && summary === '';
        const lines = said.split('\n').filter((line) => /=====|Error/.test(line));
        return resolve({
          what: kind,
          outcome: isUnable ? 'not run' : 'FAULT',
          figures: `${summary} ${lines.slice(0, 12).join(' ')}`.trim() || error.message,
        });
      },
    );
  });
}

function findTool() {
  try {
    return execFileSync('which', ['compute-sanitizer'], { encoding: 'utf8', stdio: 'pipe' }).trim();
  } catch {
    const toolkits = existsSync('/usr/local')
      ? readdirSync('/usr/local').filter((name) => /^cuda/.test(name))
      : [];
    const found = toolkits
      .map((name) => join('/usr/local', name, 'bin', 'compute-sanitizer'))
      .filter((path) => existsSync(path));
    return found[0] ?? null;
  }
}
