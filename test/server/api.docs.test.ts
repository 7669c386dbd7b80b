import { readFileSync } from 'node:fs';
import * as contract from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';

const text = readFileSync(new URL('../../docs/api.md', import.meta.url), 'utf8');
const examples = [...text.matchAll(/-d '(\{[^']*\})'[\s\\]*localhost:50051 relora\.v1\.(\w+)\/(\w+)/g)];

interface Message {
  fromJSON(json: unknown): unknown;
  toJSON(message: unknown): unknown;
}

describe('the examples of docs/api.md', () => {
  it('are found', () => {
    expect(examples.length).toBeGreaterThan(10);
  });

  for (const [, json, service, method] of examples) {
    it(`${service}/${method} is a request of the contract`, () => {
      const definitions = contract as unknown as Record<
        string,
        { methods: Record<string, { requestStream: boolean }> }
      >;
      const name = method![0]!.toLowerCase() + method!.slice(1);
      expect(definitions[`${service}Definition`]!.methods[name]).toMatchObject({ requestStream: false });
      const request = toCamelCase(JSON.parse(json!));
      const message = (contract as unknown as Record<string, Message>)[`${method}Request`]!;
      // Unknown fields or enums, and values of a wrong type, are lost in this round trip.
      expect(withoutStrings(message.toJSON(message.fromJSON(request)))).toEqual(withoutStrings(request));
    });
  }
});

/** Field names in ts-proto's form; keys of labels do not change. */
function toCamelCase(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(toCamelCase);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, each]) => [
      key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()),
      key === 'labels' ? each : toCamelCase(each),
    ]),
  );
}

/** 64-bit numbers are strings in JSON; both forms are allowed. */
function withoutStrings(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value), (_, each: unknown) =>
    typeof each === 'string' && /^\d+$/.test(each) ? Number(each) : each,
  );
}
