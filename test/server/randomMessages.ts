import type { Descriptors, FieldDescriptor } from '../../server/dist/grpc/descriptors.js';

/** Numbers in [0, 1), the same for the same seed. */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const texts = [
  '',
  'jobs/nobody',
  'jobs/my-job',
  'datasets/text',
  'weights/some-weights',
  'jobs/my-job/artifacts/merged-model-1',
  '../../etc/passwd',
  '/etc/passwd',
  'auto',
  'llama-60m',
  '00000000-0000-4000-8000-000000000001',
  '"1"',
  'create_time desc',
  'a.txt',
  'a'.repeat(64),
  '__proto__',
  'constructor',
  'é\u0301\u202e\u0000\u{1f600}',
  'x'.repeat(5000),
];
/** Suitable values for fields of that name: names or random text would fail at the first check. */
const fitting: Readonly<Record<string, readonly string[]>> = {
  name: [
    'jobs/my-job',
    'jobs/nobody',
    'datasets/text',
    'weights/some-weights',
    'jobs/my-job/artifacts/merged-model-1',
  ],
  names: ['jobs/my-job', 'jobs/nobody'],
  parent: ['jobs/my-job', 'jobs/nobody', ''],
  model: ['jobs/my-job', 'jobs/my-job/artifacts/merged-model-1'],
  dataset: ['datasets/text', 'datasets/none'],
  weights: ['weights/some-weights'],
  preset: ['demo', 'llama-60m'],
  device: ['auto', 'native', ''],
  request_id: ['', '00000000-0000-4000-8000-000000000001'],
  page_token: [''],
  filter: [''],
  order_by: ['', 'create_time desc'],
  etag: ['', '"1"'],
};
const wholes = [0, 1, 2, 3, 64, 127, 128, 1000, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 53 - 1];
const wides = [2n ** 53n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n, 2n ** 64n - 2n ** 53n];
const reals = [0, -0, 1, 0.5, -1, 1e-3, 1e308, 5e-324, NaN, Infinity, -Infinity];

export function makeMessages({ messages }: Descriptors, random: () => number) {
  const pick = <T>(choices: readonly T[]): T => choices[Math.floor(random() * choices.length)]!;

  // A message with many fields, or with random texts, is refused for one of them: half of all messages are small and plausible, to get
  // further.
  const isApt = random() < 0.5;
  const density = isApt ? 0.25 : 0.6;

  const varint = (value: bigint): Buffer => {
    const bytes: number[] = [];
    for (let rest = BigInt.asUintN(64, value); ; rest >>= 7n) {
      if (rest < 128n) return Buffer.from([...bytes, Number(rest)]);
      bytes.push(Number(rest & 127n) | 128);
    }
  };
  const prefixed = (bytes: Buffer): Buffer => Buffer.concat([varint(BigInt(bytes.length)), bytes]);

  const valueOf = (
    { name, type, typeName }: FieldDescriptor,
    depth: number,
  ): { wireType: number; bytes: Buffer } => {
    switch (type) {
      case 1: {
        const bytes = Buffer.alloc(8);
        bytes.writeDoubleLE(pick(reals));
        return { wireType: 1, bytes };
      }
      case 9:
        return {
          wireType: 2,
          bytes: prefixed(Buffer.from(pick(isApt && Object.hasOwn(fitting, name) ? fitting[name]! : texts))),
        };
      case 11:
        return { wireType: 2, bytes: prefixed(messageOf(typeName, depth + 1)) };
      case 12:
        return { wireType: 2, bytes: prefixed(Buffer.alloc(Math.floor(random() * 200), 7)) };
      case 3:
      case 4:
        if (random() < 0.02) return { wireType: 0, bytes: varint(pick(wides)) };
    }
    if (type === 8) return { wireType: 0, bytes: varint(random() < 0.5 ? 0n : 1n) };
    if (type === 14) return { wireType: 0, bytes: varint(BigInt(Math.floor(random() * 9))) };
    return { wireType: 0, bytes: varint(BigInt(pick(wholes)) * (random() < 0.1 ? -1n : 1n)) };
  };

  const messageOf = (typeName: string, depth = 0): Buffer => {
    const parts: Buffer[] = [];
    for (const [number, field] of messages.get(typeName) ?? []) {
      const isNamed = isApt && depth === 0 && Object.hasOwn(fitting, field.name);
      if (random() > (isNamed ? 0.9 : depth < 4 ? density : 0.2)) continue;
      const count = field.isRepeated ? Math.floor(random() * 4) : 1;
      for (let index = 0; index < count; index++) {
        const { wireType, bytes } = valueOf(field, depth);
        parts.push(varint(BigInt(number * 8 + wireType)), bytes);
      }
    }
    return Buffer.concat(parts);
  };

  /** A message with a few bytes changed, removed, duplicated or inserted. */
  const mutate = (message: Buffer): Buffer => {
    let bytes = Buffer.from(message);
    for (let count = 1 + Math.floor(random() * 3); count > 0; count--) {
      const at = Math.floor(random() * (bytes.length + 1));
      const end = Math.min(bytes.length, at + 1 + Math.floor(random() * 8));
      const [before, middle, after] = [bytes.subarray(0, at), bytes.subarray(at, end), bytes.subarray(end)];
      const changed = pick([
        () => Buffer.from(middle.map((byte) => byte ^ (1 << Math.floor(random() * 8)))),
        () => Buffer.alloc(0),
        () => Buffer.concat([middle, middle]),
        () => Buffer.concat([Buffer.from([Math.floor(random() * 256), 0xff]), middle]),
        () => Buffer.alloc(middle.length, 0xff),
      ])();
      bytes = Buffer.concat(random() < 0.1 ? [before] : [before, changed, after]);
    }
    return bytes;
  };
  return { messageOf, mutate };
}
