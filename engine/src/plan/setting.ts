/**
 * Settings of a job, each described once (jobSettings.ts): what it may be, what it is when the client leaves it out, and
 * what an older specification without it meant. The types of a RunSpec, the checks of a request and the fields of the
 * contract hang on these.
 */
export type Setting = IntegerSetting | NumberSetting | FlagSetting | ChoiceSetting | TextSetting;
export type Settings = Readonly<Record<string, Setting>>;

/** A value, or what it follows from. */
export type Rule<T> = T | ((context: Context) => T);

interface Common<T> {
  default: Rule<T>;
  /** Of a setting that came after the first release: what a specification stored without it means. */
  before?: T;
  /** A checkpoint holds it or counts by it: a run that begins at one of another run cannot have another value. */
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
  /** The least value itself is refused. */
  above?: boolean;
  /** The greatest value itself is refused. */
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
  /** The contract's enum, whose names are these words in capitals; null where the contract has the words as they are. */
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

/** What rules may depend on: what was settled before, in the order of the tables, and what a client cannot say. */
export interface Context {
  spec: Draft;
  stepsMax: number;
  sequenceLengthMax: number;
  /** The largest that all adapted layers can hold, within the server's limit. */
  rankMax: number;
  vocabularySizeMax: number;
  replicasMax: number;
  /** The tokenizer's; null while the data set is not known. */
  vocabularySize: number | null;
  /** Tokens in the held-out part. */
  heldOutTokenCount: number;
  /** What the recipe takes for alpha, over the rank; null: the default of alpha. */
  alphaOverRank: number | null;
}

/** The part of a RunSpec that others follow from. It stands by itself, since the type of a RunSpec follows from the tables. */
export interface Draft {
  kind: 'relora' | 'lora' | 'fullRank';
  /** Null until there is a shape to check by. */
  model: { numAttentionHeads: number; maxPositionEmbeddings: number } | null;
  baseWeightsFolder: string | null;
  /** Of the main phase. */
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

/** A table whose settings checkpoints keep, but those that say otherwise. */
export function kept<T extends Settings>(table: T): T {
  return Object.fromEntries(
    Object.entries(table).map(([key, setting]) => [key, { isKept: true, ...setting }]),
  ) as T;
}

/** Those values of a group whose settings checkpoints keep, and those that have no setting. */
export function keptValues<V extends object>(table: Settings, values: V): Partial<V> {
  return Object.fromEntries(
    Object.entries(values).filter(([key]) => !Object.hasOwn(table, key) || table[key]!.isKept === true),
  ) as Partial<V>;
}

/** A setting whose rules have become values. */
export type Settled =
  | (Omit<IntegerSetting, 'default' | 'min' | 'max'> & { default: number; min: number; max: number })
  | (Omit<NumberSetting, 'default'> & { default: number })
  | (Omit<FlagSetting, 'default'> & { default: boolean })
  | (Omit<ChoiceSetting, 'default'> & { default: string })
  | (Omit<TextSetting, 'default'> & { default: string });

/** Gives the value of a setting: what a client gave, if that is good, else the default. */
export type Take = (key: string, setting: Settled, given: unknown) => unknown;

/** Takes what is given, for whoever is sure of it. */
export const trusting: Take = (_key, setting, given) => given ?? setting.default;

/**
 * Fills in one table, in its order. The values go into `target` one by one, so that a rule can depend on those before it in
 * the same table where `target` is a part of the draft.
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

/** What specifications mean that were stored before there was a setting. */
export function valuesBefore<T extends Settings>(table: T): Partial<ValuesOf<T>> {
  const entries = Object.entries(table).filter(([, setting]) => setting.before !== undefined);
  return Object.fromEntries(entries.map(([key, { before }]) => [key, before])) as Partial<ValuesOf<T>>;
}
