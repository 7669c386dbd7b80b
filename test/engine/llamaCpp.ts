import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * llama.cpp v0.5.0 as built by node-llama-cpp for the npm registry: only the package with the binary, which has no dependencies. The main
 * package would add twenty more, and GPU builds of half a gigabyte.
 */
const packages: Record<string, { name: string; integrity: string }> = {
  'linux-x64': {
    name: '@node-llama-cpp/linux-x64@3.22.1',
    integrity: '5uCCDNqWCNfaAm8aR/Uzxbo4HBpKgNF91kCHPepKhgMgV2OAmatoefbOlMihsqCiH2Od35E/eUHQCFbfRBJuOg==',
  },
};

const cache = fileURLToPath(new URL('../../.relora/llama.cpp', import.meta.url));

/** The parts of the binding that we use; its types are in the main package. */
interface Addon {
  setLoggerLogLevel(level: number): void;
  loadBackends(folder?: string): void;
  getGpuType(): unknown;
  init(): Promise<void>;
  AddonModel: new (path: string, options: object) => AddonModel;
  AddonContext: new (model: AddonModel, options: object) => AddonContext;
  AddonSampler: new (model: AddonModel) => { applyConfig(config: object): void };
}

interface AddonModel {
  init(): Promise<boolean>;
  tokenize(text: string, parseSpecial: boolean): Uint32Array;
  shouldPrependBosToken(): boolean;
  tokenBos(): number;
  tokenEos(): number;
  dispose(): Promise<void>;
}

interface AddonContext {
  init(): Promise<boolean>;
  initBatch(size: number): void;
  addToBatch(sequence: number, first: number, tokens: Uint32Array, logitsOf: Uint32Array): Uint32Array;
  decodeBatch(): Promise<void>;
  sampleToken(
    index: number,
    sampler: object,
    probabilities: boolean,
    confidence: boolean,
    logits: boolean,
  ): Promise<[token: number, probabilities: undefined, confidence: undefined, logits: number[]]>;
  dispose(): Promise<void>;
}

/** A GGUF file in llama.cpp. */
export interface LlamaCppModel {
  beginToken: number;
  endToken: number;
  addsBeginToken: boolean;
  tokenize(text: string): number[];
  /** Logits after the last token; if the tokens extend those of the call before, its state is reused. */
  logits(tokens: readonly number[], vocabularySize: number): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/** Opens GGUF files with llama.cpp; returns a text with the reason if that is not possible here. */
export async function findLlamaCpp(): Promise<((path: string) => Promise<LlamaCppModel>) | string> {
  const platform = `${process.platform}-${process.arch}`;
  const wanted = packages[platform];
  if (wanted === undefined) return `no binary of llama.cpp is pinned for ${platform}`;
  try {
    if (!existsSync(cache)) fetchPackage(wanted);
  } catch (error) {
    return `${wanted.name} could not be fetched (${(error as Error).message.split('\n')[0]})`;
  }
  const folder = join(cache, 'bins', platform);
  const addon = createRequire(import.meta.url)(join(folder, 'llama-addon.node')) as Addon;
  addon.setLoggerLogLevel(1);
  addon.loadBackends();
  if (addon.getGpuType() === undefined) addon.loadBackends(folder);
  await addon.init();
  return async (path) => await openModel(addon, path);
}

function fetchPackage({ name, integrity }: { name: string; integrity: string }): void {
  const temporary = `${cache}.tmp-${process.pid}`;
  mkdirSync(temporary, { recursive: true });
  try {
    execFileSync('npm', ['pack', name, '--silent', '--pack-destination', temporary], {
      stdio: 'ignore',
      timeout: 120_000,
    });
    const archive = join(
      temporary,
      readdirSync(temporary).find((file) => file.endsWith('.tgz'))!,
    );
    const hash = createHash('sha512').update(readFileSync(archive)).digest('base64');
    if (hash !== integrity) throw new Error(`it is not the file it should be, its SHA-512 is ${hash}`);
    execFileSync('tar', ['-xzf', archive, '-C', temporary]);
    renameSync(join(temporary, 'package'), cache);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

async function openModel(addon: Addon, path: string): Promise<LlamaCppModel> {
  const model = new addon.AddonModel(path, { addonExports: addon, useMmap: true });
  if (!(await model.init())) throw new Error(`llama.cpp does not load ${path}`);
  const sampler = new addon.AddonSampler(model);
  sampler.applyConfig({ temperature: 0 });
  let context: AddonContext | undefined;
  /** Tokens in the context: a longer text that begins with them continues from there. */
  let seen: number[] = [];
  const contextFor = async (tokens: readonly number[]): Promise<AddonContext> => {
    const isLonger = tokens.length > seen.length;
    if (context !== undefined && isLonger && seen.every((token, i) => token === tokens[i])) return context;
    await context?.dispose();
    seen = [];
    // Float32 keys and values: by default llama.cpp rounds them to float16.
    const precise = { flashAttention: false, kvCacheKeyType: 0, kvCacheValueType: 0 };
    context = new addon.AddonContext(model, { contextSize: 256, batchSize: 256, threads: 2, ...precise });
    if (!(await context.init())) throw new Error(`llama.cpp makes no context for ${path}`);
    return context;
  };
  return {
    beginToken: model.tokenBos(),
    endToken: model.tokenEos(),
    addsBeginToken: model.shouldPrependBosToken(),
    tokenize: (text) => Array.from(model.tokenize(text, true)),
    async logits(tokens, vocabularySize) {
      const present = await contextFor(tokens);
      const added = tokens.slice(seen.length);
      present.initBatch(added.length);
      const last = Uint32Array.of(added.length - 1);
      const [index] = present.addToBatch(0, seen.length, Uint32Array.from(added), last);
      await present.decodeBatch();
      seen = [...tokens];
      const [, , , pairs] = await present.sampleToken(index!, sampler, false, false, true);
      const logits = new Float32Array(vocabularySize).fill(Number.NaN);
      for (let i = 0; i < pairs.length; i += 2) logits[pairs[i]!] = pairs[i + 1]!;
      return logits;
    },
    async dispose() {
      await context?.dispose();
      await model.dispose();
    },
  };
}
