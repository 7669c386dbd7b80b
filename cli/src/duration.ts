import { UsageError } from './exitCodes.js';

const units = { s: 1, min: 60, h: 3600, d: 86_400 } as const;

/** A cadence in steps or in time: `1000`, or `15min`. */
export function cadence(value: string): { everyStepCount: number } | { everySeconds: number } {
  const [, number = '', unit = ''] = /^(\d{1,9})(s|min|h|d)?$/.exec(value) ?? [];
  if (number === '' || (Number(number) === 0 && unit !== ''))
    throw new UsageError(
      `Expected steps (1000) or a time above zero (90s, 15min, 2h, 1d), got ${JSON.stringify(value)}`,
    );
  return unit === ''
    ? { everyStepCount: Number(number) }
    : { everySeconds: Number(number) * units[unit as keyof typeof units] };
}

/** Seconds in a time such as `8h`. */
export function timeSpan(value: string): number {
  const span = /[a-z]$/.test(value) ? cadence(value) : { everyStepCount: 0 };
  if ('everySeconds' in span) return span.everySeconds;
  throw new UsageError(`Expected a time above zero (90s, 15min, 2h, 1d), got ${JSON.stringify(value)}`);
}
