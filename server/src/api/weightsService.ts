import type { WeightsServiceDefinition } from '@relora/sdk/contract';
import { ServiceError } from '../errors.js';
import type { Implementation } from '../grpc/service.js';
import { TaskFailed } from '../trainer/taskRunner.js';
import type { Weights } from '../weights/weights.js';
import type { WeightsCursor } from '../weights/weightsStore.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { invalid, receiveChunks, unfinished } from './receiveUpload.js';
import { parseWeightsName } from './resourceNames.js';
import { isFaultOfFolder, taskError } from './taskError.js';
import { toWeights } from './toProto.js';
import { parseWeightsHeader } from './weightsHeader.js';

/** Receives, checks, lists and deletes weights that jobs can begin at. */
export function weightsService(parts: ApiParts): Implementation<typeof WeightsServiceDefinition> {
  const { config, weights: store, weightsUploads, tasks, pageTokens, metrics, stopping } = parts;
  return {
    async uploadWeights(request, { signal }) {
      const messages = request[Symbol.asyncIterator]();
      const first = await messages.next();
      if (first.done === true || first.value.header === undefined)
        throw invalid('header', 'the first message', first.done === true ? 'nothing' : 'a chunk');
      const newWeights = parseWeightsHeader(config, first.value.header);
      const registered = await store.register(newWeights);
      if (registered === 'conflict')
        throw new ServiceError('WEIGHTS_EXISTS', { weightsId: newWeights.weightsId ?? '' });
      // Also the answer to a retry whose first answer was lost.
      if (registered.state === 'ready') return { weights: toWeights(registered) };

      const { id, files } = registered;
      const upload = await weightsUploads.open(registered);
      if (upload === 'busy') throw new ServiceError('UPLOAD_BUSY', { name: `weights/${id}` });
      if (upload === 'closed') return { weights: toWeights(await find(id)) };
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
        return { weights: toWeights(await check(registered, signal)) };
      } finally {
        await upload.close();
      }
    },

    async getWeights(request) {
      return { weights: toWeights(await find(parseWeightsName('name', request.name))) };
    },

    async listWeights(request) {
      const checks = new FieldChecks();
      const weightsMax = parsePageSize(checks, request.pageSize);
      checks.throwIfWrong();
      const after = pageTokens.read<WeightsCursor>(['weights'], request.pageToken);
      const page = await store.list({ after, weightsMax });
      return {
        weights: page.weights.map(toWeights),
        nextPageToken: pageTokens.write(['weights'], page.next),
      };
    },

    async deleteWeights(request) {
      const weightsId = parseWeightsName('name', request.name);
      await find(weightsId);
      if (weightsUploads.isOpen(weightsId))
        throw new ServiceError('UPLOAD_BUSY', { name: `weights/${weightsId}` });
      const removed = await store.remove(weightsId);
      if (removed !== 'removed')
        throw new ServiceError('WEIGHTS_IN_USE', { name: request.name, job: removed.usedBy });
      return {};
    },
  };

  async function find(weightsId: string): Promise<Weights> {
    const weights = await store.find(weightsId);
    if (weights === undefined) throw new ServiceError('WEIGHTS_NOT_FOUND', { weightsId });
    return weights;
  }

  /** Reads every tensor in a child process. What is wrong stays wrong, as the hashes are right: it is dropped. */
  async function check({ id }: Weights, signal: AbortSignal): Promise<Weights> {
    try {
      const report = await tasks.run(
        { kind: 'checkWeights', folder: store.folder(id), values: true },
        { signal: AbortSignal.any([signal, stopping]), timeoutMs: null },
      );
      return await store.ready(id, report);
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
}
