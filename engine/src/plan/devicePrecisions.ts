import type { DeviceChoice, HeadPrecision, Precision } from './words.js';

/** Precisions that each device supports besides `auto`; docs/devices.md has the same table. */
export const devicePrecisions: Readonly<Record<Exclude<DeviceChoice, 'auto'>, readonly Precision[]>> = {
  native: ['float32', 'bfloat16', 'int8Base', 'nf4Base'],
  cuda: ['float32', 'bfloat16', 'fp8Base'],
  tensorflow: ['float32'],
  reference: ['float32'],
};

export function servesPrecision(device: Exclude<DeviceChoice, 'auto'>, precision: Precision): boolean {
  return precision === 'auto' || devicePrecisions[device].includes(precision);
}

/** The compute capability that a card needs for a precision that not every card has: products of e4m3 came with Ada. */
export const capabilityMins: Partial<Record<Precision, number>> = { fp8Base: 8.9 };

export function cardServes(
  { computeCapability }: { computeCapability: string },
  precision: Precision,
): boolean {
  return Number(computeCapability) >= (capabilityMins[precision] ?? 0);
}

export function servesHead(device: Exclude<DeviceChoice, 'auto'>, precision: HeadPrecision): boolean {
  return precision === 'same' || device === 'native';
}
