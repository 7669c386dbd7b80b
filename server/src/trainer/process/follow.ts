import {
  alone,
  beginRun,
  connectDevices,
  disposeRun,
  engineVersion,
  ExchangeCollective,
  Mpi,
  SharedMemory,
  trainLoop,
  type Collective,
  type Device,
  type TrainingRun,
} from '@relora/engine';
import type { Dataset } from '@relora/engine/data';
import type { ServerFailure } from '../../jobs/jobFailures.js';
import type { TrainOrder } from '../messages.js';
import { rankMemoryFile } from '../rankMemory.js';
import type { ServerChannel } from './channel.js';
import { describeError } from './describeError.js';
import { openDatasets, runOptions } from './openRun.js';

/** How a process of a run communicates with the others. */
export async function collectiveOf({ member }: TrainOrder, device: Device): Promise<Collective> {
  if (member === null) return alone;
  const { rank, size, by, mayConnect } = member;
  const exchange = by === 'mpi' ? new Mpi() : new SharedMemory(rankMemoryFile, rank, size);
  // A process that MPI does not know as one of several would train the whole job alone.
  if (exchange.rank !== rank || exchange.size !== size)
    throw new Error(
      `MPI has it as rank ${exchange.rank} of ${exchange.size}, and the server as rank ${rank} of ${size}: it has not found the others`,
    );
  return new ExchangeCollective(device, exchange, mayConnect ? await connectDevices(device, exchange) : null);
}

/** What the first rank sends the others before the first step. */
export interface Beginning {
  /** Digest of the checkpoint that it begins at, which has a different path on each machine. Null for none. */
  manifestSha256: string | null;
  /** What must be equal for equal bits. */
  kind: string;
}

/** A rank computes differently from the first: its part of a batch would have other bits. */
class RanksDiffer extends Error {
  override name = 'RanksDiffer';
  readonly reason = 'RANKS_DIFFER' satisfies ServerFailure;
}

export function kindOf({ description }: Device): string {
  const { name, instructionSet, precision, basePrecision } = description;
  return [`engine ${engineVersion}`, name, instructionSet ?? '', precision, basePrecision].join(', ');
}

/**
 * Any rank but the first: it computes its part of every batch, follows the decisions of the first rank, and begins at the same checkpoint.
 * It only reports why it cannot continue, before the other ranks learn that it leaves.
 */
export async function follow(
  order: TrainOrder,
  device: Device,
  collective: Collective,
  channel: ServerChannel,
): Promise<void> {
  let datasets: Dataset[] = [];
  let run: TrainingRun | undefined;
  let isOver = false;
  try {
    datasets = await openDatasets(order);
    const beginning = (await collective.broadcast<Beginning | null>(null))!;
    if (beginning.kind !== kindOf(device))
      throw new RanksDiffer(`It computes by ${kindOf(device)}, and the first rank by ${beginning.kind}`);
    run = await beginRun({
      ...runOptions(order, device, collective, datasets),
      ...beginningAt(order, beginning),
    });
    // The first rank reports the events.
    for await (const event of trainLoop(run, new AbortController().signal)) void event;
    isOver = true;
  } catch (error) {
    await channel.report({ type: 'failed', ...describeError(error, 'TRAINER_ERROR', order.jobFolder) });
    await channel.flushed();
  } finally {
    collective.leave(isOver);
    if (run !== undefined) disposeRun(run);
    device.close();
    for (const dataset of datasets) await dataset.close();
  }
}

function beginningAt({ checkpoints, origin }: TrainOrder, { manifestSha256 }: Beginning) {
  if (manifestSha256 === null) return {};
  if (manifestSha256 === origin?.manifestSha256)
    return { checkpointPath: origin.path, manifestSha256, checkpointSpec: origin.spec };
  const found = checkpoints.find((checkpoint) => checkpoint.manifestSha256 === manifestSha256);
  if (found === undefined)
    throw new Error('The checkpoint that the first rank begins at is not on this machine');
  return { checkpointPath: found.path, manifestSha256 };
}
