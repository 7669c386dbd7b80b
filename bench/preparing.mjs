// How fast text is read and encoded: `node bench/preparing.mjs [--megabytes 8] [--output FILE]`. Uses prose from the installed packages,
// and processor seconds, so that other load on the machine does not count. Our encoder and the library encode the same pieces. For reading,
// the text is repeated several times, and read as a whole and in parts by two parallel threads.
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { byteLevelEncoder } from '../engine/dist/data/byteLevelBpe.js';
import { defaultLimits } from '../engine/dist/data/dataLimits.js';
import { firstPass, firstPassToJson } from '../engine/dist/data/firstPass.js';
import { loadNative } from '../engine/dist/data/nativeTokenizer.js';
import { beginOfPart, filePartsOf } from '../engine/dist/data/readSource.js';
import { checkTokenizerJson } from '../engine/dist/data/tokenizerJson.js';
import { trainBpe } from '../engine/dist/data/trainBpe.js';

const { values } = parseArgs({
  options: { megabytes: { type: 'string', default: '8' }, output: { type: 'string' } },
});
const bytesMax = Number(values.megabytes) * 1e6;
const folder = mkdtempSync(join(tmpdir(), 'relora-preparing-'));
const pieceLength = 1 << 16;
const [timesOver, partCount] = [16, 8];

const rows = [];
try {
  const documents = proseBelow('node_modules');
  const text = documents.join('\n\n');
  const bytes = Buffer.byteLength(text);
  const many = Array.from({ length: timesOver }, () => documents).flat();
  const quoted = (document) => `"${document.replaceAll('"', '""')}"`;
  const parquet = (codec) =>
    Buffer.from(
      parquetWriteBuffer({
        columnData: [{ name: 'text', data: many, type: 'STRING' }],
        rowGroupSize: Math.ceil(many.length / 64),
        codec,
      }),
    );
  for (const [name, format, content] of [
    ['plain text', 'text', () => many.join('\n\n')],
    ['JSON lines', 'jsonl', () => many.map((document) => JSON.stringify({ text: document })).join('\n')],
    ['a list in JSON', 'json', () => JSON.stringify(many.map((document) => ({ text: document })))],
    ['CSV', 'csv', () => ['text', ...many.map(quoted)].join('\n')],
    ['Parquet', 'parquet', () => parquet('UNCOMPRESSED')],
    ['Parquet, packed by Snappy', 'parquet', () => parquet('SNAPPY')],
  ]) {
    const path = join(folder, `source.${format}`);
    writeFileSync(path, content());
    const { size } = statSync(path);
    const partBytes = Math.ceil(size / partCount);
    const file = { path, name: path, format, split: 'auto' };
    const optionsWith = (filePartBytes) => ({
      ...{ fields: ['text'], chat: null, chatOptions: null, heldOutShare: 0.01, seed: 1 },
      limits: { ...defaultLimits, filePartBytes },
    });
    const signal = new AbortController().signal;
    const nothing = { reading: undefined, isDue: false, set: async () => {} };
    let found = '';
    const pass = async (filePartBytes, threads) => {
      const options = optionsWith(filePartBytes);
      const one = firstPassToJson(await firstPass([file], options, null, () => {}, signal, threads, nothing));
      if (found !== '' && one !== found) throw new Error(`${name} is not the same in parts`);
      found = one;
    };
    const textBytes = bytes * timesOver;
    await rate(`first pass of ${name}`, textBytes, () => pass(2 ** 40, 1));
    const options = optionsWith(partBytes);
    const parts = await filePartsOf(file, options);
    if (parts === null) continue;
    await rate(`first pass of ${name}, in ${parts.parts.length} parts by two threads`, textBytes, () =>
      pass(partBytes, 2),
    );
    if (format === 'parquet') continue; // its footer lists the positions
    await rate(`where the parts of ${name} begin`, size, async () => {
      for (const part of parts.parts) await beginOfPart(file, format, part, options);
    });
  }

  const sample = join(folder, 'sample.txt');
  writeFileSync(sample, text.slice(0, 2e6));
  const trained = JSON.parse(await trainBpe(sample, 16_384, join(folder, 'scratch.json')));
  const pieces = [];
  for (let at = 0; at < text.length; at += pieceLength) pieces.push(text.slice(at, at + pieceLength));
  for (const [name, parts] of kinds()) {
    const checked = checkTokenizerJson(JSON.stringify({ ...trained, ...parts }), 'anyone', {
      isTrusted: true,
    });
    const own = byteLevelEncoder(checked);
    const native = loadNative(checked);
    const served = pieces.filter((piece) => own.serves(piece)).length;
    let counted = 0;
    await rate(
      `${name}, own encoder (${Math.round((100 * served) / pieces.length)} % of the pieces)`,
      bytes,
      async () => {
        for (const piece of pieces)
          counted += own.serves(piece) ? own.encode(piece).ids.length : (await native.encode(piece)).length;
      },
    );
    let other = 0;
    await rate(`${name}, library`, bytes, async () => {
      for (const piece of pieces) other += (await native.encode(piece)).length;
    });
    if (counted !== other)
      throw new Error(`${name}: ${counted} tokens by our own encoder, ${other} by the library`);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
const report = `# Preparing text

${cpus()[0]?.model ?? ''}, ${availableParallelism()} processors, load ${loadavg()[0].toFixed(1)}, Node ${process.versions.node}. \`node bench/preparing.mjs\`:
${values.megabytes} MB of the prose of packages in pieces of ${pieceLength} characters, a vocabulary of 16,384 trained on it, by processor time, which others on the same
processors make longer, and by the clock. It is read ${timesOver} times over; a rate is of the text, and of where parts begin of the file. The goal is
10 GB an hour and core, or the limit of the tokenizer.

| what | MB per second of a core | GB an hour and core | MB a second by the clock |
| --- | ---: | ---: | ---: |
${rows.map((row) => `| ${row.join(' | ')} |`).join('\n')}
`;
console.log(report);
if (values.output) writeFileSync(values.output, report);

async function rate(name, bytes, work) {
  const before = process.cpuUsage();
  const startMs = performance.now();
  await work();
  const seconds = (performance.now() - startMs) / 1000;
  const { user, system } = process.cpuUsage(before);
  const perSecond = bytes / (user + system);
  rows.push([name, perSecond.toFixed(1), (3.6 * perSecond).toFixed(0), (bytes / 1e6 / seconds).toFixed(1)]);
  console.log(rows.at(-1).join(', '));
}

function kinds() {
  const split = (digits) => ({
    type: 'Split',
    pattern: {
      Regex: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`,
    },
    ...{ behavior: 'Isolated', invert: false },
  });
  const byteLevel = (use_regex) => ({
    type: 'ByteLevel',
    add_prefix_space: false,
    trim_offsets: true,
    use_regex,
  });
  const sequence = (...pretokenizers) => ({ type: 'Sequence', pretokenizers });
  return [
    ['GPT-2', {}],
    ['Llama 3', { pre_tokenizer: sequence(split('{1,3}'), byteLevel(false)) }],
    ['Qwen', { pre_tokenizer: sequence(split(''), byteLevel(false)), normalizer: { type: 'NFC' } }],
    ['SmolLM2', { pre_tokenizer: sequence({ type: 'Digits', individual_digits: true }, byteLevel(true)) }],
  ];
}

/** Prose from files below a folder, up to a size. */
function proseBelow(root) {
  const found = [];
  let bytes = 0;
  const walk = (path) => {
    for (const name of readdirSync(path).sort()) {
      if (bytes >= bytesMax) return;
      const at = join(path, name);
      const stat = statSync(at, { throwIfNoEntry: false });
      if (stat?.isDirectory()) walk(at);
      else if (stat !== undefined && name.endsWith('.md')) {
        found.push(readFileSync(at, 'utf8'));
        bytes += stat.size;
      }
    }
  };
  walk(root);
  return found;
}
