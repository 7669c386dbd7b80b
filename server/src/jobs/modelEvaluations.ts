import type { ChoiceReport } from '@relora/engine';
import type { Database } from '../store/database.js';

export interface ModelEvaluation {
  datasets: {
    dataset: string;
    loss: number;
    perplexity: number;
    bitsPerByte: number;
    tokenCount: number;
  }[];
  /** Null if there are no questions. */
  choices: ChoiceReport | null;
}

/** The result of an EvaluateModel call for weights of a job. */
export interface KeptEvaluation extends ModelEvaluation {
  timeMs: number;
  /** The model as the call named it: the job, or one of its artifacts. */
  model: string;
  /** Steps that the weights were trained for. */
  step: number;
}

/** Per job; the oldest are deleted. */
export const keptEvaluationsMax = 100;

/** Stores a result. Numbers only rise, so that two calls that end at the same time get different ones. */
export async function keepEvaluation(db: Database, jobId: string, kept: KeptEvaluation): Promise<void> {
  const { timeMs, ...body } = kept;
  await db.transaction().execute(async (trx) => {
    // A purge of the job waits for this row, too.
    const job = await trx
      .selectFrom('jobs')
      .select('id')
      .where('id', '=', jobId)
      .forUpdate()
      .executeTakeFirst();
    if (job === undefined) return;
    const { last } = await trx
      .selectFrom('model_evaluations')
      .select(({ fn }) => fn.max('number').as('last'))
      .where('job_id', '=', jobId)
      .executeTakeFirstOrThrow();
    const number = Number(last ?? 0) + 1;
    await trx
      .insertInto('model_evaluations')
      .values({ job_id: jobId, number, time_ms: timeMs, body: JSON.stringify(body) })
      .execute();
    await trx
      .deleteFrom('model_evaluations')
      .where('job_id', '=', jobId)
      .where('number', '<=', number - keptEvaluationsMax)
      .execute();
  });
}

/** Newest first. */
export async function evaluationsOf(db: Database, jobId: string): Promise<KeptEvaluation[]> {
  const rows = await db
    .selectFrom('model_evaluations')
    .select(['time_ms', 'body'])
    .where('job_id', '=', jobId)
    .orderBy('number', 'desc')
    .execute();
  return rows.map(({ time_ms, body }) => ({
    ...(JSON.parse(body) as Omit<KeptEvaluation, 'timeMs'>),
    timeMs: time_ms,
  }));
}
