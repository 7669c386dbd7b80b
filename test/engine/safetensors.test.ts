import { createHash } from 'node:crypto';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { openSafetensors, SafetensorsInvalid, writeSafetensors, type TensorSource } from '@relora/engine';
import { mutated } from './dataFixtures.js';

const folder = mkdtempSync(join(tmpdir(), 'relora-safetensors-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;
const newPath = () => join(folder, `${files++}.safetensors`);

type DType = TensorSource['dtype'];

function source(name: string, shape: number[], values: number[], dtype: DType = 'F32'): TensorSource {
  return { name, shape, dtype, read: () => Float32Array.from(values) };
}

async function written(...sources: TensorSource[]) {
  const path = newPath();
  return { path, result: await writeSafetensors(path, sources) };
}

/** A file with any header and data, valid or not. */
function file(header: string | Buffer | object, dataBytes = 0, headerBytes?: bigint): string {
  const text = Buffer.isBuffer(header)
    ? header
    : Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(headerBytes ?? BigInt(text.length));
  const path = newPath();
  writeFileSync(path, Buffer.concat([length, text, Buffer.alloc(dataBytes)]));
  return path;
}

async function refused(path: string): Promise<string> {
  const error = await openSafetensors(path).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(error).toBeInstanceOf(SafetensorsInvalid);
  expect((error as SafetensorsInvalid).reason).toBe('SAFETENSORS_INVALID');
  expect((error as Error).message.length).toBeLessThan(1000);
  return (error as Error).message;
}

/** Reads a file, and stores it again in a type. */
async function stored(values: number[], dtype: DType): Promise<number[]> {
  const { path } = await written(source('w', [values.length], values, dtype));
  const opened = await openSafetensors(path);
  const read = await opened.readFloat32('w');
  await opened.close();
  return Array.from(read);
}

describe('what is written', () => {
  it('reads back by name, in any order, with size and hash of the file', async () => {
    const { path, result } = await written(
      source('b.weight', [2, 3], [1, 2, 3, 4, 5, 6]),
      source('__proto__', [1], [7], 'BF16'),
      source('scalar', [], [8], 'F16'),
      source('7', [3], [-1.5, 0, 1.5], 'F16'),
    );
    const content = readFileSync(path);
    expect(result).toEqual({
      sizeBytes: content.length,
      sha256: createHash('sha256').update(content).digest('hex'),
      castErrorMax: 0,
    });
    const opened = await openSafetensors(path);
    expect([...opened.tensors].map(([name, { dtype, shape }]) => [name, dtype, shape]).sort()).toEqual([
      ['7', 'F16', [3]],
      ['__proto__', 'BF16', [1]],
      ['b.weight', 'F32', [2, 3]],
      ['scalar', 'F16', []],
    ]);
    expect(await opened.readFloat32('7')).toEqual(Float32Array.of(-1.5, 0, 1.5));
    expect(await opened.readFloat32('scalar')).toEqual(Float32Array.of(8));
    expect(await opened.readFloat32('b.weight')).toEqual(Float32Array.of(1, 2, 3, 4, 5, 6));
    expect(await opened.readFloat32('__proto__')).toEqual(Float32Array.of(7));
    await expect(opened.readFloat32('c')).rejects.toThrow(SafetensorsInvalid);
    await opened.close();
  });

  it('is what other readers expect: a header of whole eights and the metadata "pt"', async () => {
    const { path } = await written(source('a', [1], [1]));
    const content = readFileSync(path);
    const headerBytes = Number(content.readBigUInt64LE());
    expect(headerBytes % 8).toBe(0);
    expect(JSON.parse(content.toString('utf8', 8, 8 + headerBytes))).toEqual({
      __metadata__: { format: 'pt' },
      a: { dtype: 'F32', shape: [1], data_offsets: [0, 4] },
    });
    expect(content.readFloatLE(8 + headerBytes)).toBe(1);
  });

  it('never replaces a file, and takes as many values as the shape says', async () => {
    const { path } = await written(source('a', [1], [1]));
    await expect(writeSafetensors(path, [source('a', [1], [2])])).rejects.toThrow('EEXIST');
    await expect(writeSafetensors(newPath(), [source('a', [2, 2], [1, 2, 3])])).rejects.toThrow(
      'a should have 4 values, it has 3',
    );
  });
});

describe('narrow types', () => {
  it('round to the nearest, ties to even', async () => {
    const step = 2 ** -7; // spacing of bfloat16 numbers from 1 to 2
    expect(
      await stored([1 + step / 2, 1 + 1.5 * step, 1 + step / 2 + 2 ** -20, -1 - step / 2, 0], 'BF16'),
    ).toEqual([1, 1 + 2 * step, 1 + step, -1, 0]);
    const fine = 2 ** -10; // spacing of float16 numbers from 1 to 2
    expect(await stored([1 + fine / 2, 1 + 1.5 * fine, 1 + fine / 2 + 2 ** -20, 65_519], 'F16')).toEqual([
      1,
      1 + 2 * fine,
      1 + fine,
      65_504,
    ]);
    const least = 2 ** -24; // least number above 0 in float16
    expect(
      await stored([least, 1.5 * least, 2.5 * least, least / 2, 1023.5 * least, -0.75 * least], 'F16'),
    ).toEqual([least, 2 * least, 2 * least, 0, 2 ** -14, -least]);
  });

  it('hold every one of their own numbers exactly', async () => {
    for (const [dtype, fromBits] of [
      ['BF16', bfloat16],
      ['F16', float16],
    ] as const) {
      const values = Array.from({ length: 65_536 }, (_, bits) => fromBits(bits)).filter(Number.isFinite);
      expect(await stored(values, dtype)).toEqual(values);
    }
  });

  it('report the largest error, and refuse what would become infinite', async () => {
    const { result } = await written(
      source('a', [3], [1, 1 + 2 ** -9, 100], 'BF16'),
      source('b', [1], [1 + 2 ** -12], 'F16'),
    );
    expect(result.castErrorMax).toBe(2 ** -9);
    await expect(written(source('big', [2], [1, 65_520], 'F16'))).rejects.toThrow(
      'cannot hold 65520 of big in F16',
    );
    await expect(written(source('big', [1], [3.4e38], 'BF16'))).rejects.toThrow(SafetensorsInvalid);
    expect(await stored([Infinity, -Infinity, NaN], 'F16')).toEqual([Infinity, -Infinity, NaN]);
    expect(await stored([Infinity, -Infinity, NaN], 'BF16')).toEqual([Infinity, -Infinity, NaN]);
  });
});

describe('a malformed file', () => {
  const tensor = (
    begin: number,
    end: number,
    shape: unknown = [(end - begin) / 4],
    dtype: unknown = 'F32',
  ) => ({ dtype, shape, data_offsets: [begin, end] });

  it('is refused by its first bytes, before memory is taken', async () => {
    for (let length = 0; length < 8; length++) {
      const path = newPath();
      writeFileSync(path, Buffer.alloc(length));
      expect(await refused(path)).toContain(`has ${length} bytes, but the length of the header takes 8`);
    }
    expect(await refused(file('{}', 0, 2n ** 63n))).toContain('claims a header of 9223372036854775808 bytes');
    expect(await refused(file('{}', 0, 3n))).toContain('claims a header of 3 bytes in a file of 10');
    expect(await refused(file('{}', 17 << 20, 16n * 2n ** 20n + 1n))).toContain('the limit is 16777216');
    expect(await refused(folder)).toContain('is not a regular file');
    const pipe = newPath();
    execFileSync('mkfifo', [pipe]);
    expect(await refused(pipe)).toContain('is not a regular file');
  });

  it('is refused by its header', async () => {
    expect(await refused(file(Buffer.from([0x7b, 0xff, 0x7d])))).toContain('not UTF-8');
    expect(await refused(file(''))).toContain('not JSON');
    expect(await refused(file('['.repeat(100_000)))).toContain('not JSON');
    expect(await refused(file('[]'))).toContain('not an object');
    expect(await refused(file('{"a":1}'))).toContain('no description of the tensor a');
    expect(await refused(file({ __metadata__: { format: 1 } }))).toContain('__metadata__');
    expect(
      await refused(
        file(
          '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0061":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
          8,
        ),
      ),
    ).toContain('names "a" twice');
    expect(
      await refused(file('{"a":{"dtype":"F16","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4)),
    ).toContain('names "dtype" twice');
    expect(await refused(file({ a: tensor(0, 4, [1], 'F64') }, 4))).toContain('the tensor a of type "F64"');
    for (const shape of [[0.5], [-1], ['1'], [1e309], 4, null, [0], Array.from({ length: 9 }, () => 1)]) {
      expect(await refused(file({ a: tensor(0, 4, shape) }, 4))).toContain('the tensor a of shape');
    }
    expect(await refused(file('{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'))).toContain(
      'the tensor a of shape',
    );
    // The product overflows to 0 in 64 bits, and is not exact as a double.
    expect(await refused(file({ a: tensor(0, 4, [4194305, 4194305, 211106198978564]) }, 4))).toContain(
      'the tensor a of shape',
    );
    expect(await refused(file({ a: tensor(0, 4, [2 ** 53]) }, 4))).toContain('the tensor a of shape');
    expect(await refused(file({ a: tensor(0, 8, [1]) }, 8))).toContain('takes 4 bytes, in 8');
    expect(await refused(file({ a: { dtype: 'F32', shape: [1], data_offsets: [0] } }, 4))).toContain(
      'the tensor a at [0]',
    );
    expect(await refused(file({ a: { dtype: 'F32', shape: [1], data_offsets: [4, 0] } }, 4))).toContain(
      'takes 4 bytes, in -4',
    );
  });

  it('is refused for holes, overlaps and bytes that are too few or too many', async () => {
    expect(await refused(file({ a: tensor(0, 4), b: tensor(8, 12) }, 12))).toContain(
      'the tensor b at byte 8, byte 4 was expected',
    );
    expect(await refused(file({ a: tensor(0, 8), b: tensor(4, 8) }, 8))).toContain(
      'the tensor b at byte 4, byte 8 was expected',
    );
    expect(await refused(file({ a: tensor(4, 8) }, 8))).toContain('byte 0 was expected');
    expect(await refused(file({ a: tensor(0, 8) }, 4))).toContain('should have 8 bytes of tensors, it has 4');
    expect(await refused(file({ a: tensor(0, 8) }, 9))).toContain('should have 8 bytes of tensors, it has 9');
  });

  it('with more tensors than anyone has is refused', async () => {
    const many: Record<string, unknown> = {};
    for (let index = 0; index <= 100_000; index++) many[`t${index}`] = tensor(4 * index, 4 * index + 4, [1]);
    expect(await refused(file(many, 400_004))).toContain('has 100001 tensors, the limit is 100000');
  });

  it('with a name of megabytes is read like any other', async () => {
    const name = 'n'.repeat(8 << 20);
    const opened = await openSafetensors(file({ [name]: tensor(0, 4) }, 4));
    expect(opened.tensors.has(name)).toBe(true);
    await opened.close();
  });

  it('changed at random is read whole or refused', async () => {
    const { path } = await written(source('a', [2, 2], [1, 2, 3, 4]), source('b', [3], [5, 6, 7], 'F16'));
    const original = readFileSync(path);
    let refusedCount = 0;
    for (let number = 0; number < 400; number++) {
      const changed = newPath();
      writeFileSync(changed, mutated(original, number));
      try {
        const opened = await openSafetensors(changed);
        for (const [name, { shape }] of opened.tensors) {
          expect((await opened.readFloat32(name)).length).toBe(
            shape.reduce((product, size) => product * size, 1),
          );
        }
        await opened.close();
      } catch (error) {
        expect(error).toBeInstanceOf(SafetensorsInvalid);
        refusedCount++;
      }
    }
    expect(refusedCount).toBeGreaterThan(100);
  });
});

/** The value of these bits by the format's definition. */
function bfloat16(bits: number): number {
  return new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!;
}

function float16(bits: number): number {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
