// Required before everything else in each process of `npm run test:sanitize`: loads the instrumented native addon instead of the normal
// one. Done here and not by a setting, so that shipped code cannot be redirected to another file.
const { join, sep } = require('node:path');

const build = join(__dirname, '..', 'engine', 'native', 'build') + sep;
const load = process.dlopen;

process.dlopen = (module, file, ...rest) =>
  load.call(
    process,
    module,
    file === join(build, 'relora.node') ? join(build, process.env.RELORA_SANITIZER, 'relora.node') : file,
    ...rest,
  );
