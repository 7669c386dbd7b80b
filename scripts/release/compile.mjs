// Compiles the native code for a target with Zig, whose compiler includes headers and libraries for every system.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { compileLibrary, fail } from '../../engine/compileLibrary.mjs';
import { cudaUnits, root as cudaRoot } from '../../engine/cuda/units.mjs';
import { nativeUnits, root as nativeRoot } from '../../engine/native/units.mjs';
import { compileConfine } from '../../server/native/compileConfine.mjs';
import { zigVersion } from './targets.mjs';

/** The command of Zig: `ZIG`, or the one on the path or among Python's packages. */
export function findZig() {
  const candidates = process.env.ZIG ? [process.env.ZIG] : ['zig', 'python3 -m ziglang'];
  for (const candidate of candidates) {
    const [command, ...args] = candidate.split(/\s+/).filter(Boolean);
    const { status, stdout } = spawnSync(command, [...args, 'version'], { encoding: 'utf8' });
    if (status === 0 && stdout.trim() === zigVersion) return { command, args };
  }
  return fail(
    `Zig ${zigVersion} was not found (tried ${candidates.join(', ')}): pip install ziglang==${zigVersion}, and name it by ` +
      'ZIG="python3 -m ziglang"',
  );
}

/** Compiles the files of a target into `folder`; returns their paths by name. */
export async function compileTarget({ name, platform: { os, arch }, triple, files }, { folder, zig }) {
  const { command, args } = zig;
  // The version is Zig's, since its clang is part of it.
  const compiler = { command, args: [...args, 'c++', '-target', triple], version: `zig clang ${zigVersion}` };
  // With the builder's paths in it, every builder's file would be different.
  const flagsOf = (root) => [`-ffile-prefix-map=${root}=.`];
  const linkFlags = ['-s', ...(os === 'darwin' ? ['-Wl,-install_name,@rpath/relora.node'] : [])];
  const library = (file, root, units) => ({
    ...{ root, target: join(folder, name, file, file), compiler, units, linkFlags, system: name },
    what: `${file} for ${name}`,
  });
  if (files.includes('relora.node'))
    await compileLibrary(
      library('relora.node', nativeRoot, nativeUnits({ arch, compiler, flags: flagsOf(nativeRoot) })),
    );
  if (files.includes('relora_cuda.node'))
    await compileLibrary(library('relora_cuda.node', cudaRoot, cudaUnits('host', flagsOf(cudaRoot))));
  if (files.includes('confine'))
    compileConfine({ target: join(folder, name, 'confine', 'confine'), compiler, flags: ['-s'] });
  return Object.fromEntries(files.map((file) => [file, join(folder, name, file, file)]));
}
