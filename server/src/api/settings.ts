import type { ChoiceSetting, Settings, Settled, Take, ValueOf, ValuesOf } from '@relora/engine/plan';
import { enums, type EnumWords } from './enums.js';
import { listOf, type FieldChecks } from './fieldChecks.js';

type Enums = typeof enums;
/** A message of the contract with the values of a table; enums have the contract's values instead of our words. */
export type MessageOf<T extends Settings> = { [K in keyof T]: FieldOf<T[K]> };
type FieldOf<S> =
  S extends ChoiceSetting<infer Word, infer Name>
    ? Name extends keyof Enums
      ? Enums[Name]['to'][Word & keyof Enums[Name]['to']]
      : Word
    : ValueOf<S>;
/** A message with every field in it, set or not: forgetting one does not compile. */
export type Whole<Message> = { [K in keyof Required<Message>]: Message[K] };

/** `everyStepCount` as the contract writes it, every_step_count. */
export function fieldName(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Takes a valid value that a client gave for a setting of a message; otherwise records what is wrong with it. */
export function checking(checks: FieldChecks, message: string): Take {
  return (key, setting, given) => {
    const field = `${message}.${fieldName(key)}`;
    switch (setting.type) {
      case 'integer':
        return checks.integer(field, given as number | undefined, setting.default, setting.min, setting.max);
      case 'number':
        return checks.number(field, given as number | undefined, setting.default, setting);
      case 'flag':
        return given ?? setting.default;
      case 'text':
        return checks.text(field, (given as string | undefined) ?? setting.default, setting.lengthMax, {
          lines: true,
        });
      case 'choice':
        return takeChoice(checks, field, setting, given as string | undefined);
    }
  };
}

function takeChoice(
  checks: FieldChecks,
  field: string,
  setting: Settled & { type: 'choice' },
  given: string | undefined,
): string {
  if (setting.enumName !== null)
    return checks.word(field, given, enumOf(setting.enumName), setting.default, setting.words);
  const choices = Object.fromEntries(setting.words.map((word) => [word, word]));
  return checks.choice(field, given ?? setting.default, choices, listOf(setting.words)) ?? setting.default;
}

/** The settings of a table as a message of the contract. */
export function toMessage<T extends Settings>(table: T, values: ValuesOf<T>): MessageOf<T> {
  const entries = Object.entries(table).map(([key, setting]) => {
    const value = values[key as keyof T];
    if (setting.type !== 'choice' || setting.enumName === null) return [key, value];
    return [key, enumOf(setting.enumName).to[value as string]];
  });
  return Object.fromEntries(entries) as MessageOf<T>;
}

function enumOf(name: string): EnumWords {
  return enums[name as keyof Enums];
}
