import { beforeAll, describe, expect, it, vi } from 'vitest';
import {
  beginRun,
  disposeRun,
  saveCheckpoint,
  openDevice,
  trainLoop,
  type Device,
  type RunSpec,
} from '@relora/engine';
import { targetModules } from '@relora/engine/plan';
import { Random } from '../../engine/dist/random.js';
import { reportPlan, slowerThanPlanned } from '../../engine/dist/training/planReport.js';
import { sumLoss } from './hostModel.js';
import {
  licenseDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  tinySpec,
  reported,
  weightsOf,
} from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
let device: Device;

beforeAll(async () => {
  device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
});

async function begin(spec: RunSpec, options: { checkpointPath?: string; runFolder?: string } = {}) {
  return beginRun({
    spec,
    device,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

describe('the plan of an adapter phase', () => {
  it('is reported before its first step, with the cost and the time of both ways', async () => {
    const run = await begin(tinySpec({ adapter: { graph: 'merged' }, recomputation: 'blocks' }));
    const events = await runLoop(run);
    const plans = ofKind(events, 'plan');
    expect(plans).toHaveLength(1);
    expect(plans[0]).toMatchObject({
      step: 6,
      graphs: targetModules.map((module) => ({ module, graph: 'merged' })),
      recomputation: 'blocks',
      precision: 'float32',
      basePrecision: 'float32',
      instructionSet: device.description.instructionSet,
    });
    expect(plans[0]!.plannedOperations).not.toBe(plans[0]!.separateOperations);
    expect(plans[0]!.plannedSeconds).toBeGreaterThan(0);
    expect(plans[0]!.separateSeconds).toBeGreaterThan(0);
    expect(events.indexOf(plans[0]!)).toBe(
      events.findIndex((event) => event.kind === 'step' && event.step === 6) - 1,
    );
    disposeRun(run);
  });

  it('has nothing to time where all paths are separate, and is not reported without adapters', async () => {
    const separate = await begin(tinySpec({ adapter: { graph: 'separate' } }));
    const [plan] = ofKind(await runLoop(separate), 'plan');
    expect(plan).toMatchObject({ plannedSeconds: null, separateSeconds: null });
    expect(plan!.plannedOperations).toBe(plan!.separateOperations);
    disposeRun(separate);

    const fullRank = await begin(tinySpec({ kind: 'fullRank', adapter: null }));
    expect(ofKind(await runLoop(fullRank), 'plan')).toEqual([]);
    disposeRun(fullRank);
  });

  it('is reported again by a resumed run', async () => {
    const spec = tinySpec({ adapter: { graph: 'weightGradient' } });
    const first = await begin(spec);
    await runLoop(first, (event) => event.kind === 'step' && event.step === 8);
    const { path } = await saveCheckpoint(first);
    disposeRun(first);
    const second = await begin(spec, { checkpointPath: path, runFolder: first.folder });
    const [plan] = ofKind(await runLoop(second), 'plan');
    expect(plan).toMatchObject({
      step: 9,
      graphs: plan!.graphs.map(({ module }) => ({ module, graph: 'weightGradient' })),
    });
    disposeRun(second);
  });

  it.each(['merged', 'weightGradient'] as const)('leaves no trace of its timing: %s', async (graph) => {
    const run = await begin(tinySpec({ adapter: { graph } }));
    // In the middle of a cycle, when the adapters are in the merged bases.
    await runLoop(run, (event) => event.kind === 'step' && event.step === 9);
    const { inputs, targets } = await run.batches.read(0, 2);
    const loss = () => sumLoss(run.model, inputs, targets, 2, 32).sum;
    const before = { loss: loss(), weights: await weightsOf(run), held: run.device.memory().count };
    expect(await reportPlan(run, new AbortController().signal)).not.toBeNull();
    expect({ loss: loss(), weights: await weightsOf(run), held: run.device.memory().count }).toEqual(before);
    disposeRun(run);
  });

  it('changes no bit, whatever the clock says and whether it warns or not', async () => {
    const warned = new Set<boolean>();
    const results: unknown[] = [];
    for (let seed = 1; warned.size < 2; seed++) {
      const random = Random.forStream(seed, 'a clock gone mad');
      let now = 0;
      const clock = vi.spyOn(performance, 'now').mockImplementation(() => (now += 4000 * random.uniform()));
      const run = await begin(tinySpec({ adapter: { graph: 'merged' } }));
      const events = await runLoop(run);
      clock.mockRestore();
      warned.add(ofKind(events, 'warning').some(({ reason }) => reason === 'GRAPHS_SLOWER_THAN_PLANNED'));
      results.push({ events: reported(events), weights: await weightsOf(run) });
      disposeRun(run);
    }
    for (const result of results) expect(result).toEqual(results[0]);
  });

  it('is not waited for by a stop', async () => {
    const run = await begin(tinySpec({ warmStart: { stepCount: 0 }, adapter: { graph: 'merged' } }));
    const stop = new AbortController();
    const loop = trainLoop(run, stop.signal);
    await loop.next(); // the evaluation at the start
    const next = loop.next();
    stop.abort();
    expect((await next).done).toBe(true);
    // If it was not reported, it is reported when the loop is started again.
    expect(ofKind(await runLoop(run), 'plan')).toHaveLength(1);
    disposeRun(run);
  });

  it('is contradicted by a measurement that is clearly the other way', () => {
    expect(slowerThanPlanned({ plannedSeconds: 1.2, separateSeconds: 1 })).toMatchObject({
      reason: 'GRAPHS_SLOWER_THAN_PLANNED',
      message: expect.stringMatching(/about 1.20 s .* and 1.00 s/) as string,
    });
    expect(slowerThanPlanned({ plannedSeconds: 1.09, separateSeconds: 1 })).toBeNull();
    expect(slowerThanPlanned({ plannedSeconds: 0.02, separateSeconds: 0.01 })).toBeNull(); // noise
    expect(slowerThanPlanned({ plannedSeconds: null, separateSeconds: null })).toBeNull();
  });
});
