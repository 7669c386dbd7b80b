import { datasetNames } from '@relora/engine/plan';
import type { ExplainJobRequest, ExplainJobResponse } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import type { CallContext } from '../grpc/service.js';
import type { Job } from '../jobs/job.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { datasetIdOf } from './resourceNames.js';
import { taskError } from './taskError.js';
import { toDocuments } from './toProto.js';

export type ExplainParts = Pick<ApiParts, 'journal' | 'datasets' | 'stage' | 'tasks' | 'stopping'>;

/** Which documents add most to the loss of a step, and where they are; empty if no step is asked for. */
export async function explainStep(
  { journal, datasets, stage, tasks, stopping }: ExplainParts,
  job: Job,
  { step: asked }: ExplainJobRequest,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<Pick<ExplainJobResponse, 'documents' | 'places'>> {
  if (asked === undefined) return { documents: undefined, places: [] };
  const checks = new FieldChecks();
  const last = Math.max(0, job.progress.step - 1);
  const step = checks.integer('step', asked, 0, 0, last);
  if (job.spec.documentWindowStepCount === 0)
    checks.add('step', 'unset for a job without document_window_step_count', asked);
  checks.throwIfWrong();
  const report = await journal.documentsAt(job.id, step);
  if (report === undefined) return { documents: undefined, places: [] }; // its window has not ended yet
  const ids = datasetNames(job.spec).map((name) => datasetIdOf(caller.tenant, name)!);
  for (const datasetId of ids) {
    const head = await datasets.findHead(datasetId);
    if (head?.state !== 'ready') throw new ServiceError('DATASET_DELETED', { datasetId });
  }
  const taken: (() => void)[] = [];
  try {
    for (const id of ids) taken.push(await stage.take(`datasets/${id}/prepared`));
    const places = await tasks.locateDocuments(
      {
        datasetFolders: ids.map((id) => datasets.preparedFolder(id)),
        spec: job.spec,
        documents: report.worst.map(({ sequence, firstToken, tokenCount }) => ({
          sequence,
          firstToken,
          tokenCount,
        })),
      },
      AbortSignal.any([signal, stopping]),
    );
    return {
      documents: toDocuments(report),
      places: places.map((place) => ({
        ...place,
        documentIndex: place.documentIndex ?? undefined,
        documentToken: place.documentToken ?? undefined,
        documentFirstToken: place.documentFirstToken ?? undefined,
        documentTokenCount: place.documentTokenCount ?? undefined,
        sourceDocument: place.sourceDocument ?? undefined,
      })),
    };
  } catch (error) {
    throw taskError(error, `jobs/${job.id}`, signal, stopping);
  } finally {
    for (const release of taken) release();
  }
}
