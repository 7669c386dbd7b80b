// The conformance suite on the native device, with the best instruction set of the processor: node conformance.mjs EXPECTED prints, as JSON,
// how many cases ran in each precision and what was wrong in them. With `--definitions` it computes the expected values and writes them to
// the file EXPECTED instead: that is done once, on a processor that is not emulated.
import { readFileSync, writeFileSync } from 'node:fs';
import {
  casesOf,
  checkCase,
  optimizerCases,
  updateCases,
  Bench,
} from '../../engine/dist/conformance/index.js';
import { loadNativeAddon, openDevice } from '../../engine/dist/index.js';

const [expectedFile, mode] = process.argv.slice(2);
const cases = [...casesOf('small'), ...casesOf('larger'), ...updateCases, ...optimizerCases];

if (mode === '--definitions') {
  const reference = await openDevice({ device: 'reference', precision: 'float32' });
  const expected = [];
  for (const one of cases) {
    const results = [...(await one.run(new Bench(reference)))];
    expected.push(
      results.map(([name, values]) => [
        name,
        Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64'),
      ]),
    );
  }
  writeFileSync(expectedFile, JSON.stringify(expected));
} else {
  const expected = JSON.parse(readFileSync(expectedFile, 'utf8')).map(
    (results) => new Map(results.map(([name, text]) => [name, floats(text)])),
  );
  const [instructionSet] = loadNativeAddon().describe().instructionSets;
  const found = {};
  for (const [precision, tolerance] of [
    ['float32', 2e-5],
    ['bfloat16', 0.03],
  ]) {
    const device = await openDevice({ device: 'native', precision, instructionSet, threads: 2 });
    const wrong = [];
    let caseCount = 0;
    for (const [index, one] of cases.entries()) {
      // In the smallest shapes a rounding to 8 bits is most of the value.
      if (precision === 'bfloat16' && one.name.endsWith(' small')) continue;
      const result = await checkCase(device, one, expected[index], tolerance);
      caseCount++;
      for (const { result: name, difference } of result.wrong)
        wrong.push(`${one.name}, ${name}: off by ${difference}`);
      for (const name of result.changed) wrong.push(`${one.name}, ${name}: other bits the second time`);
    }
    device.close();
    found[`${instructionSet} ${precision}`] = { caseCount, wrong };
  }
  console.log(JSON.stringify(found));
}

function floats(text) {
  const bytes = Buffer.from(text, 'base64');
  return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
}
