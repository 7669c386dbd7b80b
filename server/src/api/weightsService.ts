import {
  Weights as WeightsProto,
  type UploadWeightsRequest,
  type WeightsServiceDefinition,
} from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import type { CallContext, Implementation } from '../grpc/service.js';
import { TaskFailed } from '../trainer/taskRunner.js';
import { giveThen } from '../store/stage.js';
import { partsFolder } from '../uploads/uploadParts.js';
import type { Weights } from '../weights/weights.js';
import type { WeightsCursor, WeightsStore } from '../weights/weightsStore.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import { fillPage } from './fillPage.js';
import type { ApiParts } from './parts.js';
import { invalid, receiveChunks, unfinished } from './receiveUpload.js';
import { parseWeightsName } from './resourceNames.js';
import { isFaultOfFolder, taskError } from './taskError.js';
import { toWeights } from './toProto.js';
import { parseWeightsHeader } from './weightsHeader.js';

/** Receives, checks, lists and deletes weights that jobs can begin at. */
export function weightsService(parts: ApiParts): Implementation<typeof WeightsServiceDefinition> {
  const { weights: store, weightsUploads, pageTokens } = parts;
  return {
    uploadWeights: async (request, context) => ({
      weights: toWeights(await uploadWeights(parts, request, context)),
    }),

    async getWeights(request, { caller }) {
      return {
        weights: toWeights(
          await requireWeights(store, parseWeightsName(caller.tenant, 'name', request.name)),
        ),
      };
    },

    async listWeights(request, { caller: { tenant } }) {
      const checks = new FieldChecks();
      const weightsMax = parsePageSize(checks, request.pageSize);
      const labels = checks.labels('labels', request.labels);
      const owner = checks.text('owner', request.owner, 256);
      checks.throwIfWrong();
      const same = ['weights', tenant, Object.entries(labels).sort(), owner];
      const after = pageTokens.read<WeightsCursor>(same, request.pageToken);
      const { messages, next } = await fillPage({
        after,
        itemsMax: weightsMax,
        bytesMax: parts.config.pageBytesMax,
        read: async (place, itemsMax) => {
          const page = await store.list({ tenant, after: place, weightsMax: itemsMax, labels, owner });
          return { items: page.weights, next: page.next };
        },
        placeOf: ({ createTimeMs, id }) => ({ createTimeMs, id }),
        type: WeightsProto,
        toMessage: (weights) => ({ ...toWeights(weights), files: [] }),
      });
      return { weights: messages, nextPageToken: pageTokens.write(same, next) };
    },

    async deleteWeights(request, { caller }) {
      const weightsId = parseWeightsName(caller.tenant, 'name', request.name);
      await requireWeights(store, weightsId);
      if (weightsUploads.isOpen(weightsId))
        throw new ServiceError('UPLOAD_BUSY', { name: `weights/${weightsId}` });
      const removed = await store.remove(weightsId);
      if (removed !== 'removed')
        throw new ServiceError('WEIGHTS_IN_USE', { name: request.name, job: removed.usedBy });
      return {};
    },
  };
}

/** Receives the files of a model and checks them; also answers the retry of an upload whose first answer was lost. */
async function uploadWeights(
  parts: ApiParts,
  request: AsyncIterable<UploadWeightsRequest>,
  { signal, caller }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<Weights> {
  const { config, weights: store, weightsUploads, metrics } = parts;
  const messages = request[Symbol.asyncIterator]();
  const first = await messages.next();
  if (first.done === true || first.value.header === undefined)
    throw invalid('header', 'the first message', first.done === true ? 'nothing' : 'a chunk');
  const newWeights = parseWeightsHeader(config, caller, first.value.header);
  const registered = await store.register(newWeights);
  if (registered === 'conflict')
    throw new ServiceError('WEIGHTS_EXISTS', { weightsId: newWeights.weightsId ?? '' });
  if (registered.state === 'ready') return registered;

  const { id, files } = registered;
  using _place = parts.uploadPlaces.take();
  const upload = await weightsUploads.open(registered);
  if (upload === 'busy') throw new ServiceError('UPLOAD_BUSY', { name: `weights/${id}` });
  if (upload === 'closed') return await requireWeights(store, id);
  try {
    const open = {
      name: `weights/${id}`,
      files,
      receivedBytes: upload.receivedBytes,
      write: upload.write,
    };
    const onReceived = (bytes: number) => metrics.receivedWeightsBytes.inc(bytes);
    await receiveChunks(messages, open, { config, signal, onReceived });
    const result = await upload.complete();
    if (result.outcome !== 'done') throw unfinished(result, open);
    return await checkWeights(parts, registered, signal);
  } finally {
    await upload.close();
  }
}

/** Reads every tensor in a child process. Weights that fail are deleted: their hashes are right, so sending them again would not help. */
export async function checkWeights(
  {
    config,
    weights: store,
    stage,
    tasks,
    stopping,
  }: Pick<ApiParts, 'config' | 'weights' | 'stage' | 'tasks' | 'stopping'>,
  { id, files }: Weights,
  signal: AbortSignal,
): Promise<Weights> {
  try {
    const report = await tasks.run(
      {
        kind: 'checkWeights',
        folder: store.folder(id),
        beneath: null,
        values: true,
        tokenizerCpuSeconds: config.tokenizerCpuSeconds,
      },
      { signal: AbortSignal.any([signal, stopping]), timeoutMs: null },
    );
    const digests = new Map(files.map(({ fileName, sha256 }) => [fileName, sha256]));
    const given = { folder: `weights/${id}`, maker: { kind: 'uploads', fence: 0 } as const, digests };
    return await giveThen(
      stage,
      [given],
      async (name) =>
        await store.ready(id, report, async (trx) => {
          await name(trx);
          await stage.forget(trx, partsFolder(`weights/${id}`));
        }),
    );
  } catch (error) {
    if (!(error instanceof TaskFailed) || !isFaultOfFolder(error))
      throw taskError(error, `weights/${id}`, signal, stopping);
    await store.remove(id);
    throw new ServiceError('WEIGHTS_INVALID', {
      weightsId: id,
      cause: error.reason,
      message: error.message,
    });
  }
}

export async function requireWeights(store: WeightsStore, weightsId: string): Promise<Weights> {
  const weights = await store.find(weightsId);
  if (weights === undefined) throw new ServiceError('WEIGHTS_NOT_FOUND', { weightsId });
  return weights;
}
