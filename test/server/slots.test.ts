import { defaultRunSpec, unmeasured, type GivenSpec } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { lockCard } from '../../server/dist/trainer/cardLock.js';
import type { DeviceDescription } from '../../server/dist/jobs/jobDevices.js';
import { Slots, type KnownDevices } from '../../server/dist/trainer/slots.js';
import { execution, openParts, processor, runSpec, submit } from './parts.js';
import { stores } from './postgres.js';

const device = { name: 'cuda', instructionSet: 'sm_90a', threadCount: 1, precision: 'bfloat16' } as const;
const card = (
  uuid: string,
  memoryBytes = 2 ** 36,
  { instructionSet = 'sm_90a', computeCapability = '9.0' } = {},
): DeviceDescription => ({
  ...unmeasured(device),
  ...{
    uuid,
    memoryBytes,
    isDefault: true,
    model: 'A card',
    instructionSet,
    computeCapability,
  },
});
const oldKind = { instructionSet: 'sm_80', computeCapability: '8.0' };
const known = (cards: DeviceDescription[] | null): KnownDevices => ({
  devices: () => cards,
  cards: () => cards?.filter(({ backend }) => backend === 'cuda') ?? null,
  problems: () => [],
  nccl: () => null,
});
const settings = { slots: 1, gpuSlots: 1, device: 'auto', cudaFolder: '/libraries' } as const;
let count = 0;
const newUuid = () => `GPU-test-${process.pid}-${count++}`;

/** Large enough to be worth running on a card. */
const largeSpec = (changes: GivenSpec = {}) =>
  defaultRunSpec({
    model: {
      vocabSize: 32_000,
      hiddenSize: 512,
      intermediateSize: 1376,
      numHiddenLayers: 8,
      numAttentionHeads: 8,
    },
    ...changes,
  });

describe('places of a server', () => {
  it('are those of the processors and of each card, which is held while a job is on it', async () => {
    const [one, other] = [newUuid(), newUuid()];
    const slots = new Slots({ ...settings, gpuSlots: 2 }, known([card(one), card(other)]));
    expect(slots.count).toBe(5);
    const taken = [];
    for (let i = 0; i < 4; i++) {
      expect(await slots.free()).toEqual(['cuda', 'native', 'tensorflow', 'reference']);
      taken.push(slots.take('cuda'));
    }
    expect(taken.flatMap(({ cards }) => cards)).toEqual([one, other, one, other]);
    expect(await slots.free()).not.toContain('cuda');
    expect(await slots.whyNoCard()).toBeNull();
    taken.push(slots.take('native'));
    expect(await slots.free()).toEqual([]);
    slots.giveUnused();
    slots.give(taken[0]!);
    expect(await lockCard(one)).toBeNull();
    slots.give(taken[2]!);
    const unlock = await lockCard(one);
    expect(unlock).not.toBeNull();
    unlock!();
    for (const slot of [taken[1]!, ...taken.slice(3)]) slots.give(slot);
  });

  it('are a card for each process of a job, never two of one card', async () => {
    const uuids = [newUuid(), newUuid()];
    const slots = new Slots({ ...settings, gpuSlots: 2 }, known(uuids.map((uuid) => card(uuid))));
    await slots.free();
    const both = { free: 2, count: 2 };
    expect(slots.places).toEqual({ processors: { free: 1, count: 1 }, cards: both, fp8Cards: both });
    const several = slots.take('cuda', 2);
    expect(several).toMatchObject({ count: 2, cards: uuids });
    await slots.free();
    const [single, another] = [slots.take('cuda'), slots.take('cuda')];
    expect(slots.inUse).toBe(4);
    expect(slots.places.cards).toEqual({ free: 0, count: 2 });
    slots.give(single);
    expect(slots.places.cards).toEqual({ free: 1, count: 2 });
    for (const slot of [several, another]) slots.give(slot);
  });

  it('are those of one architecture for a job of several processes', async () => {
    const [old, one, other] = [newUuid(), newUuid(), newUuid()];
    const cards = [card(old, 2 ** 36, oldKind), card(one), card(other)];
    const slots = new Slots({ ...settings, gpuSlots: 2 }, known(cards));
    await slots.free();
    expect(slots.places.cards).toEqual({ free: 2, count: 2 });
    expect(slots.take('cuda').cards).toEqual([old]);
    await slots.free();
    expect(slots.take('cuda', 2).cards).toEqual([one, other]);
    slots.giveUnused();
  });

  it('are those of cards that are new enough for a job in FP8', async () => {
    const [old, another, recent] = [newUuid(), newUuid(), newUuid()];
    const cards = [card(old, 2 ** 36, oldKind), card(another, 2 ** 36, oldKind), card(recent)];
    const slots = new Slots({ ...settings, gpuSlots: 2 }, known(cards));
    await slots.free();
    expect(slots.places).toMatchObject({ cards: { count: 2 }, fp8Cards: { free: 1, count: 1 } });
    expect(slots.take('cuda', 1, 'fp8Base').cards).toEqual([recent]);
    await slots.free();
    // The old cards have no job yet.
    expect(slots.take('cuda', 1, 'fp8Base').cards).toEqual([recent]);
    await slots.free();
    expect(slots.places).toMatchObject({ cards: { free: 2 }, fp8Cards: { free: 0 } });
    expect(slots.whyNoFp8Card()).toBeNull();
    expect(new Slots(settings, known(cards.slice(0, 2))).whyNoFp8Card()).toBe(
      'Waits for a card of compute capability 8.9 or newer, which FP8_BASE needs: A card has 8.0, and those of 1 more are too low',
    );
    slots.giveUnused();
  });

  it('stay locked while a job is claimed for them, even if another job ends meanwhile', async () => {
    const [one, other] = [newUuid(), newUuid()];
    const slots = new Slots(settings, known([card(one), card(other)]));
    await slots.free();
    const ending = slots.take('cuda');
    await slots.free();
    slots.give(ending);
    expect(slots.take('cuda', 2).cards.toSorted()).toEqual([one, other].sort());
  });

  it('that another server uses count, as it will release them', async () => {
    const [one, other] = [newUuid(), newUuid()];
    const unlock = await lockCard(other);
    const slots = new Slots(settings, known([card(one), card(other)]));
    await slots.free();
    expect(slots.places.cards).toEqual({ free: 1, count: 2 });
    expect(slots.areCardsElsewhere).toBe(true);
    unlock!();
    await slots.free();
    expect(slots.places.cards).toEqual({ free: 2, count: 2 });
    expect(slots.areCardsElsewhere).toBe(false);
    slots.giveUnused();
  });

  it('are none on a card that another server holds, and the job says so', async () => {
    const uuid = newUuid();
    const [first, second] = [card(uuid), card(uuid)].map((one) => new Slots(settings, known([one])));
    await first!.free();
    const slot = first!.take('cuda');
    expect(await second!.free()).not.toContain('cuda');
    expect(await second!.whyNoCard()).toMatch(/another server on this machine uses A card GPU-test/);
    first!.give(slot);
    expect(await second!.free()).toContain('cuda');
    second!.giveUnused();
    expect(await first!.free()).toContain('cuda');
    first!.giveUnused();
  });
});

describe('a server of several', () => {
  it('takes jobs for the devices that it has, and those that began with its instructions', async () => {
    const slots = (devices: DeviceDescription[] | null) => new Slots(settings, known(devices)).ofFleet();
    expect(await slots([processor('native', 'avx512')])).toMatchObject({
      free: ['native'],
      pins: ['native avx512'],
    });
    // Its devices are not known yet: jobs that began elsewhere wait.
    expect(await slots(null)).toMatchObject({ free: ['native', 'tensorflow', 'reference'], pins: [] });
  });
});

describe('auto', () => {
  const resolve = (spec = largeSpec(), cards: DeviceDescription[] | null = [card('a')], more = {}) =>
    new Slots({ ...settings, ...more }, known(cards)).resolve(spec);

  it.each([
    ['a card', largeSpec(), [card('a')], {}, 'cuda'],
    ['the processor without a card', largeSpec(), [], {}, 'native'],
    ['the processor where cards are left alone', largeSpec(), [card('a')], { gpuSlots: 0 }, 'native'],
    [
      'the processor for a base of eight bits',
      largeSpec({ precision: 'int8Base' }),
      [card('a')],
      {},
      'native',
    ],
    ['the processor for a tiny model', runSpec(), [card('a')], {}, 'native'],
    ['a card for a base in FP8', largeSpec({ precision: 'fp8Base' }), [card('a')], {}, 'cuda'],
    [
      'no card that is too old for a base in FP8',
      largeSpec({ precision: 'fp8Base' }),
      [card('a', 2 ** 36, oldKind)],
      {},
      'native',
    ],
    ['a card for each process', largeSpec({ replicas: 2 }), [card('a'), card('b')], {}, 'cuda'],
    [
      'the processors for more processes than cards of one architecture',
      largeSpec({ replicas: 2 }),
      [card('a'), card('b', 2 ** 36, oldKind)],
      {},
      'native',
    ],
    ['the processors for more processes than cards', largeSpec({ replicas: 2 }), [card('a')], {}, 'native'],
    ['the processor for more than the card has', largeSpec(), [card('a', 2 ** 30)], {}, 'native'],
    ['what the settings say', largeSpec(), [card('a')], { device: 'reference' }, 'reference'],
    ['nothing until the cards were looked for', largeSpec(), null, {}, null],
  ])('is %s', (_, spec, cards, more, wanted) => {
    expect(resolve(spec, cards, more)).toBe(wanted);
  });
});

describe.each(stores)('jobs in the queue, on $name', ({ url, skip }) => {
  const open = async () => await openParts({}, undefined, undefined, await url());
  const claim = async ({ queue }: Awaited<ReturnType<typeof open>>, ...free: ('cuda' | 'native')[]) => {
    const claimed = await queue.claimNext({
      free,
      pins: null,
      resolve: (spec) => (spec.priority > 0 ? 'cuda' : 'native'),
    });
    return 'job' in claimed ? { id: claimed.job.id, device: claimed.device } : null;
  };

  it.skipIf(skip)('are claimed for a device that they may run on, the first that they want', async () => {
    const parts = await open();
    const wanting = async (device: 'cuda' | 'native', acceptedDevices: 'native'[] = []) =>
      (await submit(parts, { spec: runSpec('', { device, acceptedDevices }) })).id;
    const onCard = await wanting('cuda');
    const onEither = await wanting('cuda', ['native']);
    const another = await wanting('cuda', ['native']);
    expect(await claim(parts, 'native')).toEqual({ id: onEither, device: 'native' });
    expect(await claim(parts, 'cuda', 'native')).toEqual({ id: onCard, device: 'cuda' });
    expect(await claim(parts, 'cuda', 'native')).toEqual({ id: another, device: 'cuda' });
    expect(await claim(parts, 'cuda', 'native')).toBeNull();
  });

  it.skipIf(skip)('with auto are resolved once, and wait for that device from then on', async () => {
    const parts = await open();
    const { id } = await submit(parts, { spec: runSpec('', { priority: 1 }) });
    expect(await claim(parts, 'native')).toBeNull();
    const why = 'Waits for a card: it is away';
    expect(await parts.queue.explainWait(['cuda'], why)).toBe(true);
    expect((await parts.store.find(id))!.stateReason).toBe(why);
    const resolved = await parts.queue.claimNext({ free: ['cuda'], pins: null, resolve: () => 'native' });
    expect(resolved).toMatchObject({ device: 'cuda', job: { id } });
    expect(await parts.queue.explainWait(['cuda'], why)).toBe(false);
  });

  it.skipIf(skip)(
    'that began with some instructions are left to a server that has them, unless they accept others',
    async () => {
      const parts = await open();
      const claimWith = async (...pins: string[]) => {
        const claimed = await parts.queue.claimNext({ free: ['native'], pins, resolve: () => 'native' });
        return 'job' in claimed ? claimed.job : null;
      };
      const begin = async (acceptedDevices: 'native'[]) => {
        await submit(parts, { spec: runSpec('', { device: 'native', acceptedDevices }) });
        const { id: jobId, attempt } = (await claimWith('native avx512'))!;
        const ran = { ...execution, backend: 'native', instructionSet: 'avx512' };
        await parts.attempts.started({ jobId, attempt }, ran, 0);
        await parts.attempts.stopped({ jobId, attempt }, 'The server stops');
        return jobId;
      };
      const pinned = await begin([]);
      expect(await claimWith('native avx2')).toBeNull();
      expect(await claimWith()).toBeNull();
      // A job with `auto` after it does not have to wait.
      const later = (await submit(parts)).id;
      expect((await claimWith('native avx2'))!.id).toBe(later);
      const { id, attempt } = (await claimWith('native avx2', 'native avx512'))!;
      expect(id).toBe(pinned);
      await parts.attempts.failed({ jobId: id, attempt }, { reason: 'TASK_ERROR', message: '' });

      const free = await begin(['native']);
      expect((await claimWith('native avx2'))!.id).toBe(free);
    },
  );

  it.skipIf(skip)('with auto that cannot be resolved yet let others pass', async () => {
    const parts = await open();
    await submit(parts, { spec: runSpec('', { priority: 1 }) });
    const { id } = await submit(parts, { spec: runSpec('', { device: 'native' }) });
    const claimed = await parts.queue.claimNext({
      free: ['cuda', 'native'],
      pins: null,
      resolve: () => null,
    });
    expect(claimed).toMatchObject({ device: 'native', job: { id } });
  });
});
