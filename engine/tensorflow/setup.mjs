// `npm run setup:tensorflow`: installs what the device `tensorflow` needs, only in this folder. On installation the package
// @tensorflow/tfjs-node would download its own library; here its binding is compiled against the library in TensorFlow's Python wheel, so
// that everything comes from the two registries: packages by package-lock.json, the wheel by requirements.txt, both with verified hashes.
// `--card` takes the wheel for NVIDIA cards instead. Does nothing if everything is current.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { baseFlags, compileLibrary, fail, findCompiler } from '../compileLibrary.mjs';

const root = dirname(fileURLToPath(import.meta.url));
const unknown = process.argv.slice(2).filter((argument) => argument !== '--card');
if (unknown.length > 0) fail(`Expected nothing or --card, got ${unknown.join(' ')}`);
const processors = { x64: 'x86_64', arm64: 'aarch64' };
const processor = processors[process.arch];
if (process.platform !== 'linux' || processor === undefined)
  fail(
    `TensorFlow's wheel is pinned for Linux on x64 and arm64, this is ${process.platform} on ${process.arch}: ` +
      'install @tensorflow/tfjs-node beside the server, if it serves this system',
  );
const isForCard = process.argv.includes('--card');
if (isForCard && process.arch !== 'x64') fail('The wheel for cards is pinned for x64 alone');

const requirements = isForCard ? 'requirements.card.txt' : 'requirements.txt';
const wheel = join(root, 'build', 'wheel');
const packageFolder = join(root, 'node_modules', '@tensorflow', 'tfjs-node');

unlessCurrent('node_modules', ['package-lock.json'], installPackage);
unlessCurrent(join('build', 'wheel'), [requirements], installWheel);
await compileBinding();
check();

/** Makes a folder unless it was already made from the same files. */
function unlessCurrent(folder, files, make) {
  const sum = createHash('sha256');
  for (const file of files)
    sum
      .update(file)
      .update('\0')
      .update(readFileSync(join(root, file)));
  const made = sum.digest('hex');
  const stamp = join(root, folder, '.made-of');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === made) return;
  make();
  writeFileSync(stamp, made);
}

function installPackage() {
  console.log('Installing @tensorflow/tfjs-node, without the download of its install script …');
  // Not a workspace of the checkout: nothing else uses its packages.
  const npm = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm'];
  run(
    ...npm,
    ...['ci', '--ignore-scripts', '--workspaces=false', '--no-audit', '--no-fund', '--loglevel=error'],
  );
  // The engine's packages of the same version are found instead: two copies would warn about each other.
  for (const name of ['tfjs-core', 'tfjs-backend-cpu'])
    rmSync(join(root, 'node_modules', '@tensorflow', name), { recursive: true });
}

function installWheel() {
  console.log(`Installing the library of TensorFlow (${isForCard ? '3.4 GB' : '270 MB'} to download) …`);
  rmSync(wheel, { recursive: true, force: true });
  mkdirSync(wheel, { recursive: true });
  const systems = ['manylinux_2_27', 'manylinux_2_17', 'manylinux2014', 'manylinux1'];
  run(
    ...[
      process.env.PYTHON ?? 'python3',
      '-m',
      'pip',
      'install',
      '--quiet',
      '--disable-pip-version-check',
      '--root-user-action=ignore',
    ],
    ...['--target', wheel, '--no-deps', '--no-compile', '--require-hashes', '-r', requirements],
    ...['--only-binary=:all:', '--python-version', '3.11', '--implementation', 'cp'],
    ...systems.flatMap((system) => ['--platform', `${system}_${processor}`]),
  );
  // Four fifths of it are Python modules.
  const parts = join(wheel, 'tensorflow');
  for (const name of readdirSync(parts))
    if (name !== 'include' && !name.includes('.so')) rmSync(join(parts, name), { recursive: true });
}

async function compileBinding() {
  const libraries = join(wheel, 'tensorflow');
  await compileLibrary({
    root: packageFolder,
    // The path that the package uses with the newest Node-API version it knows.
    target: join(packageFolder, 'lib', 'napi-v8', 'tfjs_binding.node'),
    compiler: findCompiler(),
    units: ['tfjs_backend', 'tfjs_binding'].map((name) => ({
      name,
      source: `binding/${name}.cc`,
      flags: [...baseFlags, '-DNAPI_VERSION=8', `-I${join(libraries, 'include')}`, '-w'],
    })),
    linkFlags: [
      // Libraries must precede the objects that need them.
      ...[
        '-Wl,--no-as-needed',
        `-L${libraries}`,
        '-l:libtensorflow_cc.so.2',
        '-l:libtensorflow_framework.so.2',
      ],
      `-Wl,-rpath,${libraries}`,
    ],
    what: "TensorFlow's binding",
  });
}

/** A correct sum shows that everything fits together. */
function check() {
  const program = `
    require('node:util').isNullOrUndefined ??= (value) => value === null || value === undefined;
    const tf = require('@tensorflow/tfjs-node');
    if (tf.getBackend() !== 'tensorflow' || tf.add(1, 2).dataSync()[0] !== 3) throw new Error('1 + 2 is not 3');
    console.log('The device tensorflow is ready, on ' + (tf.backend().isUsingGpuDevice ? 'a card' : 'the processor'));`;
  run(process.execPath, '-e', program);
}

function run(command, ...args) {
  const { status, error } = spawnSync(command, args, {
    cwd: root,
    stdio: 'inherit',
    env: { TF_CPP_MIN_LOG_LEVEL: '2', ...process.env },
  });
  if (status !== 0) fail(error?.message ?? `"${[command, ...args.slice(0, 3)].join(' ')} …" failed`);
}
