import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const program = fileURLToPath(new URL('../watchers.mjs', import.meta.url));

/** From the time that a step has in the journal to its client, by bench/watchers.mjs: every event to one, and to twenty. */
export async function events() {
  const run = (watchers, rate) =>
    execFileSync(
      process.execPath,
      [program, '--watchers', String(watchers), '--rate', String(rate), '--seconds', '10', '--interval', '0'],
      { encoding: 'utf8' },
    ).trim();
  return `## From an event to its client\n\n\`\`\`text\n${run(1, 100)}\n${run(20, 100)}\n\`\`\``;
}
