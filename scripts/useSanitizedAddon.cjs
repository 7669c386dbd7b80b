// Required before everything else in each process of `npm run test:sanitize`: loads the instrumented addons instead of the normal ones,
// also in processes that a server starts with few variables of its own environment. Done here and not by a setting, so that shipped code
// cannot be redirected to another file.
const childProcess = require('node:child_process');
const { existsSync } = require('node:fs');
const { syncBuiltinESMExports } = require('node:module');
const { basename, dirname, join } = require('node:path');

const engine = join(__dirname, '..', 'engine');
const builds = [join(engine, 'native', 'build'), join(engine, 'cuda', 'build', 'host')];
const inherited = Object.fromEntries(
  ['TEST_SANITIZER', 'LD_PRELOAD', 'NODE_OPTIONS', 'ASAN_OPTIONS', 'UBSAN_OPTIONS', 'TSAN_OPTIONS']
    .filter((name) => process.env[name] !== undefined)
    .map((name) => [name, process.env[name]]),
);

const load = process.dlopen;
process.dlopen = (module, file, ...rest) => load.call(process, module, instrumented(file), ...rest);

/** The addon for cards is instrumented for one of the sanitizers only. */
function instrumented(file) {
  const other = join(dirname(file), process.env.TEST_SANITIZER, basename(file));
  return builds.includes(dirname(file)) && existsSync(other) ? other : file;
}

for (const name of ['spawn', 'fork']) {
  const start = childProcess[name];
  childProcess[name] = (file, ...rest) =>
    start(
      file,
      ...rest.map((value) =>
        value?.env === undefined ? value : { ...value, env: { ...value.env, ...inherited } },
      ),
    );
}
syncBuiltinESMExports();
