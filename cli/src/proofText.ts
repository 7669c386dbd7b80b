import type { FactDifference, ReplayReport, Restart, RestartEvent } from '@relora/sdk';
import { figure, table, word } from './format.js';

/** Restarts in two tables: as a whole, and by kind of layer. */
export function restartTable(restarts: readonly Restart[]): string[] {
  const events = restarts.flatMap(({ event }) => event ?? []);
  if (events.length === 0) return ['No restarts.'];
  const whole = events.map((event) => [
    String(event.restart),
    String(event.step),
    `${optional(event.learningRateBefore)} → ${optional(event.learningRateAfter)}`,
    `${optional(event.lossBefore)} → ${optional(event.lossAfter)}`,
    figure(event.deltaNorm),
    `${figure(event.logitChangeMax)} of ${optional(event.logitChangeTolerance)}`,
    `${(100 * event.momentsZeroedRatio).toFixed(1)} %`,
    event.effectiveRank.toFixed(1),
    `${event.seconds.toFixed(2)} s`,
  ]);
  const head = ['RESTART', 'STEP', 'RATE', 'PROBE LOSS', 'NORM', 'LOGIT DRIFT', 'ZEROED', 'RANK', 'TIME'];
  return [...table([head, ...whole]), ...moduleTable(events)];
}

/** Norm of the merged delta, then effective rank and number of singular values above 1 % of everything merged so far. */
function moduleTable(events: readonly RestartEvent[]): string[] {
  const modules = events.at(-1)!.modules.map(({ module }) => module);
  if (modules.length === 0) return [];
  const head = modules.map((module) => word(module, 'TARGET_MODULE_').replaceAll('-', '_'));
  const rows = events.map((event) => [
    String(event.restart),
    ...modules.map((module) => {
      const found = event.modules.find((entry) => entry.module === module);
      if (found === undefined) return '';
      const norm = figure(found.deltaNorm);
      if (found.measuredLayerCount === 0) return norm;
      return `${norm}, ${found.effectiveRank.toFixed(1)} (${figure(found.rankAboveOnePercent)})`;
    }),
  ]);
  return [
    '',
    'By kind of layer: norm of the merge, effective rank (values above 1 %) of the change since the start',
    ...table([['RESTART', ...head], ...rows]),
  ];
}

/** The verdict of a replay, and the differences. */
export function replayText({ isIdentical, job, files, firstDifferingStep, facts }: ReplayReport): string[] {
  if (isIdentical) {
    return [
      `identical: all ${files.length} files of ${job} have the same SHA-256 as in the first run.`,
      ...files.map(({ fileName, foundSha256 }) => `  ${foundSha256}  ${fileName}`),
    ];
  }
  const changed = files.filter(({ expectedSha256, foundSha256 }) => expectedSha256 !== foundSha256);
  const step = firstDifferingStep;
  return [
    `not identical: ${changed.length} of ${files.length} files of ${job} differ.`,
    ...changed.flatMap(({ fileName, expectedSha256, foundSha256 }) => [
      `  ${fileName}`,
      `    expected  ${expectedSha256 || 'no such file'}`,
      `    found     ${foundSha256 || 'no such file'}`,
    ]),
    step === null
      ? 'The losses of all steps are the same: the difference arose after the last step.'
      : `First differing step: ${step.step}, loss ${step.found ?? 'none'} instead of ${step.expected ?? 'none'}.`,
    ...(facts.length === 0
      ? ['The records of the two executions are equal, so the settings differ.']
      : ['Differences between the records of the two executions:', ...factLines(facts)]),
  ];
}

export function factLines(facts: readonly FactDifference[]): string[] {
  return table(
    facts.map(({ fact, expected, found }) => [
      `  ${fact}`,
      `${found || 'none'} instead of ${expected || 'none'}`,
    ]),
  );
}

function optional(value: number | undefined): string {
  return value === undefined ? '?' : figure(value);
}
