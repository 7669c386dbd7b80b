import type * as api from '../device.js';
import type { CardMemory } from './cardMemory.js';
import type { CardResult } from './cardResult.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { MemberTables } from './memberTables.js';
import { Scope } from './scope.js';

/** APOLLO-Mini updates: all matrices of the same shape in one launch per kernel. */
export function apolloMini(
  calls: MatrixCalls,
  memory: CardMemory,
  tables: MemberTables,
  { shape: { rows, columns }, members }: api.ShadowGroup,
  options: api.AdamWOptions,
): void {
  if (members.length === 0) return;
  const length = rows * columns;
  const [less, more] = [Math.min(rows, columns), Math.max(rows, columns)];
  const floats = (buffer: api.DeviceBuffer, count: number, field: string) =>
    memory.floats(buffer, count, `apolloMini: ${field}`);
  // As struct ShadowMember of apollo.cu.
  const words = members.flatMap(({ parameter, gradient, projection, first, second, norm }) => [
    floats(parameter, length, 'parameter'),
    floats(gradient, length, 'gradient'),
    floats(projection, less, 'projection'),
    floats(first, more, 'first'),
    floats(second, more, 'second'),
    floats(norm, 1, 'norm'),
    ...tables.roundedWords(parameter, columns),
  ]);
  const table = tables.of(words);
  const { clip, learningRate, beta1, beta2 } = options;
  const ends = { result: (clip.result as CardResult).address, norm_max: clip.normMax };
  const count = members.length;
  const parts = Math.ceil(length / 8192);
  const scope = new Scope(memory);
  const shadow = scope.take(4 * count * more);
  const [partial, factors] = [scope.take(8 * count * parts), scope.take(4 * count)];
  const launch = (
    kernel: string,
    grid: readonly [number, number?],
    parameters: Readonly<Record<string, number>>,
  ) => calls.launch({ file: 'apollo', kernel, grid, parameters: { members: table, ...parameters } });
  launch('cast_shadow', [Math.ceil(more / (rows > columns ? 8 : 256)), count], {
    ...{ ...ends, shadow, rows, columns },
  });
  launch('gradient_squares', [parts, count], { partial, length });
  launch('apollo_factor', [count], {
    ...{ ...ends, shadow, partial, factors, length: more, parts, epsilon: options.epsilon },
    ...{ beta1, rest1: 1 - beta1, beta2, rest2: 1 - beta2 },
    ...{ inverse1: 1 / options.correction1, inverse2: 1 / options.correction2 },
  });
  launch('apollo_step', [Math.ceil(length / 256), count], {
    ...{ ...ends, factors, length, columns, learning_rate: learningRate },
    kept: 1 - learningRate * options.weightDecay,
  });
  scope.end();
  for (const { parameter } of members) tables.updated(parameter, columns);
}
