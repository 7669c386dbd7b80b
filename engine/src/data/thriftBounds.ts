/** Types of Thrift's compact protocol that Parquet uses. */
const type = {
  true: 1,
  false: 2,
  byte: 3,
  i16: 4,
  i32: 5,
  i64: 6,
  double: 7,
  binary: 8,
  list: 9,
  struct: 12,
};

/** Parquet's own metadata is six deep. */
const depthMax = 32;
/** Of a 64-bit number. */
const numberBytesMax = 10;

/**
 * Walks over a Thrift struct without storing any of it and returns where it ends. The reader allocates a list by its claimed length, which
 * can crash the process, and takes hours for a number of a million bytes: so every list element must exist, and every number must be short.
 * Throws an Error with the problem and its byte.
 */
export function endOfThriftStruct(bytes: Uint8Array, start: number, depth = 0): number {
  let at = start;
  const wrong = (problem: string) => new Error(`${problem} at byte ${at} of the metadata`);
  if (depth > depthMax) throw wrong('structures nested too deeply');

  const byte = (): number => {
    const value = bytes[at];
    if (value === undefined) throw wrong('an early end');
    at++;
    return value;
  };
  const number = (): number => {
    let value = 0;
    for (let length = 0; length < numberBytesMax; length++) {
      const part = byte();
      value += (part & 0x7f) * 2 ** (7 * length);
      if (part < 0x80) return value;
    }
    throw wrong('a number without an end');
  };
  const skip = (length: number): void => {
    if (length > bytes.length - at) throw wrong(`${length} bytes that are not there`);
    at += length;
  };
  const element = (kind: number, depth: number): void => {
    switch (kind) {
      case type.true:
      case type.false:
        return;
      case type.byte:
        return skip(1);
      case type.i16:
      case type.i32:
      case type.i64:
        return void number();
      case type.double:
        return skip(8);
      case type.binary:
        return skip(number());
      case type.list:
        return list(depth);
      case type.struct:
        at = endOfThriftStruct(bytes, at, depth + 1);
        return;
      default:
        throw wrong(`an unknown type ${kind}`);
    }
  };
  const list = (depth: number): void => {
    if (depth > depthMax) throw wrong('lists nested too deeply');
    const head = byte();
    const size = head >> 4 === 15 ? number() : head >> 4;
    if (size > bytes.length - at) throw wrong(`a list of ${size} that is not there`);
    // In a list, a boolean takes a byte of its own.
    const kind = head & 15;
    const stored = kind === type.true || kind === type.false ? type.byte : kind;
    for (let index = 0; index < size; index++) element(stored, depth + 1);
  };

  for (;;) {
    const head = byte();
    if ((head & 15) === 0) return at;
    if (head >> 4 === 0) number(); // the field's number, if it is not given as a difference
    element(head & 15, depth);
  }
}
