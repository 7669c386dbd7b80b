import { JobState, ListJobsResponse, type Job } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { nobody } from '../../server/dist/access/principal.js';
import { compareJobs } from '../../server/dist/api/compareJobs.js';
import { openApi, refusalOf } from './apiServer.js';
import { registerFiles, runSpec, submit } from './parts.js';

describe('a list', () => {
  it('of data sets with a thousand files each is answered: files and specification are left to Get', async () => {
    const { datasets, parts } = await openApi();
    for (let count = 0; count < 45; count++) await registerFiles(parts, 1000, `many-${count}`);
    const { datasets: listed, nextPageToken } = await datasets.listDatasets({});
    expect(listed.map(({ name }) => name).sort()).toHaveLength(45);
    expect(nextPageToken).toBe('');
    expect(listed[0]).toMatchObject({ files: [], spec: undefined, fileCount: 1000, sizeBytes: 1000 });
    const { dataset } = await datasets.getDataset({ name: listed[0]!.name });
    expect(dataset).toMatchObject({ fileCount: 1000, sizeBytes: 1000 });
    expect(dataset!.files).toHaveLength(1000);
  });

  it('ends a page early rather than be too long for an answer, and loses nothing', async () => {
    const { training, parts } = await openApi({ RELORA_PAGE_BYTES_MAX: '65536' });
    for (let count = 0; count < 70; count++) await submit(parts, { spec: runSpec('x'.repeat(10_000)) });
    const names: string[] = [];
    const sizes: number[] = [];
    for (let pageToken = ''; ;) {
      const page: { jobs: Job[]; nextPageToken: string } = await training.listJobs({
        pageSize: 500,
        pageToken,
      });
      names.push(...page.jobs.map(({ name }) => name));
      sizes.push(page.jobs.length);
      pageToken = page.nextPageToken;
      if (pageToken === '') break;
    }
    expect(new Set(names).size).toBe(70);
    expect(names).toHaveLength(70);
    expect(Math.max(...sizes)).toBeLessThan(8);
  });

  it('ends a page in time for a client of gRPC where pages are as long as messages', async () => {
    const bytesMax = String(1 << 20);
    const { training, parts } = await openApi({
      RELORA_PAGE_BYTES_MAX: bytesMax,
      RELORA_MESSAGE_BYTES_MAX: bytesMax,
    });
    // Many lengths, so that at least one page ends exactly at the limit.
    for (let count = 0; count < 400; count++)
      await submit(parts, { spec: runSpec('x'.repeat(3000 + 7 * count)) });
    let count = 0;
    for (let pageToken = ''; ;) {
      const page: { jobs: Job[]; nextPageToken: string } = await training.listJobs({
        pageSize: 500,
        pageToken,
      });
      const sizeBytes = ListJobsResponse.encode(ListJobsResponse.fromPartial(page)).finish().length;
      expect(sizeBytes).toBeLessThanOrEqual(1 << 20);
      expect(page.nextPageToken.length).toBeLessThan(4096);
      count += page.jobs.length;
      pageToken = page.nextPageToken;
      if (pageToken === '') break;
    }
    expect(count).toBe(400);
  });

  it('gives an object that is longer than a page a page of its own', async () => {
    const { training, parts } = await openApi({ RELORA_PAGE_BYTES_MAX: '65536' });
    for (let count = 0; count < 2; count++) await submit(parts, { spec: runSpec('x'.repeat(100_000)) });
    const { jobs, nextPageToken } = await training.listJobs({ pageSize: 500 });
    expect(jobs).toHaveLength(1);
    expect((await training.listJobs({ pageSize: 500, pageToken: nextPageToken })).jobs).toHaveLength(1);
  });

  it('refuses more states than there are, however often one is named', async () => {
    const { training } = await openApi();
    const states = Array.from({ length: 40_000 }, () => JobState.QUEUED);
    const refusal = await refusalOf((options) => training.listJobs({ states }, options));
    expect(refusal).toMatchObject({ info: { reason: 'REQUEST_INVALID' }, fields: ['states'] });
    expect((await training.listJobs({ states: states.slice(0, 20) })).jobs).toEqual([]);
  });
});

it('a comparison counts its jobs before it looks at one of them', async () => {
  const { parts } = await openApi();
  let lookCount = 0;
  const names = new Proxy(
    Array.from({ length: 40_000 }, (_, index) => `jobs/job-${index}`),
    {
      get(target, key) {
        if (key !== 'length') lookCount++;
        return Reflect.get(target, key) as unknown;
      },
    },
  );
  const request = { names, reference: 'jobs/nobody', metrics: [], pointsMax: 0 };
  const refused = compareJobs(parts, request, { signal: new AbortController().signal, caller: nobody });
  await expect(refused).rejects.toMatchObject({ reason: 'REQUEST_INVALID' });
  // Only the reference is looked up, in an empty list.
  expect(lookCount).toBeLessThan(10);
});
