import { createHash } from 'node:crypto';
import { capabilityMins, cardServes } from '../../plan/devicePrecisions.js';
import type { DeviceDescription } from '../device.js';
import { DeviceFault } from '../deviceFaults.js';
import { guarded } from './cardFaults.js';
import { batched } from './batchedCard.js';
import { BlasProducts } from './blasProducts.js';
import { CardRing, openNccl } from './cardRing.js';
import { loadCudaAddon, type Card, type CardDescription, type CudaAddon } from './cudaAddon.js';
import { CudaDevice } from './cudaDevice.js';
import { kernelCompiler, type KernelCompiler } from './kernelCompiler.js';
import { Kernels } from './kernels.js';
import { listKernelFiles, readKernelFile, readKernelHeaders } from './kernelText.js';
import { kernelVariants } from './kernelVariants.js';
import { findDriver, findLibraries, type CudaLibraries } from './libraries.js';
import type { Arithmetic } from './matrix.js';

export interface CudaOptions {
  readonly libraries: CudaLibraries;
  /** Index among the cards that the driver shows to this process; default 0. */
  readonly ordinal?: number;
  /** UUID as the driver reports it, instead of the index; null: use the index. */
  readonly uuid?: string | null;
  readonly precision: Arithmetic;
  /** Format of frozen bases: by default the type of products. 'fp8': e4m3, only with bfloat16. */
  readonly basePrecision?: 'fp8';
  /** Cache of compiled kernels; null: no cache. */
  readonly cache: { readonly folder: string; readonly isWritable: boolean } | null;
  /** For tests: the file of the addon, if not the built one, and options for a compiler other than NVRTC. */
  readonly addonPath?: string;
  readonly moreOptions?: readonly string[];
  /** For tests, which watch for out-of-bounds accesses: every buffer is a driver allocation of its own. */
  readonly isApart?: boolean;
}

/** CUDA 12.0: required by our kernels' instructions and the driver functions that we call. */
const driverVersionMin = 12000;
/** Ampere: bfloat16 products and asynchronous copies. */
const capabilityMin = 80;

/** Opens the device `cuda`; throws a DeviceFault that says what is missing and what to do. */
export function openCuda(options: CudaOptions): CudaDevice {
  const addon = guarded(loadCudaAddon(options.addonPath));
  const { version, cards } = listCards(options.libraries.driver, addon);
  const described = chosen(cards, options);
  requireCapability(described);
  if (options.basePrecision === 'fp8') requireE4m3(described, options);
  const compiler = openCompiler(addon, options, version);
  const card = batched(guarded(addon.openCard(described.ordinal)));
  const architecture = architectureOf(described);
  const kernels = new Kernels(card, compiler, { architecture, moreOptions: options.moreOptions });
  const blas = options.precision === 'float32' ? null : openProducts(addon, card, options, version);
  const description = describe(described, architecture, version, compiler, options);
  const cublasLt = blas === null ? 'none' : String(blas.version);
  const libraries: Record<string, string> = { ...description.libraries, cublasLt };
  return new CudaDevice({ ...description, libraries }, card, kernels, blas, options.isApart, (memory) => {
    // Opened only for several cards: it takes hundreds of megabytes.
    const nccl = openNccl(addon, options.libraries.collectives);
    return nccl === null ? null : new CardRing(memory, addon, nccl, libraries);
  });
}

/** Opens the newest library that is not newer than the driver; null if there is none, or if it is not wanted. */
function openProducts(
  addon: CudaAddon,
  card: Card,
  { libraries }: CudaOptions,
  driver: number,
): BlasProducts | null {
  for (const path of libraries.products ?? []) {
    try {
      const version = addon.openBlas(path);
      if (Math.floor(version / 10_000) * 1000 > driver) continue;
      return new BlasProducts(card, version);
    } catch (error) {
      if (!(error instanceof DeviceFault) || error.reason !== 'DEVICE_LIBRARY_MISSING') throw error;
    }
  }
  return null;
}

function requireE4m3({ name, capability }: CardDescription, { precision }: CudaOptions): void {
  if (precision !== 'bfloat16') throw new TypeError('openCuda: a base in FP8 goes with bfloat16');
  if (cardServes({ computeCapability: String(capability / 10) }, 'fp8Base')) return;
  throw new DeviceFault(
    'DEVICE_TOO_OLD',
    `${name} has compute capability ${capability / 10}, a base in FP8 needs ${capabilityMins.fp8Base} (Ada or newer): train in BFLOAT16`,
  );
}

/** The cards that the driver shows to this process, at least one, and the newest CUDA version that it supports. Throws a DeviceFault. */
export function listCards(
  driver: string,
  addon: Pick<CudaAddon, 'openDriver'> = guarded(loadCudaAddon()),
): { version: number; cards: CardDescription[] } {
  const { version, devices } = addon.openDriver(driver);
  if (version < driverVersionMin)
    throw new DeviceFault(
      'DEVICE_DRIVER_TOO_OLD',
      `The NVIDIA driver serves CUDA ${nameOf(version)}, ${nameOf(driverVersionMin)} is needed: install driver 525 or newer`,
    );
  if (devices.length === 0)
    throw new DeviceFault(
      'DEVICE_NOT_FOUND',
      'The driver shows no card: check that nvidia-smi lists one, and CUDA_VISIBLE_DEVICES',
    );
  return { version, cards: devices };
}

/** Compiles every kernel that a run may load, for each card that can run them, into the folder; existing images are kept. */
export function fillKernelCache(options: { libraryFolder: string | null; folder: string }): void {
  const { folder, libraryFolder } = options;
  const addon = guarded(loadCudaAddon());
  const { version, cards } = listCards(findDriver(libraryFolder), addon);
  const libraries = findLibraries({ folder: libraryFolder });
  const compiler = openCompiler(addon, { libraries, cache: { folder, isWritable: true } }, version);
  const fit = cards.filter(({ capability }) => capability >= capabilityMin);
  for (const architecture of new Set(fit.map(architectureOf)))
    for (const { file, definitions } of kernelVariants())
      compiler.compile(readKernelFile(file), { architecture, definitions });
}

function chosen(cards: readonly CardDescription[], { ordinal = 0, uuid }: CudaOptions): CardDescription {
  const found =
    uuid === null || uuid === undefined ? cards[ordinal] : cards.find((card) => card.uuid === uuid);
  if (found !== undefined) return found;
  throw new DeviceFault(
    'DEVICE_NOT_FOUND',
    `The driver shows ${cards.length} cards, so there is no card ${uuid ?? ordinal}: check nvidia-smi and CUDA_VISIBLE_DEVICES`,
  );
}

/** Throws DEVICE_TOO_OLD for a card whose instructions our kernels do not run on. */
export function requireCapability({ name, capability }: Pick<CardDescription, 'name' | 'capability'>): void {
  if (capability >= capabilityMin) return;
  throw new DeviceFault(
    'DEVICE_TOO_OLD',
    `${name} has compute capability ${capability / 10}, ${capabilityMin / 10} is needed (Ampere or newer): train on the CPU`,
  );
}

/** The driver cannot load kernels of a CUDA newer than its own: opens the newest compiler that the driver supports. */
function openCompiler(
  addon: CudaAddon,
  { libraries, cache }: Pick<CudaOptions, 'libraries' | 'cache'>,
  driver: number,
): KernelCompiler {
  const tried: string[] = [];
  for (const path of libraries.compilers) {
    try {
      const compiler = kernelCompiler(addon, path, cache);
      if (Number(compiler.version.split('.')[0]) <= Math.floor(driver / 1000)) return compiler;
      tried.push(`${path}: CUDA ${compiler.version} is newer than the driver's ${nameOf(driver)}`);
    } catch (error) {
      if (!(error instanceof DeviceFault)) throw error;
      tried.push((error.cause as Error).message);
    }
  }
  throw new DeviceFault(
    'DEVICE_LIBRARY_MISSING',
    `No compiler of kernels for CUDA ${nameOf(driver)}: install nvidia-cuda-nvrtc (pip) or the CUDA toolkit, or name its folder.` +
      (tried.length > 0 ? ` Tried ${tried.join('; ')}` : ' No libnvrtc was found'),
  );
}

/** Architecture-specific instructions of Hopper and the larger Blackwell exist only in the variants with an `a`. */
function architectureOf({ capability }: CardDescription): string {
  return `sm_${capability}${capability === 90 || capability === 100 ? 'a' : ''}`;
}

const nameOf = (version: number) => `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;

function describe(
  card: CardDescription,
  architecture: string,
  driver: number,
  compiler: KernelCompiler,
  { precision, basePrecision }: CudaOptions,
): DeviceDescription {
  const hash = createHash('sha256').update(JSON.stringify(readKernelHeaders()));
  for (const file of listKernelFiles()) hash.update(readKernelFile(file).source);
  return {
    name: 'cuda',
    model: card.name,
    uuid: card.uuid,
    instructionSet: architecture,
    threadCount: 1,
    precision,
    basePrecision: basePrecision ?? precision,
    libraries: {
      driver: nameOf(driver),
      nvrtc: compiler.version,
      kernels: hash.digest('hex').slice(0, 16),
      multiprocessors: String(card.multiprocessors),
    },
  };
}
