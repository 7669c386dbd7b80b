import { existsSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import type { ChangeFeed } from '../store/changeFeed.js';
import { folders, syncFolder } from '../store/folders.js';
import { failureOf } from './taskFailure.js';
import type { TaskRunner } from './taskRunner.js';
import { WaitingWork } from './waitingWork.js';
import type { DatasetStore, UnpreparedDataset } from '../datasets/datasetStore.js';
import type { Leases } from '../store/leases.js';
import { giveThen, type Stage } from '../store/stage.js';
import { idIn, tenantOf } from '../store/tenantIds.js';

/** Crashes of the child after which a data set fails: one may be bad luck, more are caused by its content. */
const crashesMax = 2;

/**
 * Prepares data sets one after another in a child process. The child fills a temporary folder; the folder is renamed, then the row becomes
 * ready. After a crash of the child or the server the next attempt continues after what is on the disk.
 */
export class DatasetPreparer {
  private readonly work: WaitingWork;
  private stopListening: (() => void) | undefined;

  constructor(
    private readonly store: DatasetStore,
    private readonly tasks: TaskRunner,
    private readonly config: Pick<
      Config,
      | 'allowedFolders'
      | 'dataFolder'
      | 'datasetBytesMax'
      | 'preparerMemoryBytesMax'
      | 'preparerThreads'
      | 'tokenizerCpuSeconds'
    >,
    private readonly feed: ChangeFeed,
    private readonly leases: Leases,
    private readonly stage: Stage,
    private readonly log: Logger,
    /** The store failed: see Supervisor. */
    onStoreFailure: (error: unknown) => void,
  ) {
    this.work = new WaitingWork({
      doNext: async () => await this.prepareNext(),
      log,
      name: 'Data sets',
      onStoreFailure,
    });
  }

  /** Begins with the data sets that are `preparing`; from now on new ones are taken as they come. */
  start(): void {
    this.stopListening = this.feed.listen((change) => {
      if (change === null || change.topic === 'dataset') this.work.wake();
    });
    this.work.wake();
  }

  /** Stops the current preparation; the next start continues it. */
  async stop(): Promise<void> {
    this.stopListening?.();
    await this.work.stop();
  }

  private async prepareNext(): Promise<boolean> {
    const dataset = await this.store.nextToPrepare();
    if (dataset === undefined) return false;
    const lost = new AbortController();
    const taken = [this.stage.keep(`datasets/${dataset.id}`)];
    const release = this.leases.hold('datasets', dataset.id, dataset.epoch, () => lost.abort());
    try {
      await this.prepare(dataset, AbortSignal.any([this.work.signal, lost.signal]), taken);
    } finally {
      for (const giveBack of taken) giveBack();
      release();
      await this.store.release(dataset).catch(() => {}); // if this fails, it is free once the lease has expired
    }
    return true;
  }

  private async prepare(
    dataset: UnpreparedDataset,
    signal: AbortSignal,
    taken: (() => void)[],
  ): Promise<void> {
    const folder = folders.dataset(this.config.dataFolder, dataset.id);
    const temporary = join(folder, '.preparing');
    const progressFolder = join(folder, '.progress');
    const prepared = this.store.preparedFolder(dataset.id);
    const log = this.log.child({ datasetId: dataset.id });
    /** Where the last attempt began: if the next one begins later, the last one made progress. */
    let begun = -1;
    for (let crashes = 0; ;) {
      try {
        await mkdir(folder, { recursive: true });
        // An attempt continues with a folder that was renamed before its row was stored.
        if (!existsSync(temporary) && existsSync(prepared)) await rename(prepared, temporary);
        await rm(prepared, { recursive: true, force: true });
        let isFirst = true;
        // If several servers share the store, the one that received the call has copied the files of its machine.
        const lies = ({ serverPath }: { serverPath: string | null }) =>
          this.stage.isShared ? null : serverPath;
        if (dataset.files.some((file) => lies(file) === null))
          taken.push(await this.stage.take(`datasets/${dataset.id}/uploads`));
        const base = dataset.spec.base;
        const baseId =
          base === undefined ? null : idIn(tenantOf(dataset.id), base.replace(/^datasets\//, ''));
        if (baseId !== null) taken.push(await this.stage.take(`datasets/${baseId}/prepared`));
        const result = await this.tasks.run(
          {
            kind: 'prepareDataset',
            files: dataset.files.map((file, index) => ({
              path: lies(file) ?? this.store.uploadPath(dataset.id, index),
              beneath: lies(file) === null ? null : this.config.allowedFolders,
              fileName: file.fileName,
              format: file.format,
              split: file.split,
            })),
            spec: dataset.spec,
            baseFolder: baseId === null ? null : this.store.preparedFolder(baseId),
            outputFolder: temporary,
            progressFolder,
            threads: this.config.preparerThreads || availableParallelism(),
            memoryBytesMax: this.config.preparerMemoryBytesMax,
            unpackedBytesMax: this.config.datasetBytesMax,
            tokenizerCpuSeconds: this.config.tokenizerCpuSeconds,
          },
          {
            signal,
            timeoutMs: null,
            log,
            onPart: (part) => {
              const ratio = Math.min(1, Number(part) || 0);
              if (isFirst && ratio > begun) [begun, crashes] = [ratio, 0];
              isFirst = false;
              this.store.setPreparedRatio(dataset.id, ratio);
            },
          },
        );
        await rename(temporary, prepared);
        await syncFolder(folder);
        const given = {
          folder: `datasets/${dataset.id}/prepared`,
          maker: { kind: 'prepared', fence: dataset.epoch } as const,
        };
        const isReady = await giveThen(
          this.stage,
          [given],
          async (name) =>
            await this.store.ready(dataset, result, async (trx) => {
              await name(trx);
              // The tokens are kept, so the text is not needed any more.
              await this.stage.forget(trx, `datasets/${dataset.id}/uploads`);
            }),
        );
        if (!isReady) return log.warn('Another server prepares the data set');
        await this.remove(progressFolder, log);
        await this.remove(folders.uploads(this.config.dataFolder, dataset.id), log);
        log.info({ tokenCount: result.train.tokenCount }, 'A data set is ready');
        return;
      } catch (error) {
        if (signal.aborted) return;
        const failure = failureOf(error, 'then upload it again');
        log.warn({ reason: failure.reason, err: error }, failure.message);
        if (failure.reason === 'TASK_CRASHED' && ++crashes < crashesMax) continue;
        await this.store.failed(dataset, failure);
        await this.remove(progressFolder, log);
        return await this.remove(temporary, log);
      }
    }
  }

  /** What remains wastes space, but does no harm. */
  private async remove(folder: string, log: Logger): Promise<void> {
    await rm(folder, { recursive: true, force: true }).catch((error: unknown) => {
      log.warn({ err: error }, 'Leftovers could not be removed');
    });
  }
}
