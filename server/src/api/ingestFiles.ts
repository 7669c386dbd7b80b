import { createHash } from 'node:crypto';
import { readdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { RunSpec } from '@relora/engine/plan';
import type { Principal } from '../access/principal.js';
import { ServiceError } from '../errors.js';
import { idIn, nameOf } from '../store/tenantIds.js';
import type { ApiParts } from './parts.js';
import { invalid, unfinished, writeError, type OpenUpload, type Receiving } from './receiveUpload.js';
import { isWeightsFile } from './weightsHeader.js';
import { checkWeights, requireWeights } from './weightsService.js';

/** A file on this machine that a client named. */
interface NamedFile {
  path: string;
  /** Its field in the request. */
  field: string;
}

/** Copies files of this machine into an upload, because the other servers of the store do not have them. */
export async function ingestFiles(
  { allowedFolders }: Pick<ApiParts, 'allowedFolders'>,
  files: readonly NamedFile[],
  upload: OpenUpload,
  { config, signal, onReceived }: Receiving,
): Promise<void> {
  for (const [index, { path, field }] of files.entries()) {
    const begin = upload.receivedBytes[index]!;
    const refused = await allowedFolders.pieces(path, begin, async (data, offset) => {
      if (signal.aborted) throw new ServiceError('CALL_CANCELLED', {});
      const result = await upload.write(index, offset, data);
      if (result !== 'written') throw writeError(result, upload, index, offset, config);
      onReceived(data.length);
    });
    if (refused !== undefined)
      throw invalid(field, 'a regular file inside a folder of RELORA_ALLOWED_FOLDERS', refused.problem);
  }
}

export type IngestParts = Pick<
  ApiParts,
  | 'allowedFolders'
  | 'config'
  | 'metrics'
  | 'stage'
  | 'stopping'
  | 'tasks'
  | 'uploadPlaces'
  | 'weights'
  | 'weightsUploads'
>;

const templatesFolder = 'additional_chat_templates';

/**
 * When several servers share a store, another one may train the job. So weights that the job names by a path on this machine are copied
 * into the store as weights of their own, named by a hash of their content: the same folder is copied once.
 */
export async function ingestBaseWeights(
  parts: IngestParts,
  { tenant, name: owner }: Pick<Principal, 'tenant' | 'name'>,
  spec: RunSpec,
): Promise<RunSpec> {
  const { stage, weights: store, weightsUploads, metrics, config, stopping: signal } = parts;
  const { baseWeightsFolder: folder, baseWeightsName } = spec;
  if (!stage.isShared || folder === null || baseWeightsName !== null) return spec;
  const field = 'spec.model.base_weights.path';
  const names = await namesOfModel(folder);
  const files = [];
  for (const fileName of names) {
    const hash = createHash('sha256');
    let sizeBytes = 0;
    const refused = await parts.allowedFolders.pieces(join(folder, fileName), 0, async (data) => {
      hash.update(data);
      sizeBytes += data.length;
    });
    if (refused !== undefined) throw invalid(field, 'files that can be read', refused.problem);
    files.push({ fileName, sizeBytes, sha256: hash.digest('hex') });
  }
  const content = createHash('sha256').update(JSON.stringify(files)).digest('hex');
  const weightsId = idIn(tenant, `path-${content.slice(0, 32)}`);
  const displayName = basename(folder).slice(0, 63);
  const registered = await store.register({ tenant, weightsId, displayName, owner, files });
  if (registered === 'conflict') throw new ServiceError('WEIGHTS_EXISTS', { weightsId });
  const taken = {
    ...spec,
    baseWeightsName: `weights/${nameOf(weightsId)}`,
    baseWeightsFolder: store.folder(weightsId),
  };
  if (registered.state === 'ready') return taken;

  using _place = parts.uploadPlaces.take();
  const upload = await weightsUploads.open(registered);
  if (upload === 'busy') throw new ServiceError('UPLOAD_BUSY', { name: `weights/${weightsId}` });
  if (upload === 'closed') return (await requireWeights(store, weightsId)) && taken;
  try {
    const open = {
      name: `weights/${weightsId}`,
      files,
      receivedBytes: upload.receivedBytes,
      write: upload.write,
    };
    const onReceived = (bytes: number) => metrics.receivedWeightsBytes.inc(bytes);
    const named = names.map((name) => ({ path: join(folder, name), field }));
    await ingestFiles(parts, named, open, { config, signal, onReceived });
    const result = await upload.complete();
    if (result.outcome !== 'done') throw unfinished(result, open);
    await checkWeights(parts, registered, signal);
    return taken;
  } finally {
    await upload.close();
  }
}

/** The files of a folder that belong to a model in Hugging Face layout. */
async function namesOfModel(folder: string): Promise<string[]> {
  const names = await readdir(folder);
  if (names.includes(templatesFolder))
    for (const name of await readdir(join(folder, templatesFolder))) names.push(`${templatesFolder}/${name}`);
  return names.filter(isWeightsFile).sort();
}
