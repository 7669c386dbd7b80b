/**
 * Checks of values from another process. A check is also a type, so that one table of fields describes both. `number` allows NaN and
 * infinities, which a diverging run reports.
 */
export type Shape<T> = (value: unknown) => value is T;
export type Fields = Readonly<Record<string, Shape<unknown>>>;

/** The type that a shape checks for. */
export type TypeOf<S> = S extends Shape<infer T> ? T : never;

/** The type of an object with these fields; fields that may be missing are optional. */
export type ObjectOf<F extends Fields> = {
  [K in keyof F as undefined extends TypeOf<F[K]> ? never : K]: TypeOf<F[K]>;
} & { [K in keyof F as undefined extends TypeOf<F[K]> ? K : never]?: Exclude<TypeOf<F[K]>, undefined> };

export const number: Shape<number> = (value) => typeof value === 'number';
export const count: Shape<number> = (value): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0;
export const flag: Shape<boolean> = (value) => typeof value === 'boolean';

export function text(lengthMax: number): Shape<string> {
  return (value): value is string => typeof value === 'string' && value.length <= lengthMax;
}

export function matching(pattern: RegExp): Shape<string> {
  return (value): value is string => typeof value === 'string' && pattern.test(value);
}

export function oneOf<const T>(values: readonly T[]): Shape<T> {
  return (value): value is T => (values as readonly unknown[]).includes(value);
}

export function orNull<T>(shape: Shape<T>): Shape<T | null> {
  return (value): value is T | null => value === null || shape(value);
}

export function orMissing<T>(shape: Shape<T>): Shape<T | undefined> {
  return (value): value is T | undefined => value === undefined || shape(value);
}

export function list<T>(lengthMax: number, shape: Shape<T>): Shape<T[]> {
  return (value): value is T[] => Array.isArray(value) && value.length <= lengthMax && value.every(shape);
}

/** Checks own properties only; additional fields are accepted. */
export function object<F extends Fields>(fields: F): Shape<ObjectOf<F>> {
  const entries = Object.entries(fields);
  return (value): value is ObjectOf<F> =>
    isRecord(value) &&
    entries.every(([key, shape]) => shape(Object.hasOwn(value, key) ? value[key] : undefined));
}

/** A union of objects, distinguished by the field `tag`. */
export type UnionOf<Tag extends string, T extends Readonly<Record<string, Fields>>> = {
  [K in keyof T]: { [P in Tag]: K } & ObjectOf<T[K]>;
}[keyof T];

export function union<Tag extends string, T extends Readonly<Record<string, Fields>>>(
  tag: Tag,
  table: T,
): Shape<UnionOf<Tag, T>> {
  const shapes = new Map(Object.entries(table).map(([kind, fields]) => [kind, object(fields)]));
  return (value): value is UnionOf<Tag, T> =>
    isRecord(value) && Object.hasOwn(value, tag) && (shapes.get(value[tag] as string)?.(value) ?? false);
}

export const name = text(512);
export const path = text(4096);
/** For texts of models and errors. With longer ones a single journal entry would exceed the message size that clients accept. */
export const longText = text(64 * 1024);
export const sha256 = matching(/^[0-9a-f]{64}$/);
/** Code of an error or a warning, from a catalog. */
export const reason = matching(/^[A-Z][A-Z0-9_]{0,63}$/);

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
