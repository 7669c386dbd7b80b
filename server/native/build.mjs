// Builds the program that confines children, which needs Linux and supports two kinds of processors. Run directly, or by
// `npm run build`.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findCompiler } from '@relora/engine/compileLibrary.mjs';
import { compileConfine } from './compileConfine.mjs';

const root = dirname(fileURLToPath(import.meta.url));
if (process.platform === 'linux' && ['x64', 'arm64'].includes(process.arch))
  compileConfine({ target: join(root, 'build', 'confine'), compiler: findCompiler() });
