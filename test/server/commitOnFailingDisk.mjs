// Opens a store, commits rows and reads them while some calls on its files fail, as failingDisk.ts sets up; writes each acknowledged key to
// stdout. Nothing but the disk may be blamed for what fails.
//   node commitOnFailingDisk.mjs FOLDER FIRST_KEY COUNT PERMILLE
// The disk fails from the beginning if the caller says so to it, and else from when the store is open.
import { openSync, writeSync } from 'node:fs';
import { openDatabase } from '../../server/dist/store/database.js';
import { isDiskBroken } from '../../server/dist/store/storeError.js';

const [folder, ...numbers] = process.argv.slice(2);
const [firstKey, count, permille] = numbers.map(Number);
const db = await openDatabase(folder).catch((error) => {
  // Not even opening worked; what was there must stay.
  if (!/see to the disk|can be written/.test(error.message)) throw error;
  process.exit(0);
});
writeSync(openSync(process.env.FAULTS_CONTROL, 'r+'), Uint32Array.of(3, permille), 0, 8, 0);
for (let key = firstKey; key < firstKey + count; key++) {
  try {
    await db
      .insertInto('blob_chunks')
      .values({ blob: 'x'.repeat((key * 37) % 3000), chunk_index: key, crc32c: 0 })
      .execute();
    writeSync(1, `${key}\n`);
    if (key % 10 === 0) await db.selectFrom('blob_chunks').selectAll().execute();
  } catch (error) {
    if (!isDiskBroken(error)) throw error;
  }
}
process.kill(process.pid, 'SIGKILL');
