import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

/** The program, for Node. */
export const main = fileURLToPath(new URL('../../cli/dist/main.js', import.meta.url));

/** Runs the command line as a process, in a folder, with the address of a server. */
export function cli(folder: string, address: string) {
  return async (args: string[], options: { input?: string; interruptAt?: string } = {}) => {
    const child = spawn(process.execPath, [main, ...args], {
      cwd: folder,
      env: { PATH: process.env.PATH, RELORA_ADDRESS: address },
    });
    child.stdin.end(options.input ?? '');
    let output = '';
    let isInterrupted = false;
    child.stdout.on('data', (data: Buffer) => {
      output += data.toString();
      if (isInterrupted || options.interruptAt === undefined || !output.includes(options.interruptAt)) return;
      isInterrupted = child.kill('SIGINT');
    });
    const [errors, [code]] = await Promise.all([
      text(child.stderr),
      once(child, 'close') as Promise<[number]>,
    ]);
    const json = () =>
      output
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as Record<string, unknown>);
    return { code, output, errors, json };
  };
}
