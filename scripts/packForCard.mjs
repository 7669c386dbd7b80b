// `node scripts/packForCard.mjs [ARCHIVE]`: packs what check:gpu and bench:gpu need, with Node.js and a text, for a machine with a card that
// has neither npm nor a network (Linux on x64). In a built checkout; the text is fetched once. With `--folder FOLDER` nothing is
// compressed, and the folder holds what would be packed.
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { prepareCorpus } from '../examples/demo/corpus.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values, positionals } = parseArgs({
  options: { folder: { type: 'string' } },
  allowPositionals: true,
});
if (positionals.length > 1) fail(`Expected one archive, got ${positionals.join(' ')}`);
if (process.platform !== 'linux' || process.arch !== 'x64')
  fail(
    `Node.js and native code are packed for Linux on x64, but this is ${process.platform} on ${process.arch}`,
  );

/** Packages that only compilers read. */
const onlyForBuilds = /\/(@types|@webgpu|undici-types|node-api-headers|node-addon-api)(\/|$)/;

/** Of the checkout: what is built, and what is run from its sources. */
const own = [
  'LICENSE',
  'package.json',
  'docs/gpu.md',
  'bench/gpu',
  'bench/sides',
  'examples/demo',
  ...['dist', 'native/build', 'cuda/build/host', 'cuda/kernels'].map((part) => `engine/${part}`),
  ...['dist', 'native/build', 'bin'].map((part) => `server/${part}`),
  ...['sdk/dist', 'cli/dist', 'cli/bin', 'page/dist'],
  ...['engine', 'sdk', 'server', 'cli', 'page'].map((workspace) => `${workspace}/package.json`),
];
const missing = own.filter((path) => !existsSync(join(root, path)));
if (missing.length > 0) fail(`Not built yet: ${missing.join(', ')}. Run "npm run setup" first`);

const folder =
  values.folder === undefined ? mkdtempSync(join(tmpdir(), 'relora-pack-')) : resolve(values.folder);
try {
  for (const path of own) copy(path);
  for (const path of productionPackages()) copy(path);
  const corpus = '.relora/demo/corpus';
  prepareCorpus(join(root, corpus));
  copy(corpus);
  const node = join(folder, 'bin', 'node');
  mkdirSync(dirname(node));
  cpSync(process.execPath, node, { dereference: true });
  spawnSync('strip', [node]); // a smaller one, if there is a strip
  if (values.folder === undefined) compress(positionals[0] ?? 'relora-card.tar.xz');
} finally {
  if (values.folder === undefined) rmSync(folder, { recursive: true });
}

/** Folders of what `npm install --omit=dev` would install, relative to the checkout; workspaces are links. */
function productionPackages() {
  // It exits with an error on anything unusual, such as a package of another version, which is no reason not to pack.
  const { stdout } = spawnSync('npm', ['ls', '--omit=dev', '--all', '--parseable'], {
    cwd: root,
    encoding: 'utf8',
  });
  const paths = stdout.split('\n').map((path) => relative(root, path));
  return paths.filter((path) => path.startsWith('node_modules/') && !onlyForBuilds.test(path));
}

function copy(path) {
  cpSync(join(root, path), join(folder, path), {
    recursive: true,
    verbatimSymlinks: true,
    filter: (from) => isNeeded(relative(root, from)),
  });
}

function isNeeded(path) {
  // A package inside another is in the list itself.
  const inside = path.startsWith('node_modules/') ? path.slice(path.lastIndexOf('node_modules/')) : path;
  if (/^node_modules\/@tensorflow\/tfjs-[^/]+\/dist\/./.test(inside))
    return /dist\/tf-[a-z-]+\.node\.js$/.test(inside);
  if (/^node_modules\/tokenizers\/.*\.node$/.test(inside)) return inside.endsWith('linux-x64-gnu.node');
  if (/^node_modules\/.*\/prebuilds\/./.test(inside)) return /\/prebuilds\/linux-x64(\/|$)/.test(inside);
  if (/^node_modules\/(@grpc\/grpc-js|@photostructure\/sqlite)\/src(\/|$)/.test(inside)) return false;
  // Addons for the sanitizers and other processors.
  if (/^engine\/(native\/build|cuda\/build\/host)\/[^/]+\//.test(path)) return false;
  return (
    !/(\.map|\.d\.[cm]?ts|\.tsbuildinfo|\.o|\.md)$|\/dist-types(\/|$)/.test(path) || path === 'docs/gpu.md'
  );
}

function compress(archive) {
  const path = resolve(archive);
  const parts = `tar cf - . | xz -T0 --x86 --lzma2=preset=9e > "$1"`;
  execFileSync('bash', ['-o', 'pipefail', '-c', parts, 'bash', path], { cwd: folder, stdio: 'inherit' });
  console.log(`${path}: ${(statSync(path).size / 2 ** 20).toFixed(1)} MiB`);
  console.log(`Unpack it with: mkdir relora && tar -C relora -xJf ${basename(path)} && cd relora`);
}

function fail(message) {
  console.error(message);
  process.exit(2);
}
