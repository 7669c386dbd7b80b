import type { ScrubRequest, ScrubResponse } from '@relora/sdk/contract';
import { quote, ServiceError } from '../errors.js';
import type { Subject } from '../scrub/sealed.js';
import { requireDataset } from './datasetService.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { datasetIdOf, jobIdOf, weightsIdOf } from './resourceNames.js';
import { requireWeights } from './weightsService.js';
import type { Principal } from '../access/principal.js';
import type { CallContext } from '../grpc/service.js';
import { withName } from '../store/tenantIds.js';

/** Reads sealed files again and verifies them: of one job, data set or upload of weights, of all of a kind, or of all. */
export async function* scrub(
  parts: ApiParts,
  { name }: ScrubRequest,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): AsyncGenerator<ScrubResponse> {
  const { log, scrubber, downloadPlaces, stopping } = parts;
  const checkGoing = (): void => {
    if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
    if (stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
  };
  const subjects = await subjectsOf(parts, caller, name);
  using _place = downloadPlaces.take();
  for (const subject of subjects) {
    for await (const file of scrubber.scrub(subject, checkGoing)) {
      const { name, fileName, problem } = file;
      if (problem !== '') log.error({ name, fileName }, `A file is damaged: ${problem}`);
      yield { ...file, name: withName(name) };
    }
  }
}

const kinds = ['jobs', 'datasets', 'weights'] as const;

async function subjectsOf(
  { store, datasets, weights }: ApiParts,
  { tenant }: Principal,
  name: string,
): Promise<Subject[]> {
  const ofAll = kinds.filter((kind) => name === '' || name === `${kind}/-`);
  if (ofAll.length > 0) return ofAll.map((kind) => ({ kind, tenant, id: null }));
  const jobId = jobIdOf(tenant, name);
  if (jobId !== undefined) return [{ kind: 'jobs', tenant, id: (await requireJob(store, jobId)).id }];
  const datasetId = datasetIdOf(tenant, name);
  if (datasetId !== undefined)
    return [{ kind: 'datasets', tenant, id: (await requireDataset(datasets, datasetId)).id }];
  const weightsId = weightsIdOf(tenant, name);
  if (weightsId !== undefined)
    return [{ kind: 'weights', tenant, id: (await requireWeights(weights, weightsId)).id }];
  const expected = 'jobs/…, datasets/…, weights/…, a kind with - for all of it, or nothing for all';
  throw new ServiceError('REQUEST_INVALID', { problems: [{ field: 'name', expected, got: quote(name) }] });
}
