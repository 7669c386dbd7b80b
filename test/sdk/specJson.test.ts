import { JobKind, parseJobSpec, TargetModule, type ReloraError } from '@relora/sdk';
import { expect, test } from 'vitest';

test('reads names in camelCase and snake_case, enums by name and large integers as strings', () => {
  const spec = parseJobSpec({
    kind: 'JOB_KIND_LORA',
    model: { config: { hidden_size: 0, numHiddenLayers: 2 } },
    step_count: '12',
    seed: null,
    adapter: { target_modules: ['TARGET_MODULE_Q_PROJ'], allow_short_last_cycle: false, dropout: 0 },
    evaluation: { tokenCount: '65536' },
    sample: { prompt: '' },
  });
  expect(spec).toMatchObject({
    kind: JobKind.LORA,
    model: { config: { hiddenSize: 0, numHiddenLayers: 2 } },
    stepCount: 12,
    seed: undefined,
    adapter: { targetModules: [TargetModule.Q_PROJ], allowShortLastCycle: false, dropout: 0 },
    evaluation: { tokenCount: 65536 },
  });
});

test.each([
  [{ steps: 5 }, 'spec.steps', 'there is no such field'],
  [{ adapter: { rnk: 0 } }, 'spec.adapter.rnk', 'there is no such field'],
  [{ constructor: {} }, 'spec.constructor', 'there is no such field'],
  [{ step_count: 1.5 }, 'spec.step_count', '1.5 is no value of this field'],
  [{ step_count: 'many' }, 'spec.step_count', '"many" is no value of this field'],
  [{ seed: true }, 'spec.seed', 'true is no value of this field'],
  [{ kind: 'relora' }, 'spec.kind', '"relora" is no value of this field'],
  [{ kind: 99 }, 'spec.kind', '99 is no value of this field'],
  [{ adapter: 5 }, 'spec.adapter', '5 is no value of this field'],
  [{ adapter: [1] }, 'spec.adapter', '[1] is no value of this field'],
  [
    { adapter: { allowShortLastCycle: 'false' } },
    'spec.adapter.allowShortLastCycle',
    '"false" is no value of this field',
  ],
  [{ adapter: { targetModules: 'q' } }, 'spec.adapter.targetModules', '"q" is no value of this field'],
  [{ adapter: { targetModules: ['q'] } }, 'spec.adapter.targetModules.0', '"q" is no value of this field'],
  [{ dataset: 5 }, 'spec.dataset', '5 is no value of this field'],
  [{ sample: { prompt: {} } }, 'spec.sample.prompt', '{} is no value of this field'],
])('refuses %j', (json, field, description) => {
  let error: unknown;
  try {
    parseJobSpec(json);
  } catch (caught) {
    error = caught;
  }
  expect((error as ReloraError).fields).toEqual([{ field, description }]);
});

test('reports all that is wrong at once', () => {
  expect(() => parseJobSpec({ steps: 5, adapter: { rnk: 3 }, seed: 'x' })).toThrow(
    'spec.steps: there is no such field; spec.adapter.rnk: there is no such field; spec.seed: "x" is no value of this field',
  );
});
