import { spanOf } from '@relora/engine/plan';
import type { JobEvent } from '../jobs/job.js';

/** A value of a curve. */
export interface Point {
  key: string;
  value: number;
  step: number;
  timeMs: number;
}

/** The last step of each kind whose values a tracker has; named evaluations have one each. */
export type Reached = Partial<Record<Kind | `namedEvaluation ${string}`, number>>;
type Kind = (typeof kinds)[number];
const kinds = ['step', 'evaluation', 'namedEvaluation', 'restart'] as const;
type Valued = JobEvent['body'] & { kind: Kind };

/**
 * The values of an event that a tracker does not have yet, and the updated `reached`. After a crash a run repeats the steps since its last
 * checkpoint, with bit-identical values: these are not logged twice.
 */
export function pointsOf(
  { body, timeMs }: JobEvent,
  reached: Reached,
): { points: Point[]; reached: Reached } {
  if (!hasValues(body)) return { points: [], reached };
  const { step } = body;
  const curve = body.kind === 'namedEvaluation' ? (`namedEvaluation ${body.name}` as const) : body.kind;
  if (step <= (reached[curve] ?? -1)) return { points: [], reached };
  const points = Object.entries(valuesOf(body))
    .filter(([, value]) => Number.isFinite(value))
    .map(([key, value]) => ({ key, value, step, timeMs }));
  return { points, reached: { ...reached, [curve]: step } };
}

function hasValues(body: JobEvent['body']): body is Valued {
  return (kinds as readonly string[]).includes(body.kind);
}

function valuesOf(body: Valued): Record<string, number> {
  switch (body.kind) {
    case 'step': {
      // A step without an update has no values.
      if (body.skipped || body.omitted) return {};
      const { seconds, tokenCount } = spanOf(body);
      return {
        loss: body.loss,
        gradient_norm: body.gradientNorm,
        learning_rate: body.learningRate,
        trained_tokens: body.trainedTokens,
        tokens_per_second: tokenCount / seconds,
        resident_bytes: body.residentBytes,
      };
    }
    case 'evaluation':
      return {
        held_out_loss: body.loss,
        held_out_perplexity: body.perplexity,
        held_out_bits_per_byte: body.bitsPerByte,
      };
    case 'namedEvaluation': {
      const { name, dataset, choices } = body;
      return {
        ...(dataset && {
          [`${name}/loss`]: dataset.loss,
          [`${name}/perplexity`]: dataset.perplexity,
          [`${name}/bits_per_byte`]: dataset.bitsPerByte,
        }),
        ...(choices && {
          [`${name}/accuracy`]: choices.accuracy,
          [`${name}/normalized_accuracy`]: choices.normalizedAccuracy,
          [`${name}/log_probability`]: choices.logProbability,
        }),
      };
    }
    case 'restart':
      return {
        restart: body.restart,
        merge_delta_norm: body.deltaNorm,
        merge_logit_change_max: body.logitChangeMax,
        effective_rank: body.effectiveRank,
      };
  }
}
