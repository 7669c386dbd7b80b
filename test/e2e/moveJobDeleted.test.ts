import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseJobSpec, ReloraClient } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { uploadText } from './movedJob.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** A job with an additional export of its weights, and a function by which another client deletes them between two steps of this one. */
async function jobWithSpare() {
  const server = await startServerProcess(temporaryFolder());
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  await uploadText(client);
  const { name } = await client.createJob(parseJobSpec(tinySpec(20)));
  await client.waitForJob(name);
  const spare = (await client.exportWeights(name)).name;
  await client.waitForArtifact(spare);
  const program = `import { ReloraClient } from '@relora/sdk';
    const client = new ReloraClient({ address: '${server.grpcAddress}' });
    await client.deleteArtifact('${spare}');
    client.close();`;
  const deleteSpare = () =>
    spawnSync(process.execPath, ['--input-type=module', '--eval', program], { cwd: root, encoding: 'utf8' });
  return { client, name, spare, deleteSpare };
}

test('what is deleted while a job is brought into a folder does not come along', async () => {
  const { client, name, spare, deleteSpare } = await jobWithSpare();
  const folder = temporaryFolder();
  let deleted: ReturnType<typeof deleteSpare> | undefined;
  await client.exportJob(name, folder, { onProgress: () => (deleted ??= deleteSpare()) });
  expect(deleted).toMatchObject({ status: 0, stderr: '' });
  const { files } = JSON.parse(readFileSync(join(folder, 'archive.json'), 'utf8')) as {
    files: { fileName: string }[];
  };
  const id = spare.split('/').at(-1)!;
  expect(files.filter(({ fileName }) => fileName.includes(id))).toEqual([]);
  expect((await client.importJob(folder, { jobId: 'again' })).name).toBe('jobs/again');
});

test('what is deleted while a job comes as one stream ends that in words', async () => {
  const { client, name, deleteSpare } = await jobWithSpare();
  let deleted: ReturnType<typeof deleteSpare> | undefined;
  const exporting = async () => {
    for await (const { content } of client.exportJobFiles(name)) {
      deleted ??= deleteSpare();
      for await (const _ of content);
    }
  };
  await expect(exporting()).rejects.toMatchObject({
    code: 'ABORTED',
    message: expect.stringMatching(/^artifacts\/.* was deleted while the job was exported: export it again$/),
  });
  expect(deleted).toMatchObject({ status: 0, stderr: '' });
});
