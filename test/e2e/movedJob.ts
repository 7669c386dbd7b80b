import { createHash } from 'node:crypto';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseJobSpec, type JobArchive, type ReloraClient } from '@relora/sdk';
import { realServer } from '../sdk/realServer.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

/** Long enough that a pause that is asked for at step 33 comes before the end, however busy the machine is. */
export const spec = parseJobSpec({
  ...tinySpec(160),
  evaluations: [
    {
      name: 'facts',
      questions: '{"question": "the quick ", "choices": ["brown", "xyzzy"], "answer": 0}',
      every_step_count: 20,
    },
  ],
});
export const updates = [{ number: 1, step: 25, learningRateFactor: 0.5 }];

export async function uploadText(client: ReloraClient): Promise<void> {
  await client.uploadDataset({
    datasetId: 'tiny-text',
    files: [{ content: tinyText(), fileName: 'tiny.txt' }],
    spec: { heldOutShare: 0.1 },
    labels: { kind: 'prose' },
  });
}

export async function serverWithText(settings: Record<string, string> = {}) {
  const server = await realServer(settings);
  await uploadText(server.client);
  return server;
}

/** A job that was changed, and paused between two checkpoints. */
export async function pausedJob(client: ReloraClient, jobId: string) {
  const { name } = await client.createJob(spec, { jobId, labels: { team: 'docs' }, updates });
  for await (const event of client.watch(name)) if (event.kind === 'step' && event.step.step === 33) break;
  await client.pauseJob(name);
  return await client.getJob(name);
}

export const weightsOf = async (client: ReloraClient, name: string) =>
  (await client.listArtifacts(name)).flatMap(({ files }) =>
    files.filter(({ fileName }) => fileName === 'model.safetensors'),
  );

const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

/** A modified copy of an exported job. */
export function changedArchive(folder: string, change: (copy: string) => void): string {
  const copy = temporaryFolder();
  cpSync(folder, copy, { recursive: true });
  change(copy);
  return copy;
}

/** Replaces the content of an exported job's file, and its digest in the archive. */
export function rewriteFile(copy: string, fileName: string, edit: (content: Buffer) => Buffer): void {
  const path = join(copy, fileName);
  const content = edit(readFileSync(path));
  writeFileSync(path, content);
  const list = join(copy, 'archive.json');
  const archive = JSON.parse(readFileSync(list, 'utf8')) as JobArchive;
  const files = archive.files.map((file) =>
    file.fileName === fileName ? { ...file, sizeBytes: content.length, sha256: sha256(content) } : file,
  );
  writeFileSync(list, JSON.stringify({ ...archive, files }));
}

export function rewriteRecord(copy: string, edit: (record: string) => string): void {
  rewriteFile(copy, 'job.jsonl', (content) => Buffer.from(edit(content.toString('utf8'))));
}

/** The same for a file that the record names too. */
export function rewriteNamedFile(copy: string, fileName: string, edit: (content: Buffer) => Buffer): void {
  const before = readFileSync(join(copy, fileName));
  rewriteFile(copy, fileName, edit);
  const after = readFileSync(join(copy, fileName));
  const about = (content: Buffer) => `"sizeBytes":${content.length},"sha256":"${sha256(content)}"`;
  // The record names a manifest a second time, only by its digest.
  rewriteRecord(copy, (record) =>
    record.replaceAll(about(before), about(after)).replaceAll(sha256(before), sha256(after)),
  );
}
