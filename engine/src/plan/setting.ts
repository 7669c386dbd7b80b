/**
 * Settings of a job, each described once (jobSettings.ts): its allowed values, its default, and what an older specification without it
 * means. The types of a RunSpec, the checks of a request and the fields of the contract are derived from these.
 */
export type Setting = IntegerSetting | NumberSetting | FlagSetting | ChoiceSetting | TextSetting;
export type Settings = Readonly<Record<string, Setting>>;

/** A value, or a function that computes it. */
export type Rule<T> = T | ((context: Context) => T);

interface Common<T> {
  default: Rule<T>;
  /** For a setting added after the first release: the value that a specification stored without it stands for. */
  before?: T;
  /** Checkpoints depend on it: a run that starts from another run's checkpoint must have the same value. */
  isKept?: boolean;
}

export interface IntegerSetting extends Common<number> {
  type: 'integer';
  min: Rule<number>;
  max: Rule<number>;
}

export interface NumberSetting extends Common<number> {
  type: 'number';
  min: number;
  max: number;
  /** The minimum itself is excluded. */
  above?: boolean;
  /** The maximum itself is excluded. */
  below?: boolean;
}

export interface FlagSetting extends Common<boolean> {
  type: 'flag';
}

export interface ChoiceSetting<
  Word extends string = string,
  Name extends string | null = string | null,
> extends Common<Word> {
  type: 'choice';
  /** The contract's enum, whose values are these words in capitals; null if the contract has the words as strings. */
  enumName: Name;
  words: readonly Word[];
}

export interface TextSetting extends Common<string> {
  type: 'text';
  lengthMax: number;
}

export type ValueOf<S> =
  S extends ChoiceSetting<infer Word>
    ? Word
    : S extends { type: 'integer' | 'number' }
      ? number
      : S extends { type: 'flag' }
        ? boolean
        : string;
export type ValuesOf<T extends Settings> = { -readonly [K in keyof T]: ValueOf<T[K]> };

/** Input of rules: settings already settled, in the order of the tables, and values that clients cannot set. */
export interface Context {
  spec: Draft;
  stepsMax: number;
  sequenceLengthMax: number;
  /** The largest rank that fits all adapted layers, within the server's limit. */
  rankMax: number;
  vocabularySizeMax: number;
  replicasMax: number;
  /** Vocabulary size of the tokenizer; null while the data set is unknown. */
  vocabularySize: number | null;
  /** Tokens in the held-out part. */
  heldOutTokenCount: number;
  /** The recipe's alpha divided by the rank; null: the default of alpha. */
  alphaOverRank: number | null;
}

/** The part of a RunSpec that rules read. Declared separately, since the type of a RunSpec is derived from the tables. */
export interface Draft {
  kind: 'relora' | 'lora' | 'fullRank';
  /** Null until there is a shape to check against. */
  model: { numAttentionHeads: number; maxPositionEmbeddings: number } | null;
  baseWeightsFolder: string | null;
  /** Steps of the main phase. */
  stepCount: number;
  batch: { sequenceLength: number; sequenceCount: number };
  adapter: {
    rank: number;
    cycleStepCount: number;
    restartWarmupStepCount: number;
    initialisation: string;
    adapterOptimizer: string;
    trainedFactors: string;
  } | null;
  warmStart: { stepCount: number };
}

export function integer(options: Omit<IntegerSetting, 'type'>): IntegerSetting {
  return { type: 'integer', ...options };
}

export function number(options: Omit<NumberSetting, 'type'>): NumberSetting {
  return { type: 'number', ...options };
}

export function flag(options: Omit<FlagSetting, 'type'>): FlagSetting {
  return { type: 'flag', ...options };
}

export function text(options: Omit<TextSetting, 'type'>): TextSetting {
  return { type: 'text', ...options };
}

export function choice<const Word extends string, const Name extends string | null>(
  enumName: Name,
  words: readonly Word[],
  options: Common<NoInfer<Word>>,
): ChoiceSetting<Word, Name> {
  return { type: 'choice', enumName, words, ...options };
}

/** Marks all settings of a table as kept by checkpoints, except those that say otherwise. */
export function kept<T extends Settings>(table: T): T {
  return Object.fromEntries(
    Object.entries(table).map(([key, setting]) => [key, { isKept: true, ...setting }]),
  ) as T;
}

/** The values of a group that checkpoints keep: kept settings, and values that are not settings. */
export function keptValues<V extends object>(table: Settings, values: V): Partial<V> {
  return Object.fromEntries(
    Object.entries(values).filter(([key]) => !Object.hasOwn(table, key) || table[key]!.isKept === true),
  ) as Partial<V>;
}

/** A setting whose rules have been replaced by their values. */
export type Settled =
  | (Omit<IntegerSetting, 'default' | 'min' | 'max'> & { default: number; min: number; max: number })
  | (Omit<NumberSetting, 'default'> & { default: number })
  | (Omit<FlagSetting, 'default'> & { default: boolean })
  | (Omit<ChoiceSetting, 'default'> & { default: string })
  | (Omit<TextSetting, 'default'> & { default: string });

/** Returns the value of a setting: the client's if it is valid, else the default. */
export type Take = (key: string, setting: Settled, given: unknown) => unknown;

/** Accepts given values unchecked, for callers that know they are valid. */
export const trusting: Take = (_key, setting, given) => given ?? setting.default;

/**
 * Settles one table, in its order. Values are assigned to `target` one by one, so that a rule can depend on earlier settings of the same
 * table if `target` is a part of the draft.
 */
export function settle<T extends Settings>(
  table: T,
  given: Readonly<Partial<Record<keyof T, unknown>>> | undefined,
  context: Context,
  take: Take,
  target: object = {},
): ValuesOf<T> {
  const values = target as Record<string, unknown>;
  for (const [key, setting] of Object.entries(table)) {
    const settled = Object.fromEntries(
      Object.entries(setting).map(([name, rule]) => [
        name,
        typeof rule === 'function' ? (rule as (context: Context) => unknown)(context) : rule,
      ]),
    ) as unknown as Settled;
    values[key] = take(key, settled, given?.[key]);
  }
  return values as ValuesOf<T>;
}

/** The values that specifications stand for if they were stored before these settings existed. */
export function valuesBefore<T extends Settings>(table: T): Partial<ValuesOf<T>> {
  const entries = Object.entries(table).filter(([, setting]) => setting.before !== undefined);
  return Object.fromEntries(entries.map(([key, { before }]) => [key, before])) as Partial<ValuesOf<T>>;
}
