import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { JobState, type JobArchive, type ReloraClient } from '@relora/sdk';
import { cli } from '../cli/commandLine.js';
import { realServer } from '../sdk/realServer.js';
import { patienceMs } from '../patience.mjs';
import {
  changedArchive,
  pausedJob,
  rewriteNamedFile,
  rewriteRecord,
  serverWithText,
  spec,
  updates,
  weightsOf,
} from './movedJob.js';
import { temporaryFolder, tinyText } from './tinyJob.js';

const program = fileURLToPath(new URL('../../cli/bin/relora.js', import.meta.url));

async function namesOf(client: ReloraClient): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of client.listDatasets()) names.push(name);
  return names;
}

describe('a job that goes to a server without its data', () => {
  it(
    'brings them along in one file, and resumes with the bits that it would have had',
    async () => {
      const old = await serverWithText();
      await pausedJob(old.client, 'my-job');
      const whole = await old.client.createJob(spec, { updates });
      await old.client.waitForJob(whole.name);
      const folder = temporaryFolder();
      const exported = await cli(
        folder,
        old.address,
      )(['job', 'export', 'my-job', '-o', 'job.tar', '--with-data']);
      expect(exported).toMatchObject({ code: 0, errors: '' });
      expect(exported.output).toMatch(/^jobs\/my-job: .* in job\.tar, each file checked by its SHA-256\.\n$/);

      const bare = await realServer();
      const imported = await cli(folder, bare.address)(['job', 'import', 'job.tar']);
      expect(imported).toMatchObject({ code: 0, errors: '' });
      const [there, here] = [
        await old.client.getDataset('datasets/tiny-text'),
        await bare.client.getDataset('datasets/tiny-text'),
      ];
      expect(here).toMatchObject({ ...there, files: there.files.map(({ fileName }) => ({ fileName })) });
      expect(await bare.client.previewDataset(here.name)).toEqual(await old.client.previewDataset(here.name));
      await bare.client.resumeJob('jobs/my-job');
      expect((await bare.client.waitForJob('jobs/my-job')).state).toBe(JobState.SUCCEEDED);
      expect(await weightsOf(bare.client, 'jobs/my-job')).toEqual(await weightsOf(old.client, whole.name));

      // The same through a pipe; an existing object with the same name and content stays.
      const pipe = async (from: string, to: string): Promise<string> => {
        const node = `${process.execPath} ${program}`;
        const shell = spawn('sh', [
          '-c',
          `${node} job export my-job -o - --with-data --address ${from} | ${node} job import - --id through-a-pipe --address ${to}`,
        ]);
        let text = '';
        for (const stream of [shell.stdout, shell.stderr])
          stream.on('data', (data: Buffer) => (text += data.toString()));
        await once(shell, 'close');
        return text;
      };
      expect(await pipe(old.address, bare.address)).toMatch(
        /^jobs\/through-a-pipe is imported from jobs\/my-job/,
      );
      expect(await namesOf(bare.client)).toEqual(['datasets/tiny-text']);
    },
    patienceMs,
  );

  it('brings them once where several jobs come with them at the same time', async () => {
    const old = await serverWithText();
    await pausedJob(old.client, 'my-job');
    const folder = temporaryFolder();
    await old.client.exportJob('jobs/my-job', folder, { withDatasets: true });
    const bare = await realServer();
    const ids = ['copy-1', 'copy-2', 'copy-3', 'copy-4'];
    const jobs = await Promise.all(
      ids.map(async (jobId) => await bare.client.importJob(folder, { jobId, deadlineMs: 1000 })),
    );
    expect(jobs.map(({ name }) => name)).toEqual(ids.map((id) => `jobs/${id}`));
    expect(await namesOf(bare.client)).toEqual(['datasets/tiny-text']);
    const name = 'datasets/tiny-text';
    expect(await bare.client.previewDataset(name)).toEqual(await old.client.previewDataset(name));
    expect(readdirSync(join(bare.dataFolder, name))).toEqual(['prepared']);
  });

  it('is exported as it is at one moment, whatever is found of it meanwhile', async () => {
    const { client } = await serverWithText();
    await pausedJob(client, 'my-job');
    const evaluate = async () =>
      await client.evaluate('jobs/my-job', {
        questions: '{"question": "a", "choices": ["b", "c"], "answer": 0}',
      });
    await evaluate();
    const files = new Map<string, Buffer>();
    for await (const { fileName, sizeBytes, content } of client.exportJobFiles('jobs/my-job')) {
      const pieces: Uint8Array[] = [];
      if (fileName === 'archive.json') await evaluate();
      for await (const piece of content) pieces.push(piece);
      files.set(fileName, Buffer.concat(pieces));
      expect(files.get(fileName)!.length).toBe(sizeBytes);
    }
    const next = await serverWithText();
    const read = async function* (fileName: string, offset: number) {
      await Promise.resolve();
      yield files.get(fileName)!.subarray(offset);
    };
    const archive = files.get('archive.json')!.toString();
    await next.client.importJob({ archive, read });
    expect((await next.client.getJob('jobs/my-job')).evaluations).toHaveLength(1);
    expect((await client.getJob('jobs/my-job')).evaluations).toHaveLength(2);
  });
});

describe('an archive that somebody made up', () => {
  it('takes no more memory than a real one, and nothing of it is stored', async () => {
    const old = await serverWithText();
    await pausedJob(old.client, 'my-job');
    const folder = temporaryFolder();
    await old.client.exportJob('jobs/my-job', folder, { withDatasets: true });
    const names = (JSON.parse(readFileSync(join(folder, 'archive.json'), 'utf8')) as JobArchive).files.map(
      ({ fileName }) => fileName,
    );
    const manifest = names.find((name) => /^checkpoints.*manifest\.json$/.test(name))!;
    const tokens = names.find((name) => /^datasets\/tiny-text\/train-.*\.bin$/.test(name))!;
    const rename = (copy: string, from: string, to: string) => {
      const list = join(copy, 'archive.json');
      writeFileSync(list, readFileSync(list, 'utf8').replaceAll(from, to));
    };
    const evaluation = JSON.stringify({
      ...{ kind: 'evaluation', timeMs: 1, model: 'm', step: 1, choices: null },
      datasets: Array.from({ length: 64 }, () => ({
        ...{ dataset: 'd'.repeat(512), loss: 1, perplexity: 1, bitsPerByte: 1, tokenCount: 1 },
      })),
    });
    const { client, dataFolder } = await realServer();
    const refusals: [name: string, change: (copy: string) => void, expected: object][] = [
      [
        'a manifest without end',
        (copy) =>
          rewriteNamedFile(copy, manifest, (content) =>
            Buffer.concat([content, Buffer.alloc(33 << 20, ' ')]),
          ),
        { reason: 'JOB_ARCHIVE_INVALID', message: expect.stringContaining('has at most 33554432 bytes') },
      ],
      [
        'a record without end',
        (copy) =>
          rewriteRecord(copy, (record) => {
            const lines = record.trimEnd().split('\n').slice(0, -1);
            lines.push(...Array.from({ length: 1800 }, () => evaluation));
            return `${[...lines, JSON.stringify({ kind: 'end', lineCount: lines.length })].join('\n')}\n`;
          }),
        { reason: 'JOB_ARCHIVE_INVALID', message: expect.stringContaining('bytes besides events') },
      ],
      [
        'times that no answer can say',
        (copy) =>
          rewriteRecord(copy, (record) =>
            record.replace(/"createTimeMs":\d+/, '"createTimeMs":253402300800000'),
          ),
        { reason: 'JOB_ARCHIVE_INVALID', message: expect.stringContaining('line 1 of job.jsonl') },
      ],
      [
        'a name that leads out',
        (copy) => rename(copy, tokens, 'datasets/../../store.db'),
        {
          reason: 'REQUEST_INVALID',
          message: expect.stringContaining('a file of a checkpoint, an artifact or a data set'),
        },
      ],
      [
        'a name in the record that leads out',
        (copy) =>
          rewriteRecord(copy, (record) =>
            record.replace(/"fileName":"train-[^"]*"/, '"fileName":"../train"'),
          ),
        { reason: 'JOB_ARCHIVE_INVALID', message: expect.stringContaining('is one that this server knows') },
      ],
      [
        'a size beyond all disks',
        (copy) => {
          const list = join(copy, 'archive.json');
          const archive = JSON.parse(readFileSync(list, 'utf8')) as JobArchive;
          const files = archive.files.map((file) =>
            file.fileName === tokens ? { ...file, sizeBytes: 2 ** 60 } : file,
          );
          writeFileSync(list, JSON.stringify({ ...archive, files }));
        },
        { reason: 'REQUEST_INVALID' },
      ],
      [
        'tokens that are others than the manifest says',
        (copy) =>
          rewriteNamedFile(copy, tokens, (content) => {
            content[0]! ^= 1;
            return content;
          }),
        {
          reason: 'JOB_ARCHIVE_INVALID',
          message: expect.stringContaining('datasets/tiny-text is a data set that can be read'),
        },
      ],
    ];
    for (const [name, change, expected] of refusals)
      await expect(
        client.importJob(changedArchive(folder, change), { deadlineMs: 1000 }),
        name,
      ).rejects.toMatchObject(expected);
    await expect(client.getJob('jobs/my-job')).rejects.toMatchObject({ reason: 'JOB_NOT_FOUND' });
    expect(await namesOf(client)).toEqual([]);
    expect(
      readdirSync(join(dataFolder, 'datasets'), { recursive: true }).filter((name) =>
        /bin$/.test(String(name)),
      ),
    ).toEqual([]);
    // The archives were the problem: the unchanged one is accepted.
    expect((await client.importJob(folder)).state).toBe(JobState.PAUSED);
  });

  it('is refused before its first byte where a quota has no room for it', async () => {
    const old = await serverWithText();
    await pausedJob(old.client, 'my-job');
    const folder = temporaryFolder();
    await old.client.exportJob('jobs/my-job', folder);
    const quotas = join(temporaryFolder(), 'quotas.json');
    writeFileSync(quotas, JSON.stringify({ default: { bytes: 20_000 } }));
    const { client, dataFolder } = await realServer({ RELORA_QUOTA_FILE: quotas });
    await expect(client.importJob(folder, { deadlineMs: 1000 })).rejects.toMatchObject({
      reason: 'QUOTA_EXCEEDED',
    });
    expect(readdirSync(dataFolder)).not.toContain('imports');
  });

  it('leaves no data set where a quota has room for its files, but not for the texts that it was made from', async () => {
    const old = await serverWithText();
    await pausedJob(old.client, 'my-job');
    const folder = temporaryFolder();
    const { sizeBytes } = await old.client.exportJob('jobs/my-job', folder, { withDatasets: true });
    const quotas = join(temporaryFolder(), 'quotas.json');
    const allow = (bytes: number) => writeFileSync(quotas, JSON.stringify({ default: { bytes } }));
    allow(sizeBytes + 1000);
    const { client, dataFolder } = await realServer({ RELORA_QUOTA_FILE: quotas });
    await expect(client.importJob(folder, { deadlineMs: 1000 })).rejects.toMatchObject({
      reason: 'QUOTA_EXCEEDED',
    });
    expect(await namesOf(client)).toEqual([]);
    expect(existsSync(join(dataFolder, 'jobs', 'my-job'))).toBe(false);
    allow(2 * sizeBytes + tinyText().length);
    await expect
      .poll(async () => (await client.quota()).quotas.find(({ name }) => name === 'bytes')?.max)
      .toBe(2 * sizeBytes + tinyText().length);
    expect((await client.importJob(folder)).state).toBe(JobState.PAUSED);
  });
});
