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
