// Preloaded into a server: offsets its clock by the number of milliseconds in the file RELORA_TEST_CLOCK, which may change while it runs.
const { readFileSync } = require('node:fs');
const file = process.env.TEST_CLOCK_FILE;
const Real = Date;
let offsetMs = 0;
const read = () => {
  try {
    offsetMs = Number(readFileSync(file, 'utf8')) || 0;
  } catch {
    offsetMs = 0;
  }
};
if (file !== undefined) {
  read();
  setInterval(read, 100).unref();
  globalThis.Date = new Proxy(Real, {
    construct: (target, args, newTarget) =>
      Reflect.construct(target, args.length === 0 ? [Real.now() + offsetMs] : args, newTarget),
    apply: () => new Real(Real.now() + offsetMs).toString(),
    get: (target, name) => (name === 'now' ? () => Real.now() + offsetMs : Reflect.get(target, name)),
  });
}
