import { JobState, type JobEvent } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder } from '../e2e/tinyJob.js';
import { clientsOf, createTinyJob, uploadTinyText, watchUntil } from '../e2e/watchedJob.js';
import { hasChromium, openPage, useBrowser } from './browser.js';

useBrowser();

describe.skipIf(!hasChromium)('the page beside a server that is killed', () => {
  it('comes back by itself and shows each event once', async () => {
    const folder = temporaryFolder();
    const first = await startServerProcess(folder);
    const before = clientsOf(first.grpcAddress);
    await uploadTinyText(before);
    const name = await createTinyJob(before, 400);
    const tab = await openPage(`http://${first.httpAddress}`);
    await tab.go(`/${name}`);
    await tab.untilText(/resumes with step 2\d/);
    first.process.kill('SIGKILL');
    await first.exited;
    await tab.untilText('trying again');

    const second = await startServerProcess(folder, { RELORA_HTTP_ADDRESS: first.httpAddress });
    const text = await tab.untilText(/ended · [\d,]+ events/);
    expect(text).not.toContain('are missing');
    const after = clientsOf(second.grpcAddress);
    const events: JobEvent[] = [];
    await watchUntil(after, name, events, () => false);
    // Each row of the log is an event other than a step: newest first, all of them, without duplicates.
    const shown = await tab.page.$$eval('.log tbody tr', (rows) =>
      rows.map((row) => Number(row.children[0]!.textContent!.replaceAll(',', ''))),
    );
    const expected = events.filter(({ step }) => step === undefined).map(({ sequence }) => sequence);
    expect(shown).toEqual(expected.reverse().slice(0, 300));
    expect(text).toContain(`ended · ${events.length.toLocaleString('en-US')} events`);
    const label = await tab.page.$eval('.plot', (plot) => plot.getAttribute('aria-label')!);
    const loss = events.findLast(({ step }) => step !== undefined)!.step!.loss;
    expect(label).toContain(`to ${loss.toPrecision(4)};`);
    // The browser's messages about refused connections while there was no server do not count.
    expect(tab.complaints.filter((each) => !/ERR_|Failed to load/.test(each))).toEqual([]);
  });

  it('pauses, resumes, cancels and forks', async () => {
    const { grpcAddress, httpAddress } = await startServerProcess(temporaryFolder());
    const clients = clientsOf(grpcAddress);
    await uploadTinyText(clients);
    const name = await createTinyJob(clients, 3000);
    const stateOf = async (job = name) => (await clients.training.getJob({ name: job })).job!.state;
    const tab = await openPage(`http://${httpAddress}`);
    const click = async (text: string): Promise<void> => {
      await tab.page.locator(`::-p-xpath(//button[not(@disabled) and normalize-space()="${text}"])`).click();
    };
    await tab.go(`/${name}`);
    await tab.untilText('resumes with step');
    await click('Pause');
    await tab.untilText('Paused, with a checkpoint');
    expect(await stateOf()).toBe(JobState.PAUSED);
    await click('Resume');
    await tab.untilText('Queued');
    await expect.poll(stateOf).toBe(JobState.RUNNING);
    await click('Cancel');
    await tab.untilText('It ends for good');
    await click('Keep');
    expect(await stateOf()).toBe(JobState.RUNNING);
    await click('Cancel');
    await click('Cancel the job');
    await expect.poll(stateOf).toBe(JobState.CANCELLED);

    await click('Fork');
    await tab.untilText('A new job that begins at a checkpoint');
    await tab.page.type('dialog textarea', '{ "stepCount": 0 }');
    await click('Fork');
    await tab.untilText(/step_count: expected/);
    await tab.page.$eval('dialog textarea', (area) => (area.value = ''));
    await tab.page.type('dialog label:nth-of-type(1) input', 'A fork');
    await tab.page.type('dialog label:nth-of-type(3) input', '3100');
    await tab.page.locator('dialog button.primary').click();
    await tab.untilText('Jobs A fork');
    const fork = `jobs/${new URL(tab.page.url()).pathname.split('/').at(-1)}`;
    const { job } = await clients.training.getJob({ name: fork });
    expect([job!.displayName, job!.origin!.job, job!.spec!.stepCount]).toEqual(['A fork', name, 3100]);
    expect(tab.complaints.filter((each) => !/400/.test(each))).toEqual([]);
  });
});
