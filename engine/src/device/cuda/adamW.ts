import type * as api from '../device.js';
import type { CardMemory } from './cardMemory.js';
import type { CardResult } from './cardResult.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { MemberTables } from './memberTables.js';

/** AdamW updates: all parameters of the same shape in one launch, which finds them through a table on the card. */
export class AdamWCalls {
  constructor(
    private readonly calls: MatrixCalls,
    private readonly memory: CardMemory,
    private readonly tables: MemberTables,
  ) {}

  update({ shape, members }: api.ParameterGroup, options: api.AdamWOptions): void {
    if (members.length === 0) return;
    const { tables } = this;
    const length = members[0]!.parameter.length;
    const isCoded = 'codes' in members[0]!.first;
    // The rounded copy of a parameter has the same rows, with the same or a larger stride.
    const columns = shape.at(-1) ?? 1;
    const words = members.flatMap((member) => this.wordsOf(member, length, columns, isCoded));
    this.calls.launch({
      file: 'adamw',
      kernel: isCoded ? 'coded_adamw' : 'adamw',
      grid: [Math.ceil(length / 256), members.length],
      parameters: {
        ...{ members: tables.of(words), result: (options.clip.result as CardResult).address },
        ...{ length, columns, norm_max: options.clip.normMax },
        ...{
          learning_rate: options.learningRate,
          epsilon: options.epsilon,
          weight_decay: options.weightDecay,
        },
        ...{ beta1: options.beta1, rest1: 1 - options.beta1, beta2: options.beta2, rest2: 1 - options.beta2 },
        ...{ inverse1: 1 / options.correction1, inverse2: 1 / options.correction2 },
      },
    });
    for (const { parameter } of members) tables.updated(parameter, columns);
  }

  private wordsOf(
    { parameter, gradient, first, second }: api.ParameterGroup['members'][number],
    length: number,
    columns: number,
    isCoded: boolean,
  ): number[] {
    const { memory, tables } = this;
    // As struct Member of moments.h.
    return [
      memory.floats(parameter, length, 'adamW: parameter'),
      memory.floats(gradient, length, 'adamW: gradient'),
      ...tables.momentWords(first, length, 'int8', isCoded, 'adamW: first'),
      ...tables.momentWords(second, length, 'uint8', isCoded, 'adamW: second'),
      ...tables.roundedWords(parameter, columns),
    ];
  }
}
