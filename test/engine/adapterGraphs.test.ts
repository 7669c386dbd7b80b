import { describe, expect, it } from 'vitest';
import { openDevice } from '@relora/engine';
import { chooseGraphs, separateGraphs, type GraphMachine } from '../../engine/dist/plan/adapterGraphs.js';
import { targetModules, type AdapterSettings, type RunSpec } from '../../engine/dist/plan/runSpec.js';
import { tinySpec } from './tinyRun.js';

const float32: GraphMachine = { instructionSet: 'avx512', precision: 'float32' };
const bfloat16: GraphMachine = { instructionSet: 'avx512bf16', precision: 'bfloat16' };

/** llama-130m with this number of tokens per step, in micro-batches of eight sequences. */
function specOf(rank: number, tokens: number, changes: Partial<AdapterSettings> = {}): RunSpec {
  const sequenceLength = 256;
  const sequenceCount = tokens / sequenceLength;
  return tinySpec({
    model: { hiddenSize: 768, intermediateSize: 2048, numAttentionHeads: 12, numKeyValueHeads: 12 },
    adapter: { rank, ...changes },
    batch: { sequenceLength, sequenceCount, microBatchSequenceCount: Math.min(8, sequenceCount) },
  });
}

const all = (graph: string) => Object.fromEntries(targetModules.map((module) => [module, graph]));

describe('the graph of an adapted layer, chosen by its cost', () => {
  it.each([float32, bfloat16])(
    'depends on the rank: merged, and the dense gradient above it, with %o',
    (machine) => {
      expect(chooseGraphs(specOf(32, 4096), machine)).toEqual(all('merged'));
      expect(chooseGraphs(specOf(128, 4096), machine)).toEqual(all('merged'));
      expect(chooseGraphs(specOf(512, 4096), machine)).toEqual(all('weightGradient'));
      // Each graph is best from some rank on.
      const order = ['separate', 'merged', 'weightGradient'];
      const choices = Array.from({ length: 768 }, (_, i) => chooseGraphs(specOf(i + 1, 4096), machine));
      for (const module of targetModules) {
        const places = choices.map((graphs) => order.indexOf(graphs[module]));
        expect(places).toEqual(places.toSorted((a, b) => a - b));
        expect(places).toContain(1);
        expect(places.at(-1)).toBe(2);
      }
    },
  );

  it.each([float32, bfloat16])(
    'is separate where few tokens a step would pay for a merge, with %o',
    (machine) => {
      for (const rank of [1, 8, 128, 768])
        expect(chooseGraphs(specOf(rank, 256), machine)).toEqual(separateGraphs);
      const tokens = [256, 512, 1024, 2048, 4096, 8192, 16_384];
      const choices = tokens.map((count) => chooseGraphs(specOf(64, count), machine).q_proj);
      expect(choices[0]).toBe('separate');
      expect(choices.at(-1)).toBe('merged');
      const first = choices.indexOf('merged');
      expect(choices.slice(first)).toEqual(choices.slice(first).map(() => 'merged'));
    },
  );

  it('is separate for longer where products are fast: a merge is made in float32', () => {
    expect(chooseGraphs(specOf(4, 4096), float32)).toEqual(all('merged'));
    expect(chooseGraphs(specOf(4, 4096), bfloat16)).toEqual(separateGraphs);
    expect(chooseGraphs(specOf(128, 4096), { ...bfloat16, instructionSet: 'amx' })).toEqual(separateGraphs);
  });

  it('is that of each kind of layer: wide ones have other costs', () => {
    const { q_proj, down_proj } = chooseGraphs(specOf(300, 4096), float32);
    expect([q_proj, down_proj]).toEqual(['weightGradient', 'merged']);
    const graphs = chooseGraphs(specOf(128, 4096, { targetModules: ['q_proj', 'up_proj'] }), float32);
    expect(graphs).toEqual({ ...separateGraphs, q_proj: 'merged', up_proj: 'merged' });
  });

  it('is the one that a job asks for', () => {
    for (const graph of ['separate', 'merged', 'weightGradient'] as const)
      expect(chooseGraphs(specOf(8, 256, { graph }), float32)).toEqual(all(graph));
  });
});

describe('only separate', () => {
  const wanted: Partial<AdapterSettings>[] = [{}, { graph: 'merged' }, { graph: 'weightGradient' }];

  it.each(wanted)(
    'are layers with dropout or a trainable scale, or over a quantized base, with %o',
    (settings) => {
      const spec = specOf(128, 4096, settings);
      expect(chooseGraphs(spec, bfloat16)).not.toEqual(separateGraphs);
      for (const changed of [
        specOf(128, 4096, { ...settings, dropout: 0.1 }),
        specOf(128, 4096, { ...settings, trainableScale: true }),
        { ...spec, precision: 'int8Base' } as const,
        { ...spec, precision: 'nf4Base' } as const,
        { ...spec, kind: 'fullRank', adapter: null } as const,
      ])
        expect(chooseGraphs(changed, bfloat16)).toEqual(separateGraphs);
    },
  );

  it('are layers on other backends', async () => {
    const { description } = await openDevice({ device: 'reference', precision: 'auto' });
    for (const settings of wanted)
      expect(chooseGraphs(specOf(128, 4096, settings), description)).toEqual(separateGraphs);
  });
});

it('the choice does not depend on the number of threads', async () => {
  const choices = [];
  for (const threads of [1, 2, 3, 8]) {
    const { description } = await openDevice({ device: 'native', precision: 'auto', threads });
    choices.push([8, 48, 128, 300, 512].map((rank) => chooseGraphs(specOf(rank, 4096), description)));
  }
  for (const choice of choices) expect(choice).toEqual(choices[0]);
});
