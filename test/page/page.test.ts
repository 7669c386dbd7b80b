import { describe, expect, it } from 'vitest';
import type { Authenticate } from '../../server/dist/access/principal.js';
import { ServiceError } from '../../server/dist/errors.js';
import type { NewEvent } from '../../server/dist/jobs/jobChange.js';
import { patienceMs } from '../patience.mjs';
import { jobSpec, openApi, openApiWithArtifact, type Api } from '../server/apiServer.js';
import { claim, execution, onProcessors, readyDataset, runSpec, stepEvent, submit } from '../server/parts.js';
import { stepBody } from '../server/stepBody.mjs';
import { serveWeb } from '../server/webServer.js';
import { faultsOf, hasChromium, openPage, useBrowser } from './browser.js';

useBrowser();

const now = Date.now();
const event = (body: NewEvent['body']): NewEvent => ({ timeMs: now, body });

/** A running job with every kind of content. */
async function richJob(api: Api, stepCount = 40): Promise<string> {
  await submit(api.parts, {
    displayName: 'A rich job',
    labels: { team: 'tales' },
    spec: runSpec('', { stepCount: 5 * stepCount }),
  });
  const key = await claim(api.parts);
  const job = { jobId: key.id, attempt: key.attempt };
  await api.parts.attempts.started(job, execution, 0);
  const events: NewEvent[] = [];
  for (let step = 0; step < stepCount; step++) {
    if (step > 0 && step % 10 === 0) events.push(restartEvent(step));
    events.push({
      timeMs: now,
      body: stepBody(step, { loss: 9 / (1 + step / 10) + 1, residentBytes: 2e8 + step * 1e5 }),
    });
    if (step % 10 === 9) {
      events.push(
        event({
          kind: 'evaluation',
          step: step + 1,
          loss: 2,
          perplexity: 7.4,
          bitsPerByte: 1.2,
          tokenCount: 64,
          seconds: 0.1,
        }),
      );
      events.push(
        event({ kind: 'sample', step: step + 1, prompt: 'Once', text: ` <b>upon</b> step ${step}` }),
      );
    }
  }
  events.push(event({ kind: 'warning', reason: 'UPDATE_SKIPPED', message: 'An update was skipped' }));
  await api.parts.attempts.append(job, events);
  return key.id;
}

function restartEvent(step: number): NewEvent {
  return event({
    kind: 'restart',
    step,
    restart: step / 10,
    deltaNorm: 0.5,
    logitChangeMax: 1e-6,
    momentsZeroedRatio: 1,
    ranks: [],
    effectiveRank: 3 + step / 10,
    seconds: 0.1,
    modules: [],
    learningRateBefore: 1e-3,
    learningRateAfter: 1e-4,
    lossBefore: 2,
    lossAfter: 2,
    logitChangeTolerance: 1e-3,
  } as never);
}

describe.skipIf(!hasChromium)('the page in a browser', () => {
  it('shows a job as it runs: curves, events, samples, restarts and what comes next', async () => {
    const api = await openApi();
    await readyDataset(api.parts);
    const id = await richJob(api);
    const tab = await openPage(await serveWeb(api));
    await tab.go(`/jobs/${id}`);
    const text = await tab.untilText('UPDATE_SKIPPED');
    expect(text).toContain('A rich job');
    expect(text).toMatch(/Loss\s+2\.837/);
    expect(text).toMatch(/Restarts\s+3/);
    expect(text).toMatch(/Checkpoint every 5 steps\s+step 45/);
    await tab.untilText(/Restart \d+ of \d+\s+step 40/);
    const label = await tab.page.$eval('.plot', (plot) => plot.getAttribute('aria-label'));
    expect(label).toBe('Loss: training from 10.00 to 2.837; held-out from 2.000 to 2.000');

    // New events arrive without a reload.
    const { attempt } = (await api.parts.store.find(id))!;
    await api.parts.attempts.append({ jobId: id, attempt }, [
      stepEvent(40, 1.25),
      event({ kind: 'warning', reason: 'LATE_NEWS', message: 'It comes' }),
    ]);
    await tab.untilText('LATE_NEWS');
    await expect
      .poll(async () => await tab.page.$eval('.plot', (plot) => plot.getAttribute('aria-label')))
      .toContain('to 1.250');

    // Text from a model is not interpreted as HTML.
    await tab.page.click('[role=tab]:nth-child(2)');
    await tab.untilText('Once <b>upon</b> step 39');
    await tab.page.click('[role=tab]:nth-child(3)');
    await tab.untilText(/3\s+30\s+0\.5000/);
    expect(tab.complaints).toEqual([]);
  });

  it('shows every text that others wrote as text', async () => {
    const api = await openApi();
    const texts = [
      `<img src=x onerror="window.hit=1">`,
      `"><svg onload=window.hit=1>`,
      `<script>window.hit=1</script>`,
      `' onfocus=window.hit=1 autofocus x='`,
      `javascript:window.hit=1//`,
    ];
    const text = texts.join(' ');
    const file = { fileName: `${text}.txt`, serverPath: '/a.txt', format: 'text' as const, split: null };
    await api.parts.datasets.register({
      datasetId: 'text',
      tenant: 'default',
      displayName: text,
      files: [{ ...file, sizeBytes: 1, sha256: null }],
      spec: { tokenizer: { kind: 'bytes' }, heldOutShare: 0.01, textField: text, seed: 0 },
    });
    const size = { tokenCount: 100, documentCount: 1, textBytes: 100 };
    const warning = { reason: 'TEXT', message: text };
    await api.parts.datasets.ready({ id: 'text', epoch: 0 }, {
      tokenizer: { kind: 'bytes', vocabularySize: 257, endOfTextId: 256, sha256: '' },
      train: size,
      heldOut: size,
      manifestSha256: 'a'.repeat(64),
      warnings: [warning],
    } as never);
    const ids: string[] = [];
    for (const title of [text, `${texts[0]}!`]) {
      await submit(api.parts, { displayName: title, labels: { [texts[0]!]: texts[1]! } });
      const { id, attempt } = await claim(api.parts);
      ids.push(id);
      await api.parts.attempts.started({ jobId: id, attempt }, execution, 0);
      await api.parts.attempts.append({ jobId: id, attempt }, [
        stepEvent(0),
        event({ kind: 'sample', step: 1, prompt: text, text }),
        event({ kind: 'warning', reason: text, message: text }),
      ]);
    }
    const tab = await openPage(await serveWeb(api));
    // Tokens, and documents, come with the preview.
    await tab.page.setRequestInterception(true);
    tab.page.on('request', (request) => {
      if (!request.url().endsWith('/PreviewDataset')) return void request.continue();
      const tokens = texts.map((piece, id) => ({ id, text: piece, trained: true }));
      void request.respond({ contentType: 'application/json', body: JSON.stringify({ tokens }) });
    });
    const address = encodeURIComponent(text);
    const pages: Record<string, string> = {
      '/jobs': texts[0]!,
      [`/jobs/${ids[0]}`]: texts[0]!,
      [`/compare?jobs=${ids.join(',')}`]: texts[0]!,
      [`/compare?jobs=${address},${ids[0]}`]: 'Compare',
      [`/jobs/${address}`]: 'Jobs',
      '/jobs/%': 'Jobs',
      '/queue': texts[0]!,
      '/datasets': texts[0]!,
      '/datasets/text': `${texts[0]}${texts[1]}`,
      [`/datasets/${address}`]: 'Data sets',
      '/server': 'Limits',
    };
    for (const [path, wanted] of Object.entries(pages)) {
      await tab.go(path);
      await tab.untilText(wanted);
      for (const name of ['Samples', 'Settings'])
        await tab.page.evaluate((title) => {
          const tabs = [...document.querySelectorAll<HTMLElement>('[role=tab]')];
          tabs.find(({ textContent }) => textContent === title)?.click();
        }, name);
      const found = await tab.page.evaluate(() => ({
        hit: 'hit' in window,
        made: document.querySelectorAll('img, svg[onload], main script, [onfocus], [onerror]').length,
        links: [...document.querySelectorAll('a')].filter(({ protocol }) => !/^https?:$/.test(protocol))
          .length,
      }));
      expect(found, path).toEqual({ hit: false, made: 0, links: 0 });
    }
    // Missing jobs and data sets are reported by the server's answer, which the console logs.
    expect(tab.complaints.filter((each) => !/status of 4\d\d/.test(each))).toEqual([]);
  });

  it('reads and compares a thousand jobs', async () => {
    const api = await openApi({ RELORA_QUEUE_JOBS_MAX: '2000' });
    await readyDataset(api.parts);
    for (let index = 0; index < 1000; index++)
      await submit(api.parts, { displayName: `Job ${index}`, labels: { fold: String(index % 7) } });
    const tab = await openPage(await serveWeb(api));
    await tab.go('/jobs');
    await tab.untilText('100+ jobs');
    for (let scrolls = 0; scrolls < 100; scrolls++) {
      const text = await tab.page.evaluate(() => {
        scrollTo(0, document.body.scrollHeight);
        return document.body.innerText;
      });
      if (text.includes('1000 jobs')) break;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await tab.untilText('1000 jobs');
    const titles = await tab.page.$$eval('a.title', (links) => links.map((link) => link.textContent));
    expect(new Set(titles).size).toBe(1000);
    await tab.press('/');
    await tab.page.keyboard.type('fold=3');
    await tab.untilText('143 jobs');
    expect(tab.complaints).toEqual([]);
  });

  it('keeps rows of jobs up to date: place in the queue, labels and age', async () => {
    const api = await openApi();
    await readyDataset(api.parts);
    await submit(api.parts, { displayName: 'First', spec: runSpec('', { priority: 1 }) });
    await submit(api.parts, { displayName: 'Second' });
    const tab = await openPage(await serveWeb(api));
    await tab.go('/jobs');
    await tab.untilText('just now');
    await tab.untilText(/queued #2\s+Second/);
    const { id } = await claim(api.parts);
    await tab.untilText(/queued #1\s+Second/);
    await api.training.updateJob({ name: `jobs/${id}`, labels: { team: 'tales' } });
    await tab.untilText('team=tales');
    await tab.page.evaluate(() => {
      const { now } = Date;
      Date.now = () => now() + 150_000;
    });
    await tab.untilText('2m ago');
    expect(tab.complaints).toEqual([]);
  });

  it('draws a hundred thousand points at once', async () => {
    const tab = await openPage(await serveWeb(await openApi()));
    await tab.go('/server');
    // As text: the import must be the browser's, not that of the test's module loader.
    const [milliseconds, label] = (await tab.page.evaluate(`(async () => {
      const { Chart } = await import('/page/chart.js');
      const chart = new Chart({ title: 'Many', sync: 'many', lines: [{ label: 'loss', color: '--line-1' }] });
      document.getElementById('main').append(chart.element);
      await new Promise(requestAnimationFrame);
      const xs = Array.from({ length: 100_000 }, (_, index) => index);
      const begun = performance.now();
      chart.set([[xs, xs.map((x) => Math.sin(x / 1000) + 2)]]);
      await new Promise(requestAnimationFrame);
      return [performance.now() - begun, chart.element.querySelector('.plot').getAttribute('aria-label')];
    })()`)) as [number, string];
    expect(label).toBe('Many: loss from 2.000 to 1.493');
    console.log(`100,000 points in ${Math.round(milliseconds)} ms`);
    expect(tab.complaints).toEqual([]);
  });

  it('is used by the keyboard alone', async () => {
    const { api, job } = await openApiWithArtifact();
    for (const title of ['First', 'Second']) await submit(api.parts, { displayName: title });
    const tab = await openPage(await serveWeb(api));
    await tab.go('/jobs');
    await tab.untilText('3 jobs');
    const focused = () => tab.page.evaluate(() => document.activeElement?.textContent);
    // Two jobs created in the same millisecond may have either order.
    const [upper, lower] = await tab.page.$$eval('a.title', (links) => links.map((link) => link.textContent));
    expect([upper, lower].sort()).toEqual(['First', 'Second']);
    await tab.press('j', 'j');
    expect(await focused()).toBe(lower);
    await tab.press('k');
    expect(await focused()).toBe(upper);
    await tab.press('x', 'j', 'x', 'c');
    await tab.untilText('Settings that differ');
    await tab.press('g', 'j');
    await tab.untilText('3 jobs');
    await tab.press('j', 'j', 'j', 'Enter');
    await tab.untilText('ended ·');
    expect(new URL(tab.page.url()).pathname).toBe(`/${job}`);
    // Tabs with arrow keys, the fork's dialog with Enter and Escape.
    await tab.page.focus('[role=tab]');
    await tab.press('ArrowRight', 'ArrowRight');
    expect(await focused()).toBe('Restarts');
    await tab.page.focus('.bar button.primary');
    await tab.press('Enter');
    await tab.untilText('A new job that begins at a checkpoint');
    await tab.press('Escape');
    await expect.poll(async () => await tab.page.$$eval('dialog', (dialogs) => dialogs.length)).toBe(0);
    // Values under a cursor that arrow keys move.
    await tab.page.focus('.plot');
    await tab.press('ArrowLeft');
    expect(await tab.page.$eval('.keys b', (value) => value.textContent)).toBe('3.000');
    expect(tab.complaints).toEqual([]);
  });

  it.each(['light', 'dark'] as const)(
    'has no fault of contrast or structure in %s colors',
    async (scheme) => {
      const { api, job } = await openApiWithArtifact();
      const id = await richJob(api);
      await submit(api.parts, { displayName: 'One that waits' });
      await api.training.createJob({ jobId: 'another', spec: jobSpec('', { stepCount: 10 }) });
      const tab = await openPage(await serveWeb(api), { scheme });
      const pages: Record<string, string | RegExp> = {
        '/jobs': 'One that waits',
        [`/jobs/${id}`]: 'UPDATE_SKIPPED',
        [`/${job}`]: 'ended ·',
        [`/compare?jobs=${id},${job.slice('jobs/'.length)}`]: 'Settings that differ',
        '/compare': 'Choose two or more',
        '/queue': 'Nothing waits',
        '/datasets': 'text',
        '/datasets/text': 'Preview',
        '/server': 'A processor',
      };
      for (const [path, wanted] of Object.entries(pages)) {
        await tab.go(path);
        await tab.untilText(wanted);
        expect(await faultsOf(tab), path).toEqual([]);
      }
      await tab.go(`/${job}`);
      await tab.untilText('ended ·');
      await tab.page.click('.bar button.primary');
      await tab.untilText('A new job that begins at a checkpoint');
      expect(await faultsOf(tab), 'the dialog').toEqual([]);
      expect(tab.complaints).toEqual([]);
    },
  );

  it('asks for a token where the server wants one, and offers a viewer no buttons', async () => {
    const roles = { 'Bearer reader': 'viewer', 'Bearer writer': 'trainer' } as const;
    const authenticate: Authenticate = async ({ authorization = '' }) => {
      const role = roles[authorization as keyof typeof roles];
      if (role === undefined)
        throw new ServiceError('NOT_AUTHENTICATED', { cause: 'the token is not known' });
      return { name: 'someone', tenant: 'default', role };
    };
    const api = await openApi({}, { authenticate });
    await readyDataset(api.parts);
    const id = await richJob(api);
    const tab = await openPage(await serveWeb({ ...api, authenticate }));
    await tab.go(`/jobs/${id}`);
    await tab.untilText('An operator makes one');
    expect(await faultsOf(tab)).toEqual([]);
    await tab.page.type('#token', 'guess');
    await tab.press('Enter');
    await tab.untilText('the token is not known');
    await tab.page.$eval('#token', (field) => ((field as HTMLInputElement).value = ''));
    await tab.page.type('#token', 'reader');
    await tab.press('Enter');
    const seen = await tab.untilText('UPDATE_SKIPPED');
    expect(seen).toContain('viewer in default');
    expect(seen).not.toMatch(/^(Pause|Cancel)$/m);
    await tab.page.evaluate(() =>
      fetch('/api/session', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: '{"token":"writer"}',
      }),
    );
    await tab.go(`/jobs/${id}`);
    await tab.untilText(/^Pause$/m);
    expect(tab.complaints.filter((each) => !/401/.test(each))).toEqual([]);
  });

  it('changes a job that runs, and says what becomes of its rate', async () => {
    const api = await openApi();
    await readyDataset(api.parts);
    const id = await richJob(api, 42); // in the middle of a cycle: at its first step the rate is 0, whatever factor is applied
    for (const scheme of ['light', 'dark'] as const) {
      const tab = await openPage(await serveWeb(api), { scheme });
      await tab.go(`/jobs/${id}`);
      await tab.untilText(/^Change$/m);
      const openDialog = async () => {
        await tab.page.evaluate(() => {
          const buttons = [...document.querySelectorAll<HTMLElement>('.bar button')];
          buttons.find(({ textContent }) => textContent === 'Change')!.click();
        });
        await tab.untilText('It holds from the start of a step');
      };
      await openDialog();
      expect(await faultsOf(tab), `the dialog in ${scheme} colors`).toEqual([]);
      if (process.env.RELORA_TEST_PICTURES !== undefined)
        await tab.page.screenshot({ path: `${process.env.RELORA_TEST_PICTURES}/update-${scheme}.png` });
      // Errors are shown next to their field, whether found by the page or by the server.
      await tab.press('Enter');
      await tab.untilText('Nothing is filled in');
      const fill = async (label: string, text: string) => {
        const [input] = await tab.page.$$(`xpath///dialog//label[starts-with(., "${label}")]/input`);
        await input!.click({ count: 3 });
        await input!.type(text);
      };
      await fill('Learning rate', '-1');
      await tab.press('Enter');
      await tab.untilText('learning_rate_factor');
      await fill('Learning rate', scheme === 'light' ? '0.5' : '0.25');
      await fill('Steps between checkpoints', scheme === 'light' ? '3' : '4');
      await fill('Labels', `owner=${scheme}, team=`);
      await tab.press('Enter');
      await tab.untilText(/Changed: rate \S+ → \S+ at the next step/);
      await expect.poll(async () => await tab.page.$$eval('dialog', (dialogs) => dialogs.length)).toBe(0);
      expect(tab.complaints.filter((each) => !/400/.test(each))).toEqual([]);
    }
    const { job } = await api.training.getJob({ name: `jobs/${id}` });
    expect(job!.labels).toEqual({ owner: 'dark' });
    expect(job!.updates.map(({ learningRateFactor }) => learningRateFactor)).toEqual([0.5, 0.25]);
  });

  it('shows what comes next, and the planned rate, by the updates of a job', async () => {
    const api = await openApi();
    await readyDataset(api.parts);
    const id = await richJob(api, 42);
    const tab = await openPage(await serveWeb(api));
    await tab.go(`/jobs/${id}`);
    await tab.untilText(/Last step, then export\s+step 210/);
    const plannedTo = async (): Promise<number> => {
      const labels = await tab.page.$$eval('.plot', (plots) => plots.map((plot) => plot.ariaLabel ?? ''));
      return Number(/planned from .* to ([\d.e-]+)/.exec(labels.join('\n'))?.[1]);
    };
    await expect.poll(plannedTo, { timeout: patienceMs }).toBeGreaterThan(0);
    const before = await plannedTo();
    await api.training.updateJob({
      name: `jobs/${id}`,
      spec: { checkpoint: { everyStepCount: 8 }, stepCount: 300 },
      learningRateFactor: 0.5,
    });
    const { attempt } = (await api.parts.store.find(id))!;
    await api.parts.attempts.append({ jobId: id, attempt }, [stepEvent(42)]);
    await tab.untilText(/Checkpoint every 8 steps\s+step 48/);
    await tab.untilText(/Last step, then export\s+step 300/);
    await expect.poll(plannedTo, { timeout: patienceMs }).toBeCloseTo(before / 2, 8);
    expect(tab.complaints).toEqual([]);
  });

  it('shows the queue whole, and the slots of jobs with several processes', async () => {
    const api = await openApi({ RELORA_PAGE_BYTES_MAX: '65536' });
    await readyDataset(api.parts);
    // The first: on the last page of the list.
    await submit(api.parts, { displayName: 'In four', spec: runSpec('', { replicas: 4, device: 'native' }) });
    const places = { free: 4, count: 4 };
    const claimed = await api.parts.queue.claimNext({
      ...onProcessors,
      places: { processors: places, cards: { free: 0, count: 0 }, fp8Cards: { free: 0, count: 0 } },
    });
    if (!('job' in claimed)) throw new Error('Nothing to claim');
    const { id: jobId, attempt } = claimed.job;
    await api.parts.attempts.started({ jobId, attempt }, { ...execution, replicas: 4 }, 0);
    const labels = Object.fromEntries(
      Array.from({ length: 20 }, (_, index) => [`label-${index}`, 'x'.repeat(60)]),
    );
    for (let index = 0; index < 100; index++)
      await submit(api.parts, { displayName: `Waits ${index}`, labels });
    expect((await api.training.listJobs({ pageSize: 500 })).nextPageToken).not.toBe('');
    const tab = await openPage(await serveWeb(api));
    await tab.go('/queue');
    const text = await tab.untilText('1 running in 4 slots, 100 waiting');
    expect(text).toContain('In four');
    expect(text).not.toContain('Free slot');
    expect(await tab.page.$$eval('tbody tr', (rows) => rows.length)).toBe(100);
    expect(tab.complaints).toEqual([]);
  });

  it('keeps the colors that were chosen', async () => {
    const tab = await openPage(await serveWeb(await openApi()), { scheme: 'light' });
    const back = async () => await tab.page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    await tab.go('/server');
    expect(await back()).toBe('rgb(255, 255, 255)');
    await tab.page.select('select[aria-label=Colors]', 'dark');
    expect(await back()).toBe('rgb(14, 15, 19)');
    await tab.go('/queue');
    expect(await back()).toBe('rgb(14, 15, 19)');
  });
});
