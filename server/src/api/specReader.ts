import { settle, type Context, type Settings, type ValuesOf } from '@relora/engine/plan';
import type { FieldChecks } from './fieldChecks.js';
import { checking } from './settings.js';

/** Reads the messages of a specification with the tables of their settings, and records everything that is wrong. */
export class SpecReader {
  constructor(
    readonly checks: FieldChecks,
    readonly context: Context,
  ) {}

  /** The same reader with more of the context known. */
  with(known: Partial<Context>): SpecReader {
    return new SpecReader(this.checks, { ...this.context, ...known });
  }

  /** The values of the message at `field`. Values that other settings depend on go into `target`, a part of the draft. */
  read<T extends Settings>(
    field: string,
    table: T,
    given: Readonly<Partial<Record<keyof T, unknown>>> | undefined,
    target?: object,
  ): ValuesOf<T> {
    return settle(table, given, this.context, checking(this.checks, field), target);
  }
}
