import { copyFileSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { JobState, type JobArchive, type ReloraClient } from '@relora/sdk';
import { cli } from '../cli/commandLine.js';
import { realServer } from '../sdk/realServer.js';
import { startReceiver, type Received } from '../server/webhookReceiver.js';
import {
  changedArchive,
  pausedJob,
  rewriteRecord,
  serverWithText,
  spec,
  updates,
  uploadText,
  weightsOf,
} from './movedJob.js';
import { temporaryFolder } from './tinyJob.js';

const journalOf = async (client: ReloraClient, name: string) => {
  const events = [];
  for await (const { storeId: _, ...event } of client.watch(name)) {
    events.push(event);
    if (event.kind === 'state' && event.state.to === JobState.PAUSED) break;
  }
  return events;
};

const isFinal = ({ message }: Received): boolean => (message.data.event as { final: boolean }).final;

describe('a job that goes to another server', () => {
  it('has its journal, changes and checkpoints there, and resumes with the bits that it would have had', async () => {
    const [old, next] = [await serverWithText(), await serverWithText()];
    const paused = await pausedJob(old.client, 'my-job');
    // The same job without interruption.
    const whole = await old.client.createJob(spec, { updates });
    await old.client.waitForJob(whole.name);

    const folder = temporaryFolder();
    const relora = cli(folder, old.address);
    const exported = await relora(['job', 'export', 'my-job', 'moved']);
    expect(exported).toMatchObject({ code: 0, errors: '' });
    expect(exported.output).toMatch(
      /^jobs\/my-job: \d+ files of .* in moved, each checked by its SHA-256\.\n$/,
    );
    const imported = await cli(folder, next.address)(['job', 'import', 'moved']);
    expect(imported).toMatchObject({ code: 0, errors: '' });
    expect(imported.output).toMatch(/^jobs\/my-job is imported from jobs\/my-job: paused at step \d+\.\n$/);

    const there = await next.client.getJob('jobs/my-job');
    const { updateTime: _one, etag: _two, imported: from, ...same } = there;
    const { updateTime: _three, etag: _four, imported: none, ...before } = paused;
    expect(same).toEqual(before);
    expect(none).toBeUndefined();
    expect(from).toMatchObject({ job: 'jobs/my-job', origin: undefined });
    expect(await journalOf(next.client, 'jobs/my-job')).toEqual(await journalOf(old.client, 'jobs/my-job'));
    const described = await cli(folder, next.address)(['describe', 'my-job']);
    expect(described.output).toMatch(/\nimported +\d{4}-.*, jobs\/my-job of store /);

    await next.client.resumeJob('jobs/my-job');
    const ended = await next.client.waitForJob('jobs/my-job');
    expect(ended.state).toBe(JobState.SUCCEEDED);
    expect(ended.updates).toEqual((await old.client.getJob(whole.name)).updates);
    expect(await weightsOf(next.client, 'jobs/my-job')).toEqual(await weightsOf(old.client, whole.name));

    // When finished it moves back under another name, with its later exports and evaluations.
    await next.client.evaluate('jobs/my-job', {
      questions: '{"question": "a", "choices": ["b", "c"], "answer": 0}',
    });
    const back = temporaryFolder();
    await next.client.exportJob('jobs/my-job', back);
    const again = await old.client.importJob(back, { jobId: 'came-back' });
    expect(again).toMatchObject({ name: 'jobs/came-back', state: JobState.SUCCEEDED });
    expect((await old.client.getJob('jobs/came-back')).evaluations).toHaveLength(1);
    expect(await weightsOf(old.client, 'jobs/came-back')).toEqual(await weightsOf(old.client, whole.name));
    const target = temporaryFolder();
    await old.client.downloadArtifact('jobs/came-back', target);
    expect(readdirSync(target)).toContain('model.safetensors');
    // A repeated request gets the same answer; a different job under that name is refused.
    expect((await old.client.importJob(back, { jobId: 'came-back' })).name).toBe('jobs/came-back');
    await expect(old.client.importJob(back, { jobId: 'my-job' })).rejects.toMatchObject({
      reason: 'JOB_EXISTS',
    });
  });

  it('is followed there by webhooks from now on, and by trackers from its first event', async () => {
    const [there, here] = [temporaryFolder(), temporaryFolder()];
    const old = await serverWithText({ RELORA_TENSORBOARD_FOLDER: there });
    const paused = await pausedJob(old.client, 'my-job');
    const folder = temporaryFolder();
    await old.client.exportJob(paused.name, folder);
    // Jobs that are created within minutes of a reader count as created after it.
    rewriteRecord(folder, (record) => record.replace(/"createTimeMs":\d+/, '"createTimeMs":1000'));
    const next = await serverWithText({
      RELORA_TENSORBOARD_FOLDER: here,
      RELORA_WEBHOOK_NETWORKS: '127.0.0.1',
    });
    const receiver = await startReceiver();
    await next.client.createWebhook(receiver.url);
    await next.client.importJob(folder);
    await next.client.resumeJob(paused.name);
    await next.client.waitForJob(paused.name);
    await receiver.until((all) => all.some(isFinal));
    expect(Number(receiver.received[0]!.message.data.sequence)).toBe(Number(paused.lastSequence) + 1);

    // Points depend only on the events: those of this server begin with those that the other one wrote.
    const pointsIn = (parent: string): Buffer => {
      const files = readdirSync(parent, { recursive: true, encoding: 'utf8' });
      const file = files.find((name) => name.endsWith('.relora'));
      const bytes = file === undefined ? Buffer.alloc(0) : readFileSync(join(parent, file));
      return bytes.length === 0 ? bytes : bytes.subarray(16 + Number(bytes.readBigUInt64LE(0)));
    };
    await expect.poll(() => pointsIn(there).length).toBeGreaterThan(0);
    await old.server.stop(); // it writes no more
    const before = pointsIn(there);
    await expect.poll(() => pointsIn(here).length).toBeGreaterThan(before.length);
    expect(pointsIn(here).subarray(0, before.length).equals(before)).toBe(true);
  });

  it('is refused where a file was changed, cut off or left out, is of another version, or lacks its data', async () => {
    const old = await serverWithText();
    const job = await pausedJob(old.client, 'my-job');
    const folder = temporaryFolder();
    await old.client.exportJob(job.name, folder);
    const archive = JSON.parse(readFileSync(join(folder, 'archive.json'), 'utf8')) as JobArchive;
    const names = archive.files.map(({ fileName }) => fileName);
    expect(names[0]).toBe('job.jsonl');
    const base = names.find((name) => name.endsWith('/base.safetensors'))!;

    const changed = (change: (copy: string) => void): string => changedArchive(folder, change);
    const rewrite = rewriteRecord;
    const list = (copy: string, edit: (archive: JobArchive) => JobArchive) =>
      writeFileSync(join(copy, 'archive.json'), JSON.stringify(edit(structuredClone(archive))));

    const { client } = await serverWithText();
    const refusals: [change: (copy: string) => void, expected: object][] = [
      [
        (copy) => {
          const bytes = readFileSync(join(copy, base));
          bytes[bytes.length - 5]! ^= 1;
          writeFileSync(join(copy, base), bytes);
        },
        { reason: 'UPLOAD_HASH_WRONG' },
      ],
      [
        (copy) => truncateSync(join(copy, base), statSync(join(copy, base)).size - 100),
        { reason: 'UPLOAD_INCOMPLETE' },
      ],
      [
        (copy) => list(copy, (entry) => ({ ...entry, formatVersion: 2 })),
        { reason: 'REQUEST_INVALID', message: expect.stringContaining('the version that this server reads') },
      ],
      [
        (copy) =>
          list(copy, (entry) => ({
            ...entry,
            files: entry.files.filter(({ fileName }) => fileName !== base),
          })),
        { reason: 'JOB_ARCHIVE_INVALID', message: expect.stringContaining(base) },
      ],
      [
        (copy) => rewrite(copy, (record) => record.replace('"rank":4', '"rank":2')),
        { reason: 'JOB_ARCHIVE_INVALID' },
      ],
      [
        (copy) => rewrite(copy, (record) => record.replace(/\{"kind":"event","sequence":7,.*\n/, '')),
        {
          reason: 'JOB_ARCHIVE_INVALID',
          message: expect.stringContaining('the journal continues with event 7'),
        },
      ],
      [(copy) => rewrite(copy, (record) => record.slice(0, -200)), { reason: 'JOB_ARCHIVE_INVALID' }],
      [
        (copy) => rewrite(copy, (record) => record.replace('"state":"paused"', '"state":"running"')),
        { reason: 'JOB_ARCHIVE_INVALID', message: expect.stringContaining('line 1 of job.jsonl') },
      ],
      ...[
        ['"attempt":1,', `"attempt":${Number.MAX_SAFE_INTEGER},`],
        [/"displayName":"[^"]*"/, '"displayName":"a\\u0000b"'],
      ].map(([from, to]): [(copy: string) => void, object] => [
        (copy) => rewrite(copy, (record) => record.replace(from as string, to as string)),
        { reason: 'JOB_ARCHIVE_INVALID', message: expect.stringContaining('line 1 of job.jsonl') },
      ]),
      [
        (copy) =>
          rewrite(copy, (record) =>
            record.replace(/"manifestSha256":"[0-9a-f]{64}"/, `"manifestSha256":"${'0'.repeat(64)}"`),
          ),
        { reason: 'JOB_ARCHIVE_DATA' },
      ],
    ];
    for (const [change, expected] of refusals)
      await expect(
        client.importJob(changed(change), { deadlineMs: 1000 }),
        String(change),
      ).rejects.toMatchObject(expected);
    await expect(client.getJob(job.name)).rejects.toMatchObject({ reason: 'JOB_NOT_FOUND' });

    // A server without the data set reports that; the import continues once the data set exists.
    const bare = await realServer();
    await expect(bare.client.importJob(folder)).rejects.toMatchObject({ reason: 'DATASET_NOT_FOUND' });
    await uploadText(bare.client);
    expect((await bare.client.importJob(folder)).state).toBe(JobState.PAUSED);

    // An interrupted export continues: one of its files exists already, and a part of another.
    const part = temporaryFolder();
    copyFileSync(join(folder, 'job.jsonl'), join(part, 'job.jsonl'));
    await old.client.exportJob(job.name, part);
    expect(readdirSync(join(part, 'checkpoints'))).toEqual(readdirSync(join(folder, 'checkpoints')));
    // A job that can still change cannot be exported.
    await old.client.resumeJob(job.name);
    await expect(old.client.exportJob(job.name, temporaryFolder())).rejects.toMatchObject({
      reason: 'JOB_STATE_WRONG',
    });
  });
});
