import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';

const folder = mkdtempSync(join(tmpdir(), 'relora-check-gpu-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Runs a script for users with a card on the model of a card. */
async function run(script: string, sections: string, environment: NodeJS.ProcessEnv = {}) {
  const path = fileURLToPath(new URL(`../../bench/gpu/${script}.mjs`, import.meta.url));
  const report = join(folder, `${script}-${sections.replaceAll(',', '-')}.md`);
  const args = [path, '--model', '--seconds', '900', '--only', sections, '--report', report];
  const code = await new Promise<number>((resolve) => {
    execFile(process.execPath, args, { env: { ...process.env, ...environment } }, (error) =>
      resolve(error === null ? 0 : Number(error.code)),
    );
  });
  const rows = readFileSync(report, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('| ') && !line.startsWith('| section') && !line.startsWith('| ---'))
    .map((line) => line.split(' | '));
  return { code, outcomes: rows.map((cells) => cells[2]), figures: rows.map((cells) => cells[3]!) };
}

describe('what somebody with a card runs', () => {
  it('checks the card, its products, its bits and its memory', async () => {
    const { code, outcomes } = await run('check', 'card,products,golden,memory,sanitizer');
    expect(outcomes.filter((outcome) => outcome === 'ok').length).toBeGreaterThan(9);
    expect(outcomes.filter((outcome) => outcome === 'not run')).toHaveLength(1); // no sanitizer without a card
    expect(outcomes).not.toContain('FAULT');
    expect(code).toBe(0);
  });

  it('reports each section that a lost card ends, and ends with a status', async () => {
    const { code, outcomes, figures } = await run('check', 'products,memory', {
      CUDA_MODEL_LOSE_AFTER_LAUNCHES: '3',
    });
    expect(code).toBe(1);
    expect(outcomes).toContain('FAULT');
    expect(figures.join()).toContain('CUDA_ERROR_ECC_UNCORRECTABLE');
  });

  it('measures steps, restarts and memory', async () => {
    const { code, outcomes, figures } = await run('bench', 'steps,replays,merges,memory,kernels');
    expect(code).toBe(0);
    expect(outcomes.filter((outcome) => outcome === 'measured')).toHaveLength(6);
    expect(figures[0]).toMatch(/^[\d.]+ k tokens\/s .* GB, loss 5\.\d+$/);
  });
});
