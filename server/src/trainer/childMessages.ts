import { shapes, trainingEvent } from '@relora/engine/plan';
import { exportResult, plannedArtifact, sealedArtifact, type ExportResult } from '../artifacts/artifact.js';
import { execution } from '../jobs/job.js';
import type { TaskTypes } from './messages.js';

const { count, longText, object, oneOf, orNull, path, reason, union } = shapes;

/**
 * From a trainer to the server. Messages are numbered 1, 2, 3 …; the trainer waits while too many are not acknowledged, and ends once its
 * last message is.
 */
const trainerMessages = {
  /** `step`: where the run begins, 0 or the step of its checkpoint. */
  started: { number: count, step: count, execution: object(execution) },
  event: { number: count, timeMs: count, body: trainingEvent },
  checkpointCorrupt: { number: count, path, problem: longText },
  /** The orders to save up to this ticket are done: the checkpoint was sent before, or `problem` says why there is none. */
  saved: { number: count, ticket: count, problem: orNull(longText) },
  /** Sent before it makes an artifact: if the process dies now, that format is the cause. */
  exporting: { number: count, artifact: object(plannedArtifact) },
  artifact: { number: count, artifact: object(sealedArtifact) },
  /** The training itself has succeeded. */
  exportFailed: {
    number: count,
    artifact: object(plannedArtifact),
    failure: object({ reason, message: longText }),
  },
  finished: { number: count, outcome: oneOf(['succeeded', 'stopped']) },
  failed: { number: count, reason, message: longText },
};
export type TrainerMessage = shapes.UnionOf<'type', typeof trainerMessages>;

/** From a task to the server. */
export type TaskMessage<K extends keyof TaskTypes = keyof TaskTypes> =
  | { type: 'part'; value: TaskTypes[K]['part'] }
  | { type: 'result'; value: TaskTypes[K]['result'] }
  | { type: 'failed'; reason: string; message: string };

const isTrainerMessage = union('type', trainerMessages);
const isExportResult = object(exportResult);
const something: shapes.Shape<unknown> = (value): value is unknown => value !== undefined;
const isTaskMessage = union('type', {
  part: { value: something },
  result: { value: something },
  failed: { reason, message: longText },
});

/** A message of a trainer, or undefined. It is validated like outside data, because the child runs native code on files of strangers. */
export function parseTrainerMessage(value: unknown): TrainerMessage | undefined {
  return isTrainerMessage(value) ? value : undefined;
}

/** A message of a task; the caller may only use a part or a result as text and numbers. */
export function parseTaskMessage(value: unknown): TaskMessage | undefined {
  return isTaskMessage(value) ? (value as TaskMessage) : undefined;
}

/** The result of an export task, or undefined. */
export function parseExportResult(value: unknown): ExportResult | undefined {
  return isExportResult(value) ? value : undefined;
}
