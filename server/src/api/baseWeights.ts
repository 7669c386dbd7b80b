import { join } from 'node:path';
import type { BaseWeights } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import { TaskFailed } from '../trainer/taskRunner.js';
import type { WeightsReport } from '../weights/weights.js';
import type { FoundBaseWeights } from './modelSpec.js';
import type { ApiParts } from './parts.js';
import { readTextFile } from './readTextFile.js';
import { artifactIdsOf, weightsIdOf } from './resourceNames.js';
import { isFaultOfFolder, taskError } from './taskError.js';

type Parts = Pick<ApiParts, 'allowedFolders' | 'weights' | 'artifacts' | 'stage' | 'tasks' | 'stopping'>;

/** Longest config.json that is read. */
const configBytesMax = 1 << 20;

/** Folder and config.json of weights to continue from. Only child processes read the weights themselves. */
export async function findBaseWeights(
  parts: Parts,
  tenant: string,
  base: BaseWeights,
): Promise<FoundBaseWeights> {
  const folder = await findFolder(parts, tenant, base);
  if ('problem' in folder) return folder;
  const path = join(folder.path, 'config.json');
  const read =
    base.path === ''
      ? await readTextFile(path, configBytesMax)
      : await parts.allowedFolders.text(path, configBytesMax);
  if ('problem' in read) return read;
  try {
    const config: unknown = JSON.parse(read.text);
    if (typeof config !== 'object' || config === null || Array.isArray(config))
      return { problem: 'config.json holds no object' };
    return { folder: folder.path, config: config as Record<string, unknown> };
  } catch {
    return { problem: 'config.json is not JSON' };
  }
}

async function findFolder(
  { allowedFolders, weights, artifacts, stage }: Parts,
  tenant: string,
  base: BaseWeights,
): Promise<{ path: string } | { problem: string }> {
  const named = [base.path, base.weights, base.artifact].filter((name) => name !== '');
  if (named.length !== 1) return { problem: named.length === 0 ? 'none' : 'more than one' };
  if (base.path !== '') return await allowedFolders.folder(base.path);
  if (base.weights !== '') {
    const id = weightsIdOf(tenant, base.weights);
    const found = id === undefined ? undefined : await weights.find(id);
    if (found === undefined) return { problem: `${base.weights}, which does not exist` };
    if (found.state !== 'ready') return { problem: `${base.weights}, which is not uploaded yet` };
    (await stage.take(`weights/${found.id}`))(); // released at once: it stays here until its room is needed
    return { path: weights.folder(found.id) };
  }
  const ids = artifactIdsOf(tenant, base.artifact);
  const found = ids === undefined ? undefined : await artifacts.find(ids.jobId, ids.artifactId);
  if (found === undefined) return { problem: `${base.artifact}, which does not exist` };
  if (found.state !== 'ready') return { problem: `${base.artifact}, which is ${found.state}` };
  if (found.format !== 'huggingFace')
    return { problem: `${base.artifact}, which is in ${found.format} layout` };
  (await stage.take(`jobs/${found.jobId}/artifacts/${found.id}`))();
  return { path: found.folder };
}

/**
 * Checks config and headers of a folder in a child process, and whether a head that the config calls tied is; throws JOB_SPEC_INVALID.
 * @param beneath folders that its files must not lead out of; null for one of our own
 */
export async function requireSoundFolder(
  { tasks, stopping }: Parts,
  folder: string,
  beneath: readonly string[] | null,
): Promise<WeightsReport> {
  try {
    return await tasks.checkWeights({ folder, beneath, values: false }, stopping);
  } catch (error) {
    if (!(error instanceof TaskFailed) || !isFaultOfFolder(error))
      throw taskError(error, folder, new AbortController().signal, stopping);
    const field = `spec.model.base_weights${beneath === null ? '' : '.path'}`;
    throw new ServiceError('JOB_SPEC_INVALID', {
      problems: [{ field, expected: 'a folder with a model that is computed here', got: error.message }],
    });
  }
}
