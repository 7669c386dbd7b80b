import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { DatasetState } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { BlobDamaged, giveThen, type Maker } from '../../server/dist/store/stage.js';
import { doPurges } from '../../server/dist/store/purges.js';
import { removeStrays } from '../../server/dist/store/strays.js';
import { openApi, sha256, uploadOf } from './apiServer.js';
import {
  allEvents,
  claim,
  jobWhen,
  newJob,
  openParts,
  readyDataset,
  runSpec,
  scriptedTrainer,
  submit,
  temporaryFolder,
  type Parts,
} from './parts.js';
import { freshDatabase, hasPostgres } from './postgres.js';
import { freshBucket, hasS3 } from './s3.js';

const blobStores = [
  { name: 'a folder', url: async () => pathToFileURL(temporaryFolder()).href, skip: !hasPostgres },
  { name: 'S3', url: freshBucket, skip: !hasPostgres || !hasS3 },
];

const run: Maker = { kind: 'run', fence: 1 };

/** Servers with a common database and blob store, each with its own data folder. */
async function servers(
  url: () => Promise<string>,
  count: number,
  changes: Record<string, string> = {},
): Promise<Parts[]> {
  const [database, blobs] = [await freshDatabase(), await url()];
  const all: Parts[] = [];
  for (let index = 0; index < count; index++)
    all.push(await openParts(changes, temporaryFolder(), scriptedTrainer, database, blobs));
  return all;
}

function write(parts: Parts, folder: string, files: Record<string, string | Buffer>): void {
  for (const [name, content] of Object.entries(files)) {
    const path = join(parts.dataFolder, folder, name);
    mkdirSync(join(path, '..'), { recursive: true });
    writeFileSync(path, content);
  }
}

async function give(parts: Parts, folder: string, maker = run): Promise<void> {
  await giveThen(
    parts.stage,
    [{ folder, maker }],
    async (name) => await parts.db.transaction().execute(name),
  );
}

async function blobNames(parts: Parts): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of parts.blobs.list('jobs')) names.push(name);
  return names.sort();
}

describe.each(blobStores.filter(({ skip }) => !skip))(
  'folders that servers share through $name',
  ({ url }) => {
    it('are on another server as they were given, files in folders too', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const folder = 'jobs/job-1/checkpoints/step-00000005-1';
      const large = Buffer.alloc(20 * 2 ** 20, 'weights ');
      write(one, folder, {
        twin: 'tokens',
        'manifest.json': '{}',
        'base.safetensors': large,
        'shards/0': 'tokens',
        empty: '',
      });
      await give(one, folder);
      const release = await two.stage.take(folder);
      const path = join(two.dataFolder, folder);
      expect(readFileSync(join(path, 'base.safetensors')).equals(large)).toBe(true);
      expect(readFileSync(join(path, 'shards/0'), 'utf8')).toBe('tokens');
      expect(readFileSync(join(path, 'twin'), 'utf8')).toBe('tokens');
      expect(statSync(join(path, 'empty')).size).toBe(0);
      release();
    });

    it('that a job found to be wrong here are read whole, and brought again', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const folder = 'datasets/text/prepared';
      const tokens = Buffer.alloc(3 * 2 ** 20, 'tokens ');
      write(one, folder, { 'train-00000.bin': tokens, 'manifest.json': '{}' });
      await give(one, folder);
      await readyDataset(one);
      (await two.stage.take(folder))();
      const path = join(two.dataFolder, folder, 'train-00000.bin');
      const flipped = Buffer.from(tokens);
      flipped[5]! ^= 4;
      writeFileSync(path, flipped);
      await two.supervisor.start();
      const { id } = await submit(one, { spec: runSpec('failOnce DATASET_CORRUPT') });
      const ended = await jobWhen(one, id, ({ state }) => isTerminal(state));
      expect(ended).toMatchObject({ state: 'succeeded', attempt: 2 });
      expect(readFileSync(path).equals(tokens)).toBe(true);

      // Data that is damaged in every copy fails with the trainer's error.
      const wrong = await submit(one, { spec: runSpec('fail DATASET_CORRUPT') });
      const failed = await jobWhen(one, wrong.id, ({ state }) => isTerminal(state));
      expect(failed).toMatchObject({ state: 'failed', failure: { reason: 'DATASET_CORRUPT' } });
    });

    it('that the store has lost end the jobs that need them after some attempts, with the reason', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const folder = 'datasets/text/prepared';
      write(one, folder, { 'train-00000.bin': 'tokens', 'manifest.json': '{}' });
      await give(one, folder);
      await readyDataset(one);
      for await (const { name } of one.blobs.list('datasets')) await one.blobs.remove(name);
      await two.supervisor.start();
      const { id } = await submit(one, { spec: runSpec('') });
      const { state, failure, attempt } = await jobWhen(one, id, (job) => isTerminal(job.state));
      expect([state, failure?.reason]).toEqual(['failed', 'DATASET_CORRUPT']);
      expect(failure?.message).toMatch(/datasets\/text\/.* is missing in the store/);
      expect(attempt).toBe(two.config.attemptsWithoutProgressMax);
    });

    it('send what did not change once, and keep it until the last that has it is forgotten', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const [first, second] = ['jobs/job-1/checkpoints/step-1-1', 'jobs/job-1/checkpoints/step-2-2'];
      write(one, first, { base: 'frozen', adapters: 'a1' });
      await give(one, first);
      const before = await blobNames(one);
      await two.stage.take(first);
      write(two, second, { base: 'frozen', adapters: 'a2' });
      await give(two, second, { kind: 'run', fence: 2 });
      const after = await blobNames(one);
      expect(after).toHaveLength(3);
      expect(after).toEqual(expect.arrayContaining(before));
      await one.stage.take(second);
      // There is only one copy on this machine.
      const inode = (folder: string) => statSync(join(one.dataFolder, folder, 'base')).ino;
      expect(inode(second)).toBe(inode(first));

      await one.db.transaction().execute(async (trx) => await one.stage.forget(trx, first));
      await doPurges(one.db, one.blobs);
      expect(await blobNames(one)).toHaveLength(2);
      rmSync(join(two.dataFolder, 'jobs'), { recursive: true });
      await two.stage.take(second);
      await one.db.transaction().execute(async (trx) => await one.stage.forget(trx, second));
      await doPurges(one.db, one.blobs);
      expect(await blobNames(one)).toEqual([]);
    });

    it('of a new job or data set stay, though another server still deletes an earlier one of its id', async () => {
      const [one, two] = (await servers(url, 2, { RELORA_UNDELETE_SECONDS: '0' })) as [Parts, Parts];
      const owned = ['jobs/again/checkpoints/step-1-1', 'datasets/again/prepared'];
      const make = async (): Promise<void> => {
        await submit(one, newJob({ jobId: 'again' }));
        await readyDataset(one, 'again');
        for (const folder of owned) {
          write(one, folder, { base: 'weights' });
          await give(one, folder);
        }
      };
      const purge = async ({ jobDeletion, datasetDeletion }: Parts): Promise<void> => {
        await jobDeletion.purge('again');
        await datasetDeletion.purge('again');
      };
      await readyDataset(one);
      await make();
      await one.control.cancel('again');
      await one.jobDeletion.delete('again');
      await one.datasetDeletion.delete('again');
      await purge(one);
      const { remove } = two.blobs;
      let isFirst = true;
      two.blobs.remove = async (name) => {
        if (isFirst) {
          isFirst = false;
          await doPurges(one.db, one.blobs);
          await make();
          await purge(two); // by a list from before
        }
        await remove.call(two.blobs, name);
      };
      expect(await doPurges(two.db, two.blobs)).toBe(2);
      for (const folder of owned) (await two.stage.take(folder))();
      expect(await two.store.find('again')).toMatchObject({ state: 'queued' });
      expect(await allEvents(two, 'again')).not.toEqual([]);
      expect(await two.datasets.find('again')).toMatchObject({ state: 'ready' });
    });

    it('send again what was forgotten between the giving and the naming', async () => {
      const [one] = (await servers(url, 1)) as [Parts];
      const [first, second] = ['jobs/job-1/checkpoints/step-1-1', 'jobs/job-1/checkpoints/step-2-1'];
      write(one, first, { base: 'frozen' });
      await give(one, first);
      write(one, second, { base: 'frozen' });
      let tries = 0;
      await giveThen(one.stage, [{ folder: second, maker: run }], async (name) => {
        if (++tries === 1) {
          await one.db.transaction().execute(async (trx) => await one.stage.forget(trx, first));
          await doPurges(one.db, one.blobs);
        }
        await one.db.transaction().execute(name);
      });
      expect(tries).toBe(2);
      rmSync(join(one.dataFolder, 'jobs'), { recursive: true });
      await one.stage.take(second);
      expect(readFileSync(join(one.dataFolder, second, 'base'), 'utf8')).toBe('frozen');
    });

    it('are not taken with other bytes than were given, nor left half there', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const folder = 'jobs/job-1/checkpoints/step-1-1';
      write(one, folder, { a: 'right', b: 'bytes' });
      await give(one, folder);
      const [name] = await blobNames(one);
      await one.blobs.put(
        name!,
        (async function* () {
          yield Buffer.from('wrong');
        })(),
      );
      await expect(two.stage.take(folder)).rejects.toThrow(BlobDamaged);
      expect(existsSync(join(two.dataFolder, folder))).toBe(false);
      await one.blobs.remove(name!);
      await expect(two.stage.take(folder)).rejects.toThrow(/missing/);
      await expect(two.stage.take('jobs/job-1/checkpoints/step-9-1')).rejects.toThrow(BlobDamaged);
      expect(readdirSync(join(two.dataFolder, 'staging'))).toEqual([]);
    });

    it('are read again where a bit changed on the way', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const folder = 'jobs/job-1/checkpoints/step-1-1';
      write(one, folder, { a: 'right' });
      await give(one, folder);
      const { openRead } = two.blobs;
      let reads = 0;
      two.blobs.openRead = async (name) => {
        const blob = (await openRead.call(two.blobs, name))!;
        const { read } = blob;
        blob.read = async function* (...range) {
          const isWrong = reads++ < 2;
          for await (const piece of read(...range)) yield isWrong ? piece.map((byte) => byte ^ 4) : piece;
        };
        return blob;
      };
      const release = await two.stage.take(folder);
      expect(readFileSync(join(two.dataFolder, folder, 'a'), 'utf8')).toBe('right');
      expect(reads).toBe(3);
      release();
    });

    it('replace what a lost attempt left under their name', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      write(one, 'datasets/text/prepared', { 'manifest.json': 'the right one' });
      await give(one, 'datasets/text/prepared', { kind: 'prepared', fence: 2 });
      write(two, 'datasets/text/prepared', { 'manifest.json': 'the other one' });
      await two.stage.take('datasets/text/prepared');
      expect(readFileSync(join(two.dataFolder, 'datasets/text/prepared/manifest.json'), 'utf8')).toBe(
        'the right one',
      );
    });

    it('make room for others when nobody uses them, the one used longest ago first', async () => {
      const bytes = Buffer.alloc(2 ** 20);
      const [one] = (await servers(url, 1, { RELORA_CACHE_BYTES_MAX: String(2.5 * 2 ** 20) })) as [Parts];
      const folder = (id: string): string => `jobs/${id}/checkpoints/step-1-1`;
      for (const [index, id] of ['a', 'b', 'c', 'd'].entries()) {
        write(one, folder(id), { base: Buffer.concat([bytes, Buffer.from(id)]) });
        await give(one, folder(id));
        utimesSync(join(one.dataFolder, 'jobs', id), 1000 + index, 1000 + index);
      }
      rmSync(join(one.dataFolder, 'jobs', 'd'), { recursive: true });
      const keepA = await one.stage.take(folder('a')); // recently used: stays, although it is the oldest
      utimesSync(join(one.dataFolder, 'jobs', 'a'), 900, 900);
      const keepD = await one.stage.take(folder('d'));
      expect(readdirSync(join(one.dataFolder, 'jobs')).sort()).toEqual(['a', 'd']);
      keepA();
      keepD();
      await one.stage.take(folder('b'));
      expect(readdirSync(join(one.dataFolder, 'jobs')).sort()).toEqual(['b', 'd']);
    });

    it('of weights are brought where a data set is to have their tokenizer', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const tokenizer = Buffer.from('{"model": {"vocab": {}}}');
      const file = { fileName: 'tokenizer.json', sizeBytes: tokenizer.length, sha256: sha256(tokenizer) };
      await one.weights.register({ weightsId: 'words', displayName: '', files: [file] });
      write(one, 'weights/words', { 'tokenizer.json': tokenizer });
      const report = { config: runSpec().model, parameterCount: 1, tokenizerVocabularySize: 1 };
      const given = { folder: 'weights/words', maker: { kind: 'uploads', fence: 0 } as const };
      await giveThen(one.stage, [given], async (name) => await one.weights.ready('words', report, name));
      const api = await openApi({}, { parts: two });
      const spec = { tokenizer: { huggingFace: { weights: 'weights/words' } } };
      const upload = uploadOf(Buffer.from('Once upon a time'), undefined, { spec });
      expect((await api.datasets.uploadDataset(upload)).dataset?.state).toBe(DatasetState.PREPARING);
      const { tokenizer_json } = await two.db
        .selectFrom('datasets')
        .select('tokenizer_json')
        .executeTakeFirstOrThrow();
      expect(tokenizer_json).toBe(tokenizer.toString());
    });

    it('are no strays while their job names them and ends', async () => {
      const [one] = (await servers(url, 1)) as [Parts];
      const { id } = await submit(one, newJob());
      const { attempt } = await claim(one);
      const folder = `jobs/${id}/artifacts/model-1`;
      write(one, folder, { 'model.safetensors': 'weights' });
      const name = await one.stage.give(folder, { kind: 'run', fence: attempt });
      let isEnded = false;
      // After the first look at the store.
      const db = one.db.withPlugin({
        transformQuery: ({ node }) => node,
        transformResult: async ({ result }) => {
          if (isEnded) return result;
          isEnded = true;
          await one.attempts.append({ jobId: id, attempt }, [], name);
          await one.attempts.failed({ jobId: id, attempt }, { reason: 'TRAINING_DIVERGED', message: '' });
          return result;
        },
      });
      expect(await removeStrays(db, one.blobs)).toBe(0);
      expect(isEnded).toBe(true);
      expect(await blobNames(one)).toHaveLength(1);
    });

    it('are kept by who names them again while another forgets them', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const [before, after] = ['jobs/job-1/checkpoints/step-1-1', 'jobs/job-1/artifacts/export-1'];
      for (const folder of [before, after]) write(one, folder, { 'tokenizer.json': '{}' });
      await give(one, before);
      const name = await one.stage.give(after, { kind: 'exports', fence: 1 });
      let forgotten: Promise<void> | undefined;
      await one.db.transaction().execute(async (trx) => {
        await name(trx);
        forgotten = two.db.transaction().execute(async (other) => await two.stage.forget(other, before));
        await Promise.race([forgotten, new Promise((resolve) => setTimeout(resolve, 500))]);
      });
      await forgotten;
      await doPurges(two.db, two.blobs);
      (await two.stage.take(after))();
      expect(readFileSync(join(two.dataFolder, after, 'tokenizer.json'), 'utf8')).toBe('{}');
    });

    it('leave strays where nobody names them, which are thrown away once nobody can', async () => {
      const [one] = (await servers(url, 1)) as [Parts];
      const { id } = await submit(one, newJob());
      const { attempt } = await claim(one);
      const folder = `jobs/${id}/checkpoints/step-1-${attempt}`;
      write(one, folder, { base: 'frozen' });
      const name = await one.stage.give(folder, { kind: 'run', fence: attempt });
      expect(await removeStrays(one.db, one.blobs)).toBe(0); // it may be about to be referenced
      await one.stage.give(folder, { kind: 'run', fence: attempt - 1 });
      expect(await removeStrays(one.db, one.blobs)).toBe(1);
      await one.db.transaction().execute(name);
      await one.attempts.failed({ jobId: id, attempt }, { reason: 'TASK_ERROR', message: '' });
      await one.stage.give(folder, { kind: 'run', fence: attempt }); // references the same again
      write(one, folder, { base: 'another' });
      await one.stage.give(folder, { kind: 'run', fence: attempt });
      expect(await removeStrays(one.db, one.blobs)).toBe(1);
      expect(await blobNames(one)).toHaveLength(1);
    });

    it('are no strays before their job or data set has a row, unless they wait for it for more than a day', async () => {
      const [one, two] = (await servers(url, 2)) as [Parts, Parts];
      const folders = ['jobs/imported/checkpoints/step-1-1', 'datasets/imported/prepared'];
      for (const folder of folders) {
        write(one, folder, { base: folder });
        const name = await one.stage.give(folder, run);
        expect(await removeStrays(two.db, two.blobs)).toBe(0);
        await one.db.transaction().execute(name);
        (await two.stage.take(folder))();
        expect(readFileSync(join(two.dataFolder, folder, 'base'), 'utf8')).toBe(folder);
      }
      for (const owner of ['jobs/gone', 'datasets/gone', 'weights/gone']) {
        write(one, `${owner}/left`, { base: owner });
        await one.stage.give(`${owner}/left`, run);
      }
      const { list } = two.blobs;
      two.blobs.list = async function* (prefix) {
        for await (const blob of list.call(two.blobs, prefix))
          yield { ...blob, ageMs: blob.ageMs + 2 * 86_400_000 };
      };
      expect(await removeStrays(two.db, two.blobs)).toBe(3);
      expect(await blobNames(one)).toEqual([expect.stringMatching(/^jobs\/imported\//)]);
    });
  },
);
