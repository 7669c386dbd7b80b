import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { delimiter, join } from 'node:path';

/** Files of NVIDIA's libraries, best first. For a name without a folder the system's own search applies. */
export interface CudaLibraries {
  readonly driver: string;
  /** NVRTC. */
  readonly compilers: readonly string[];
  /** cuBLASLt. If none can be opened, products use our own kernels. */
  readonly products: readonly string[];
  /** NCCL. If none can be opened, several cards exchange sums through the machine's memory. */
  readonly collectives: readonly string[];
}

export interface LibrarySearch {
  /**
   * Null: search the usual places. If set, all but the driver must come from this folder, and so does the driver if the folder has one.
   */
  readonly folder: string | null;
  readonly environment?: NodeJS.ProcessEnv;
}

const compilerNames = ['libnvrtc.so.13', 'libnvrtc.so.12'];
const productNames = ['libcublasLt.so.13', 'libcublasLt.so.12'];
const collectiveNames = ['libnccl.so.2'];

/** The driver comes with the machine, never with a toolkit; but the given folder may contain one, to emulate a machine. */
export function findDriver(folder: string | null): string {
  return ofMachine(folder, 'libcuda.so.1');
}

/** The management library comes with the driver. */
export function findManagement(folder: string | null): string {
  return ofMachine(folder, 'libnvidia-ml.so.1');
}

function ofMachine(folder: string | null, name: string): string {
  const named = folder === null ? name : join(folder, name);
  return existsSync(named) ? named : name;
}

/**
 * Search order for all but the driver: a folder from a setting; LD_LIBRARY_PATH; where CUDA's installers put it; the `nvidia` packages
 * of the active Python; the system. Several are listed, since the newest may be too new for the driver.
 */
export function findLibraries({ folder, environment = process.env }: LibrarySearch): CudaLibraries {
  const folders =
    folder !== null
      ? [folder]
      : [...pathsOf(environment.LD_LIBRARY_PATH), ...toolkitFolders(), ...pythonFolders(environment)];
  const find = (names: readonly string[]) => {
    const files = folders.flatMap((place) =>
      names.map((name) => join(place, name)).filter((path) => existsSync(path)),
    );
    return folder !== null ? files : [...files, ...names];
  };
  return {
    driver: findDriver(folder),
    compilers: find(compilerNames),
    products: find(productNames),
    collectives: find(collectiveNames),
  };
}

const pathsOf = (list: string | undefined) => (list ?? '').split(delimiter).filter((path) => path !== '');

function toolkitFolders(): string[] {
  const installed = list('/usr/local').filter((name) => /^cuda(-[\d.]+)?$/.test(name));
  return installed.map((name) => join('/usr/local', name, 'lib64'));
}

/** `nvidia/*\/lib` below the site-packages of the active environment. */
function pythonFolders(environment: NodeJS.ProcessEnv): string[] {
  const sites = environment.VIRTUAL_ENV === undefined ? askPython() : sitesOf(environment.VIRTUAL_ENV);
  return sites.flatMap((site) => packageFolders(site));
}

/** Library folders of the `nvidia` packages within one site-packages folder. */
export function packageFolders(site: string): string[] {
  const nvidia = join(site, 'nvidia');
  return list(nvidia)
    .map((name) => join(nvidia, name, 'lib'))
    .filter((path) => existsSync(path));
}

/** The site-packages folders of a virtual environment. */
export function sitesOf(virtualEnvironment: string): string[] {
  const lib = join(virtualEnvironment, 'lib');
  return list(lib).map((name) => join(lib, name, 'site-packages'));
}

function askPython(): string[] {
  const script = 'import site; print("\\n".join([*site.getsitepackages(), site.getusersitepackages()]))';
  try {
    const printed = execFileSync('python3', ['-c', script], {
      encoding: 'utf8',
      timeout: 5000,
      stdio: 'pipe',
    });
    return printed.split('\n').filter((line) => line !== '');
  } catch {
    return []; // no Python, so no packages
  }
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return []; // missing or not readable
  }
}
