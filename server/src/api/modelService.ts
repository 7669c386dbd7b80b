import { FinishReason, type GenerateTextRequest, type ModelServiceDefinition } from '@relora/sdk/contract';
import type { Implementation } from '../grpc/service.js';
import type { GenerateTask } from '../trainer/messages.js';
import { evaluateModel } from './evaluateModel.js';
import { FieldChecks } from './fieldChecks.js';
import { checkModel, findModel, wasPruned } from './findModel.js';
import type { ApiParts } from './parts.js';
import { taskError } from './taskError.js';

const finishReasons = { endOfText: FinishReason.END_OF_TEXT, tokenCount: FinishReason.TOKEN_COUNT } as const;

/** Generates text in a child process, which ends with the call. */
export function modelService(parts: ApiParts): Implementation<typeof ModelServiceDefinition> {
  const { tasks, metrics, stopping } = parts;
  return {
    async *generateText(request, context) {
      const { tenant } = context.caller;
      const settings = parseSettings(request);
      const signal = AbortSignal.any([context.signal, stopping]);
      let tokenCount = 0;
      for (let isDone = false; !isDone;) {
        const {
          folders,
          sequenceLength: _length,
          step: _step,
          ...model
        } = await findModel(parts, tenant, request);
        const taken: (() => void)[] = [];
        try {
          for (const folder of folders) taken.push(await parts.stage.take(folder));
          for await (const piece of tasks.generate({ ...settings, ...model }, signal)) {
            metrics.generatedTokens.inc(piece.tokenCount - tokenCount);
            tokenCount = piece.tokenCount;
            yield {
              text: piece.text,
              tokenCount,
              finishReason:
                piece.finishReason === null ? FinishReason.UNSPECIFIED : finishReasons[piece.finishReason],
            };
          }
          isDone = true;
        } catch (error) {
          // A running job may have replaced this checkpoint by newer ones before it was loaded.
          const mayRepeat = tokenCount === 0 && !signal.aborted;
          if (!mayRepeat || !(await wasPruned(parts, tenant, request.model, model.source)))
            throw taskError(error, request.model, context.signal, stopping);
        } finally {
          for (const release of taken) release();
        }
      }
    },

    evaluateModel: async (request, context) => await evaluateModel(parts, request, context),
  };
}

function parseSettings(
  request: GenerateTextRequest,
): Pick<GenerateTask, 'prompt' | 'tokenCountMax' | 'temperature' | 'topK' | 'topP' | 'seed'> {
  const checks = new FieldChecks();
  const { temperature = 0.8 } = request;
  if (!(temperature === 0 || (temperature >= 0.01 && temperature <= 10)))
    checks.add('temperature', '0, or a number from 0.01 to 10', temperature);
  const settings = {
    prompt: checks.text('prompt', request.prompt, 1 << 20, { lines: true }),
    tokenCountMax: checks.integer('token_count_max', request.tokenCountMax, 128, 1, 4096),
    temperature,
    topK: checks.integer('top_k', request.topK, 0, 0, 1 << 20),
    topP: checks.number('top_p', request.topP, 0.95, { min: 0, max: 1, above: true }),
    seed: checks.integer('seed', request.seed, 0, 0, 2 ** 31 - 1),
  };
  checkModel(checks, request);
  checks.throwIfWrong();
  return settings;
}
