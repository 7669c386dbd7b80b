import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Status } from 'nice-grpc';
import { expect, test } from 'vitest';
import { temporaryFolder } from '../e2e/tinyJob.js';
import { artifactOf, brokenServer, cutOff, refusal, untilCancelled } from './brokenServer.js';

const archiveOf = (contents: Record<string, Buffer>) => ({ job: 'jobs/job-1', ...artifactOf(contents) });
const contents = { 'job.jsonl': Buffer.from('the record'), 'a.bin': Buffer.from('0123456789') };

test('a job is exported although its reader is so slow that the server cuts it off', async () => {
  const opened: string[] = [];
  const client = await brokenServer({
    async *exportJob({ fileName, offsetBytes }) {
      opened.push(`${fileName} ${offsetBytes}`);
      if (opened.length === 1) throw cutOff();
      if (fileName === '') {
        yield { archive: archiveOf(contents) };
        yield { data: contents['job.jsonl'] };
        return;
      }
      yield { offsetBytes, data: contents['a.bin'].subarray(offsetBytes, offsetBytes + 5) };
      if (offsetBytes === 0) throw cutOff();
    },
  });
  const folder = temporaryFolder();
  await client.exportJob('jobs/job-1', folder);
  expect(opened).toEqual([' 0', ' 0', 'a.bin 0', 'a.bin 5']);
  for (const [name, content] of Object.entries(contents))
    expect(readFileSync(join(folder, name)).equals(content)).toBe(true);
  opened.length = 0;
  const files: string[] = [];
  for await (const { content } of client.exportJobFiles('jobs/job-1'))
    for await (const bytes of content) files.push(Buffer.from(bytes).toString());
  expect(files.slice(1)).toEqual(['the record', '01234', '56789']);
});

test('an export that is interrupted leaves an earlier one in the same folder as it was', async () => {
  let sent = contents;
  const client = await brokenServer({
    async *exportJob({ fileName }, context) {
      if (fileName === 'b.bin') throw refusal(context, Status.PERMISSION_DENIED, 'ROLE_TOO_LOW');
      if (fileName === '') yield { archive: archiveOf(sent) };
      yield { data: sent[(fileName || 'job.jsonl') as keyof typeof sent] };
    },
  });
  const folder = temporaryFolder();
  await client.exportJob('jobs/job-1', folder);
  const archive = readFileSync(join(folder, 'archive.json'), 'utf8');
  sent = Object.assign({}, contents, {
    'job.jsonl': Buffer.from('a longer record'),
    'b.bin': Buffer.from('b'),
  });
  await expect(client.exportJob('jobs/job-1', folder)).rejects.toMatchObject({ reason: 'ROLE_TOO_LOW' });
  expect(readFileSync(join(folder, 'archive.json'), 'utf8')).toBe(archive);
  expect(readFileSync(join(folder, 'job.jsonl'), 'utf8')).toBe('the record');
});

test('a reader that stops after the archive leaves no stream open', async () => {
  let onEnd = () => {};
  const ended = new Promise<void>((resolve) => (onEnd = resolve));
  const client = await brokenServer({
    async *exportJob(_, context) {
      yield { archive: archiveOf(contents) };
      await untilCancelled(context);
      onEnd();
    },
  });
  for await (const { fileName } of client.exportJobFiles('jobs/job-1')) {
    expect(fileName).toBe('archive.json');
    break;
  }
  await ended;
});
