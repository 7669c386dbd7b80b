/** Numbers and lengths of protobuf's wire format. */
export const wireTypes = { varint: 0, fixed64: 1, bytes: 2, fixed32: 5 } as const;

/** Says what is wrong with the bytes, and where. */
export class WireFault extends Error {
  override name = 'WireFault';
  constructor(
    readonly at: number,
    readonly expected: string,
    readonly got: string,
  ) {
    super(`byte ${at}: expected ${expected}, got ${got}`);
  }
}

/** Reads a range of bytes from front to back; throws WireFault if a value does not fit. */
export class WireReader {
  constructor(
    readonly bytes: Uint8Array,
    public at = 0,
    readonly end = bytes.length,
  ) {}

  /** Exact up to 2^53; above that the nearest double, which is enough to know that it is too large. */
  varint(): number {
    let value = 0;
    let scale = 1;
    for (const start = this.at; this.at < this.end; scale *= 128) {
      const byte = this.bytes[this.at++]!;
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      if (this.at - start === 10) throw new WireFault(start, 'a number of at most 10 bytes', 'a longer one');
    }
    throw new WireFault(this.at, 'the rest of a number', 'the end');
  }

  /** A varint as 64 bits. */
  bits(): bigint {
    const start = this.at;
    this.varint();
    let value = 0n;
    for (let at = this.at - 1; at >= start; at--) value = (value << 7n) | BigInt(this.bytes[at]! & 0x7f);
    return BigInt.asUintN(64, value);
  }

  /** Key of a field: its number and how its value is written. */
  key(): { number: number; wireType: number } {
    const start = this.at;
    const key = this.varint();
    const number = Math.floor(key / 8);
    if (number < 1 || number > 0x1fffffff)
      throw new WireFault(start, 'a field number from 1 to 536870911', String(number));
    return { number, wireType: key % 8 };
  }

  /** The range whose length is encoded before it; this reader continues after it. */
  stretch(): WireReader {
    const start = this.at;
    const length = this.varint();
    if (length > this.end - this.at)
      throw new WireFault(start, `${length} bytes`, `${this.end - this.at} up to the end`);
    const from = this.at;
    this.at += length;
    return new WireReader(this.bytes, from, this.at);
  }

  skip(byteCount: number): void {
    if (byteCount > this.end - this.at)
      throw new WireFault(this.at, `${byteCount} bytes`, `${this.end - this.at} up to the end`);
    this.at += byteCount;
  }

  skipValue(wireType: number): void {
    if (wireType === wireTypes.varint) this.varint();
    else if (wireType === wireTypes.fixed64) this.skip(8);
    else if (wireType === wireTypes.bytes) this.stretch();
    else if (wireType === wireTypes.fixed32) this.skip(4);
    // Groups do not exist in proto3.
    else throw new WireFault(this.at, 'a value of wire type 0, 1, 2 or 5', String(wireType));
  }

  view(): DataView {
    return new DataView(this.bytes.buffer, this.bytes.byteOffset, this.bytes.byteLength);
  }

  slice(): Uint8Array {
    return this.bytes.subarray(this.at, this.end);
  }
}
