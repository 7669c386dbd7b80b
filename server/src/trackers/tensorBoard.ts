import { constants } from 'node:fs';
import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Job, JobEvent } from '../jobs/job.js';
import { syncFolder } from '../store/folders.js';
import { defaultTenant, nameOf, tenantOf } from '../store/tenantIds.js';
import { fileHeader, pointsRecord } from './eventFile.js';
import { pointsOf, type Reached } from './points.js';
import type { Tracker } from './tracker.js';

interface State {
  /** Length of the file that has the values of what was read from the journal. */
  bytes: number;
  reached: Reached;
}

/**
 * Event files for TensorBoard, one folder per job. The length of a file is stored with the position in the journal: anything that a crash
 * left after it is cut and written again.
 */
export class TensorBoard implements Tracker {
  readonly name = 'tensorboard';

  constructor(
    private readonly folder: string,
    private readonly log: Logger,
  ) {}

  async write(job: Job, events: readonly JobEvent[], stored: string): Promise<string> {
    const state: State = stored === '' ? { bytes: 0, reached: {} } : (JSON.parse(stored) as State);
    const records: Buffer[] = [];
    let { reached } = state;
    for (const event of events) {
      const next = pointsOf(event, reached);
      ({ reached } = next);
      if (next.points.length > 0) records.push(pointsRecord(next.points));
    }
    if (records.length === 0) return JSON.stringify({ ...state, reached });
    const bytes = await this.append(job, state.bytes, records);
    return JSON.stringify({ bytes, reached });
  }

  private async append(job: Job, length: number, records: readonly Buffer[]): Promise<number> {
    const tenant = tenantOf(job.id);
    const folder = join(this.folder, ...(tenant === defaultTenant ? [] : [tenant]), nameOf(job.id));
    await mkdir(folder, { recursive: true });
    const name = `events.out.tfevents.${Math.floor(job.createTimeMs / 1000)}.relora`;
    // Not 'a': what a crash left at the end is overwritten.
    const file = await open(join(folder, name), constants.O_RDWR | constants.O_CREAT, 0o644);
    try {
      const { size } = await file.stat();
      // Somebody deleted it, and with it the past of the job: further values go into a new file.
      if (size < length)
        this.log.warn(
          { folder },
          'An event file of TensorBoard is gone: a new one begins with the next event',
        );
      const start = size < length ? 0 : length;
      await file.truncate(start);
      const data = Buffer.concat(start === 0 ? [fileHeader(job.createTimeMs), ...records] : records);
      // A write may be short, as when the disk is filling up; the next one then fails.
      for (let written = 0; written < data.length;)
        written += (await file.write(data, written, data.length - written, start + written)).bytesWritten;
      await file.sync();
      if (start === 0) await syncFolder(folder);
      return start + data.length;
    } finally {
      await file.close();
    }
  }
}
