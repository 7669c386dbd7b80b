// Fills a store with any number of finished jobs: copies of the rows of one that ran, under other names.
import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { defaultRunSpec } from '../../engine/dist/plan/index.js';
import { claimJob, openParts } from './openParts.mjs';

const rowsPerInsert = 100;

/** @param artifact content of the single file of an artifact that each job has */
export async function fillStore(dataFolder, jobCount, { artifact } = {}) {
  const { store, parts } = await openParts(dataFolder);
  const { key } = await claimJob(parts, {
    jobId: 'job-0',
    displayName: 'One that ran',
    labels: { team: 'tales' },
    spec: defaultRunSpec(),
  });
  await parts.attempts.failed(key, { reason: 'TRAINER_ERROR', message: 'The end' });
  const { db } = store;
  const template = await db
    .selectFrom('jobs')
    .selectAll()
    .where('id', '=', 'job-0')
    .executeTakeFirstOrThrow();
  const events = await db.selectFrom('events').selectAll().where('job_id', '=', 'job-0').execute();
  const startMs = Date.now() - jobCount * 1000;
  await db.transaction().execute(async (trx) => {
    for (let start = 1; start < jobCount; start += rowsPerInsert) {
      const ids = Array.from(
        { length: Math.min(rowsPerInsert, jobCount - start) },
        (_, index) => `job-${start + index}`,
      );
      await trx
        .insertInto('jobs')
        .values(
          ids.map((id, index) => ({
            ...template,
            id,
            name: id,
            create_time_ms: startMs + (start + index) * 1000,
          })),
        )
        .execute();
      await trx
        .insertInto('events')
        .values(ids.flatMap((id) => events.map((event) => ({ ...event, job_id: id }))))
        .execute();
      await trx
        .insertInto('job_labels')
        .values(ids.map((id) => ({ job_id: id, key: 'team', value: 'tales' })))
        .execute();
    }
  });
  if (artifact !== undefined) await addArtifact(db, dataFolder, artifact);
  await parts.tasks.stop();
  await store.close();
}

async function addArtifact(db, dataFolder, content) {
  const folder = join(dataFolder, 'jobs/job-0/artifacts/model-1');
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'model.safetensors'), content);
  await db
    .insertInto('artifacts')
    .values({
      job_id: 'job-0',
      id: 'model-1',
      kind: 'mergedModel',
      step: 1,
      size_bytes: content.length,
      create_time_ms: Date.now(),
    })
    .execute();
  await db
    .insertInto('artifact_files')
    .values({
      job_id: 'job-0',
      artifact_id: 'model-1',
      file_name: 'model.safetensors',
      size_bytes: content.length,
      sha256: createHash('sha256').update(content).digest('hex'),
    })
    .execute();
}
