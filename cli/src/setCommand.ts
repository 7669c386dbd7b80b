import type { Command } from 'commander';
import type { UpdateJobChanges } from '@relora/sdk';
import { cadence } from './duration.js';
import { UsageError } from './exitCodes.js';
import { stateText } from './jobText.js';
import { jobName, type Run } from './session.js';
import { named } from './nameFlags.js';
import { decimalNumber, wholeNumber } from './specOptions.js';

type Parsed = UpdateJobChanges & { labels: Record<string, string>; removedLabels: string[] };

/** Changes a job that has not ended. */
export function addSetCommand(program: Command, run: Run): void {
  program
    .command('set <job> <change...>')
    .description(
      'change a queued, running or paused job: rate=0.5x, steps=N, priority=N, evaluate-every=15min, checkpoint-every=N, keep=N, sample-every=N, stop=now, label.KEY=VALUE; label.KEY= removes',
    )
    .option('--request-id <uuid>', 'UUID; a repeated command with the same UUID takes effect once')
    .action((job: string, changes: string[], { requestId }: { requestId?: string }) =>
      run(async ({ client, output, signal }) => {
        const options = { signal, ...(requestId === undefined ? {} : { requestId }) };
        const response = await client.updateJob(jobName(job), parseChanges(changes), options);
        output.result(response, () => {
          const { job: after, learningRateBefore, learningRateAfter } = response;
          const rate =
            learningRateBefore === undefined || learningRateAfter === undefined
              ? []
              : [
                  `Learning rate of the next step: ${learningRateBefore.toExponential(3)} -> ${learningRateAfter.toExponential(3)}.`,
                ];
          return [`${after!.name} is changed; it is ${stateText(after!)}.`, ...rate];
        });
      }),
    );
}

export function parseChanges(changes: readonly string[]): UpdateJobChanges {
  const spec: NonNullable<UpdateJobChanges['spec']> = {};
  const parsed: Parsed = {
    labels: {},
    removedLabels: [],
  };
  for (const change of changes) {
    const [name = '', ...rest] = change.split('=');
    const value = rest.join('=');
    if (rest.length === 0) throw new UsageError(`Expected NAME=VALUE, got ${JSON.stringify(change)}`);
    named(name, () => enter(parsed, spec, name, value));
  }
  return Object.keys(spec).length === 0 ? parsed : { ...parsed, spec };
}

/** Adds one change from its name and value. */
function enter(
  parsed: Parsed,
  spec: NonNullable<UpdateJobChanges['spec']>,
  name: string,
  value: string,
): void {
  if (name === 'rate') parsed.learningRateFactor = factor(value);
  else if (name === 'steps') spec.stepCount = wholeNumber(value);
  else if (name === 'priority') spec.priority = decimalNumber(value);
  else if (name === 'evaluate-every') spec.evaluation = { ...spec.evaluation, ...cadence(value) };
  else if (name === 'checkpoint-every') spec.checkpoint = { ...spec.checkpoint, ...cadence(value) };
  else if (name === 'keep') spec.checkpoint = { ...spec.checkpoint, keepCount: wholeNumber(value) };
  else if (name === 'sample-every') spec.sample = { ...spec.sample, ...cadence(value) };
  else if (name === 'stop') parsed.stop = now(value);
  else if (name.startsWith('label.') && value === '') parsed.removedLabels.push(name.slice(6));
  else if (name.startsWith('label.')) parsed.labels[name.slice(6)] = value;
  else
    throw new UsageError(
      `Expected one of rate, steps, priority, evaluate-every, checkpoint-every, keep, sample-every, stop and label.KEY, got ${JSON.stringify(name)}`,
    );
}

/** For example 0.5x: a factor on the scheduled rate, written so that it cannot be mistaken for a rate. */
function factor(value: string): number {
  if (!value.endsWith('x'))
    throw new UsageError(`Expected a factor, for example rate=0.5x, got ${JSON.stringify(value)}`);
  return decimalNumber(value.slice(0, -1));
}

/** Must be spelled out, because it cannot be undone. */
function now(value: string): true {
  if (value !== 'now') throw new UsageError(`Expected stop=now, got ${JSON.stringify(`stop=${value}`)}`);
  return true;
}
