import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const program = fileURLToPath(new URL('../watchers.mjs', import.meta.url));

/**
 * Age of events when they reach the client, relative to the step's time in the journal, by bench/watchers.mjs: all events to one client,
 * and to twenty.
 */
export async function events() {
  const run = (watchers, rate) =>
    execFileSync(
      process.execPath,
      [program, '--watchers', String(watchers), '--rate', String(rate), '--seconds', '10', '--interval', '0'],
      { encoding: 'utf8' },
    ).trim();
  return `## From an event to its client\n\n\`\`\`text\n${run(1, 100)}\n${run(20, 100)}\n\`\`\``;
}
