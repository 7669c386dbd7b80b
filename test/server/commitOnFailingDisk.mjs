// Opens a store and commits rows while some calls on its files fail, as failingDisk.ts sets up; writes each acknowledged key to stdout.
//   node commitOnFailingDisk.mjs FOLDER FIRST_KEY COUNT PERMILLE
// The disk fails from the beginning if the caller says so to it, and else from when the store is open.
import { openSync, writeSync } from 'node:fs';
import { openDatabase } from '../../server/dist/store/database.js';

const [folder, ...numbers] = process.argv.slice(2);
const [firstKey, count, permille] = numbers.map(Number);
const db = await openDatabase(folder).catch(() => process.exit(0)); // not even opening worked; what was there must stay
writeSync(openSync(process.env.FAULTS_CONTROL, 'r+'), Uint32Array.of(3, permille), 0, 8, 0);
for (let key = firstKey; key < firstKey + count; key++) {
  try {
    await db
      .insertInto('blob_chunks')
      .values({ blob: 'x'.repeat((key * 37) % 3000), chunk_index: key, crc32c: 0 })
      .execute();
    writeSync(1, `${key}\n`);
  } catch (error) {
    if (!String(error.code).startsWith('SQLITE_')) throw error;
  }
}
process.kill(process.pid, 'SIGKILL');
