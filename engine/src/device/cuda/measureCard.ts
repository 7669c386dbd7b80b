import { Scope } from './scope.js';
import { bytesOf, newMatrix, type MatrixType } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';

/** Measured rates of a card, per second. */
export interface CardRates {
  readonly float32Flops: number;
  readonly bfloat16Flops: number;
  readonly memoryBytesPerSecond: number;
}

/** Shorter times measure mostly the launch. */
const secondsMin = 0.02;
const [sizeMin, sizeMax] = [64, 4096];
const copyBytesMax = 2 ** 28;
const repeatsMax = 256;

/**
 * Increases the work until it takes long enough, so that a slow card, or the card model, can be measured too; under a second on a fast card.
 */
export async function measureCard(calls: MatrixCalls): Promise<CardRates> {
  const float32Flops = await productRate(calls, 'float');
  const bfloat16Flops = await productRate(calls, 'bf16');
  return { float32Flops, bfloat16Flops, memoryBytesPerSecond: await copyRate(calls) };
}

/** Square products with zero operands. */
async function productRate(calls: MatrixCalls, type: MatrixType): Promise<number> {
  for (let size = sizeMin; ; size *= 2) {
    const scope = new Scope(calls.memory);
    const matrix = (of: MatrixType) => newMatrix(scope, size, size, of);
    const [to, a, b] = [matrix('float'), matrix(type), matrix(type)];
    for (const { address } of [a, b]) calls.memory.card.fill(address, 0, size * size * bytesOf[type]);
    const rate = await rateOf(calls, 2 * size ** 3, size === sizeMax, () => calls.product(to, a, b, {}));
    scope.end();
    if (rate !== null) return rate;
  }
}

/** Counts each byte twice: read and written. */
async function copyRate(calls: MatrixCalls): Promise<number> {
  for (let bytes = 2 ** 20; ; bytes *= 4) {
    const scope = new Scope(calls.memory);
    const [to, from] = [scope.take(bytes), scope.take(bytes)];
    calls.memory.card.fill(from, 0, bytes);
    const rate = await rateOf(calls, 2 * bytes, bytes === copyBytesMax, () =>
      calls.memory.card.copy(to, from, bytes),
    );
    scope.end();
    if (rate !== null) return rate;
  }
}

/** Null if the work was too short to be timed and can be made larger. A first pass triggers compilation. */
async function rateOf(
  { memory: { card } }: MatrixCalls,
  amount: number,
  isLargest: boolean,
  work: () => void,
): Promise<number | null> {
  work();
  await card.wait();
  for (let repeats = 1; ; repeats *= 2) {
    const beganAt = performance.now();
    for (let i = 0; i < repeats; i++) work();
    await card.wait();
    const seconds = (performance.now() - beganAt) / 1000;
    if (seconds >= secondsMin || repeats === repeatsMax) return (amount * repeats) / seconds;
    if (!isLargest) return null;
  }
}
