import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, realpathSync } from 'node:fs';
import { createRequire } from 'node:module';
import { delimiter, dirname, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  findNativeFile,
  NativeUnusable,
  thisPlatform,
  whyUnfit,
  type NativeFile,
} from '@relora/engine/binaries';
import type { Logger } from 'pino';
import { ConfigInvalid, type Config } from '../config.js';

/** What a child may open in addition to its own program. A folder includes everything below it. */
export interface ChildAccess {
  read: readonly string[];
  /** May be read and changed. */
  write: readonly string[];
  /** Device files of graphics cards, and NVIDIA's libraries where Python installs them. */
  cards: boolean;
  /** May connect to other processes. */
  network?: boolean;
}

/** The program to start for a child, and the arguments before the child's own program. */
export interface Launch {
  execPath: string;
  execArgv: string[];
}

/** The same with flags of Node, which come before the program. */
export function withFlags(flags: readonly string[], { execPath, execArgv }: Launch): Launch {
  return { execPath, execArgv: [...execArgv, ...flags] };
}

/** Built from server/native/confine.cpp. */
const built = fileURLToPath(new URL('../../native/build/confine', import.meta.url));

const systemFolders = [
  '/usr',
  '/lib',
  '/lib32',
  '/lib64',
  '/bin',
  '/sbin',
  '/opt',
  '/nix/store',
  '/gnu/store',
];
/** Programs do not even start without these; a child needs nothing else in /etc. */
const systemFiles = [
  '/etc/ld.so.cache',
  '/etc/ld.so.conf',
  '/etc/ld.so.conf.d',
  '/etc/alternatives',
  '/etc/localtime',
  '/etc/ssl/openssl.cnf',
  '/etc/pki/tls/openssl.cnf',
  '/etc/crypto-policies',
  // Of other processes a confined child sees what `ps` shows; the kernel denies access to their memory, environment and files.
  '/proc',
  '/sys',
  '/dev/zero',
  '/dev/random',
  '/dev/urandom',
];
const devices = ['/dev/null'];

/**
 * Limits children to what they need: their folders and their device, but no network and no other processes. The kernel enforces it in the
 * child itself, from before its first instruction, so it needs neither root nor a container.
 */
export class Confinement {
  /** How the kernel confines children, for example `Landlock 7, seccomp`; null if it does not. */
  readonly means: string | null;
  /** Why children are not confined; empty if they are, or if that is switched off. */
  readonly problem: string;
  private readonly program: string;
  /** Why children that compute on a card are not confined when the setting is `auto`; null once one has worked. */
  private problemOfCards: string | null = 'none was tried yet';

  constructor(
    private readonly config: Pick<Config, 'sandbox' | 'cudaFolder' | 'native'>,
    program?: string,
  ) {
    const found = config.sandbox === 'off' ? { problem: '' } : find(config.native, program);
    this.means = 'means' in found ? found.means : null;
    this.problem = 'problem' in found ? found.problem : '';
    this.program = 'program' in found ? found.program : '';
  }

  /** Logs what is in force. Throws ConfigInvalid if children must be confined but cannot be. */
  report(log: Logger): void {
    const { means, problem, config } = this;
    if (means !== null) log.info({ sandbox: means }, `Children are confined by the kernel: ${means}`);
    else if (config.sandbox === 'required')
      throw new ConfigInvalid([`RELORA_SANDBOX is required, but children cannot be confined: ${problem}`]);
    else if (config.sandbox === 'auto')
      log.warn(
        { problem },
        `Children are not confined and may read and reach what this user may: ${problem}`,
      );
  }

  /**
   * Drivers change and are not ours: with `auto`, confinement must not keep a job from its card. So first a confined child tries to compute
   * on every card.
   */
  get mustTryCards(): boolean {
    return this.means !== null && this.config.sandbox === 'auto' && this.problemOfCards !== null;
  }

  /** Records the result of the trial: null if the card worked. */
  triedCards(problem: string | null, log: Logger): void {
    this.problemOfCards = problem;
    if (problem === null) log.info('Trainers on a card are confined: a trial worked');
    else log.warn({ problem }, 'Trainers on a card are not confined: a trial failed');
  }

  /** Why trainers on a card are not confined although others are; null if they are. */
  get unconfinedCards(): string | null {
    return this.mustTryCards ? this.problemOfCards : null;
  }

  launch(entry: string, { isTrial = false, ...access }: ChildAccess & { isTrial?: boolean }): Launch {
    // A confined child has no network, but MPI needs one to reach the other machines, and NCCL to reach the other cards.
    const isFree =
      this.means === null || access.network === true || (access.cards && !isTrial && this.mustTryCards);
    if (isFree) return { execPath: process.execPath, execArgv: [] };
    const flags = (flag: string, paths: readonly string[]): string[] => paths.flatMap((path) => [flag, path]);
    return {
      execPath: this.program,
      execArgv: [
        ...flags('-x', [...systemFolders, realpathSync(process.execPath)]),
        ...flags('-r', [...systemFiles, ...programFolders(entry), ...this.nativeFolder(), ...access.read]),
        ...flags('-w', access.write),
        ...flags('-d', devices),
        ...(access.cards ? this.cardFlags(flags) : []),
        '--',
        process.execPath,
      ],
    };
  }

  /** The folder in RELORA_NATIVE, if it is one; native code in packages is readable already. */
  private nativeFolder(): string[] {
    return isAbsolute(this.config.native) ? [this.config.native] : [];
  }

  private cardFlags(flags: (flag: string, paths: readonly string[]) => string[]): string[] {
    const { HOME = '', VIRTUAL_ENV = '', LD_LIBRARY_PATH = '', CUDA_PATH = '', CUDA_HOME = '' } = process.env;
    const { cudaFolder } = this.config;
    const libraries = [
      ...LD_LIBRARY_PATH.split(delimiter),
      ...[VIRTUAL_ENV, CUDA_PATH, CUDA_HOME, cudaFolder ?? ''],
      ...(HOME === '' ? [] : [join(HOME, '.local/lib')]),
    ].filter((path) => path.startsWith('/'));
    const nodes = existsSync('/dev') ? readdirSync('/dev').filter((name) => /^(nvidia|dxg)/.test(name)) : [];
    return [
      ...flags('-r', libraries),
      ...flags(
        '-d',
        nodes.map((name) => join('/dev', name)),
      ),
    ];
  }
}

/** The confining program, at `path` or as RELORA_NATIVE says, and what it can do here. */
function find(choice: string, path?: string): { means: string; program: string } | { problem: string } {
  if (process.platform !== 'linux') return { problem: 'only Linux has what it needs' };
  let file: NativeFile;
  try {
    file =
      path === undefined ? findNativeFile('confine', { choice, built }) : { path, origin: `from ${path}` };
  } catch (error) {
    if (!(error instanceof NativeUnusable)) throw error;
    return { problem: error.message };
  }
  const { path: program } = file;
  if (!existsSync(program)) return { problem: `${program} is not there` };
  // A program for another system would be taken for a script.
  const unfit = whyUnfit(file, thisPlatform());
  if (unfit !== null) return { problem: unfit };
  try {
    const means = execFileSync(program, ['--probe'], { encoding: 'utf8', stdio: 'pipe' }).trim();
    return { means, program };
  } catch (error) {
    const { stderr = '', message } = error as Error & { stderr?: string };
    return { problem: stderr.trim().replace(/^confine: /, '') || message };
  }
}

/** Folders of a child's own program and of the packages that it imports. */
function programFolders(entry: string): string[] {
  const require = createRequire(import.meta.url);
  const packages = [
    fileURLToPath(new URL('../../', import.meta.url)),
    ...['engine', 'sdk'].map((name) => dirname(require.resolve(`@relora/${name}/package.json`))),
  ].map((folder) => realpathSync(folder));
  const modules = packages.flatMap((folder) => {
    const found: string[] = [];
    for (let above = folder; dirname(above) !== above; above = dirname(above))
      found.push(join(above, 'node_modules'), join(above, 'package.json'));
    return found;
  });
  const given = (process.env.NODE_PATH ?? '').split(delimiter).filter((path) => path.startsWith('/'));
  return [...new Set([dirname(entry), ...packages, ...modules, ...given])].filter((path) => existsSync(path));
}
