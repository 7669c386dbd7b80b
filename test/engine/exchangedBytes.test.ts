import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { countParameters, cycleMeanBytes, defaultRunSpec, exchangedBytes, presets } from '@relora/engine';

const page = readFileSync(new URL('../../docs/scaling.md', import.meta.url), 'utf8');

describe('bytes that travel in a step', () => {
  it.each(Object.entries(presets))(
    '%s: those of what is trained, as docs/scaling.md has them',
    (name, shape) => {
      const model = { ...shape, vocabSize: 32_000 };
      const spec = defaultRunSpec({ kind: 'relora', model, adapter: { rank: 128 }, stepCount: 100 });
      const full = exchangedBytes(spec, 'warmStart');
      const adapted = exchangedBytes(spec, 'adapter');
      // All sizes are multiples of a cache line, so there is no padding.
      expect(full).toBe(4 * countParameters(spec).model);
      const { trainable } = countParameters(spec);
      expect(adapted).toBe(4 * trainable);
      expect(exchangedBytes({ ...spec, reductionType: 'bfloat16' }, 'adapter')).toBe(adapted / 2);
      const perCycle = exchangedBytes({ ...spec, synchronization: 'everyCycle' }, 'adapter');
      expect(perCycle).toBe(Math.ceil(cycleMeanBytes(spec) / spec.adapter!.cycleStepCount));
      const [megabytes, adaptedMegabytes] = [full, adapted].map((bytes) => (bytes / 1e6).toFixed(1));
      const row = page.split('\n').find((line) => line.startsWith(`| \`${name}\``));
      const cells = row?.split('|').map((cell) => cell.trim());
      expect(cells?.slice(2, 5)).toEqual([megabytes, adaptedMegabytes, (adapted / full).toFixed(2)]);
    },
  );
});

it('the shares of a step with many cards on docs/scaling.md are those of its formula, with the factors that were measured', () => {
  const [tokensPerStep, bytesPerSecond, factors] = [16_384, 25e9, [2, 1.1]];
  const rows = page.split('\n').filter((line) => /^\| `llama-\w+`.* %/.test(line));
  expect(rows).not.toEqual([]);
  for (const row of rows) {
    const [name, speed, weights, ...shares] = row
      .split('|')
      .map((cell) => cell.trim())
      .slice(1, -1);
    const model = { ...presets[name!.slice(1, -1) as keyof typeof presets], vocabSize: 32_000 };
    const spec = defaultRunSpec({ kind: 'relora', model, adapter: { rank: 128 }, stepCount: 100 });
    const bytes = exchangedBytes(spec, weights === 'all' ? 'warmStart' : 'adapter');
    const computed = tokensPerStep / Number(speed!.replace(',', ''));
    const shareOf = (cards: number): string =>
      factors
        .map((factor) => (factor * bytes * 2 * (cards - 1)) / cards / bytesPerSecond)
        .map((exchange) => Math.round((100 * computed) / (computed + exchange)))
        .join('–');
    expect(shares, row).toEqual([8, 64, 512].map((cards) => `${shareOf(cards)} %`));
  }
});
