import { mkdir, rename, rm } from 'node:fs/promises';
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

/** Crashes of the child after which a data set fails: one may be bad luck, more are its content. */
const crashesMax = 2;

/**
 * Prepares data sets one after another in a child process. The child fills a temporary folder; the folder is renamed,
 * then the row says ready. After a crash of child or server the preparation begins again.
 */
export class DatasetPreparer {
  private readonly work: WaitingWork;
  private stopListening: (() => void) | undefined;

  constructor(
    private readonly store: DatasetStore,
    private readonly tasks: TaskRunner,
    private readonly config: Pick<
      Config,
      'allowedFolders' | 'dataFolder' | 'datasetBytesMax' | 'tokenizerCpuSeconds'
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

  /** Takes up what is `preparing`, and from now on whatever becomes it. */
  start(): void {
    this.stopListening = this.feed.listen((change) => {
      if (change === null || change.topic === 'dataset') this.work.wake();
    });
    this.work.wake();
  }

  /** Stops the present preparation; it begins again at the next start. */
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
      await this.store.release(dataset).catch(() => {}); // or it is free when the lease is over
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
    const prepared = this.store.preparedFolder(dataset.id);
    const log = this.log.child({ datasetId: dataset.id });
    for (let crashes = 0; ;) {
      try {
        await mkdir(folder, { recursive: true });
        // What an earlier try left; also a folder that was renamed before its row was stored.
        await rm(temporary, { recursive: true, force: true });
        await rm(prepared, { recursive: true, force: true });
        if (dataset.files.some(({ serverPath }) => serverPath === null))
          taken.push(await this.stage.take(`datasets/${dataset.id}/uploads`));
        const base = dataset.spec.base;
        const baseId =
          base === undefined ? null : idIn(tenantOf(dataset.id), base.replace(/^datasets\//, ''));
        if (baseId !== null) taken.push(await this.stage.take(`datasets/${baseId}/prepared`));
        const result = await this.tasks.run(
          {
            kind: 'prepareDataset',
            files: dataset.files.map((file, index) => ({
              path: file.serverPath ?? this.store.uploadPath(dataset.id, index),
              beneath: file.serverPath === null ? null : this.config.allowedFolders,
              fileName: file.fileName,
              format: file.format,
              split: file.split,
            })),
            spec: dataset.spec,
            baseFolder: baseId === null ? null : this.store.preparedFolder(baseId),
            outputFolder: temporary,
            unpackedBytesMax: this.config.datasetBytesMax,
            tokenizerCpuSeconds: this.config.tokenizerCpuSeconds,
          },
          {
            signal,
            timeoutMs: null,
            log,
            onPart: (ratio) => this.store.setPreparedRatio(dataset.id, Math.min(1, Number(ratio) || 0)),
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
              // The tokens are kept, the text is not needed twice.
              await this.stage.forget(trx, `datasets/${dataset.id}/uploads`);
            }),
        );
        if (!isReady) return log.warn('Another server prepares the data set');
        await this.remove(folders.uploads(this.config.dataFolder, dataset.id), log);
        log.info({ tokenCount: result.train.tokenCount }, 'A data set is ready');
        return;
      } catch (error) {
        if (signal.aborted) return;
        const failure = failureOf(error, 'then upload it again');
        log.warn({ reason: failure.reason, err: error }, failure.message);
        if (failure.reason === 'TASK_CRASHED' && ++crashes < crashesMax) continue;
        await this.store.failed(dataset, failure);
        return await this.remove(temporary, log);
      }
    }
  }

  /** What stays is a waste of space, and no harm. */
  private async remove(folder: string, log: Logger): Promise<void> {
    await rm(folder, { recursive: true, force: true }).catch((error: unknown) => {
      log.warn({ err: error }, 'Leftovers could not be removed');
    });
  }
}
