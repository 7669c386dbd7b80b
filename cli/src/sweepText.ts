import type { Sweep, SweepRun, SweepVariant } from '@relora/sdk';
import { painter } from './comparisonText.js';
import { table, word } from './format.js';
import { linePlot } from './linePlot.js';
import { axesOf } from './plotScale.js';

export interface SweepView {
  width: number;
  height: number;
  isColored: boolean;
}

/** A sweep for a terminal: loss by rate, the table, and the flags to use next. */
export function sweepText({ id, variants }: Sweep, view: SweepView): string[] {
  const lines = variants.map((variant, index) => ({
    label: variantLabel(variant),
    points: pointsOf(variant),
    ...painter(index, view.isColored),
  }));
  const axes = axesOf(lines, { isLogarithmic: true });
  const dim = (text: string) => (view.isColored ? `\u001b[2m${text}\u001b[0m` : text);
  const options = { ...view, xName: 'learning rate, logarithmic', showX: rateText, dim };
  const plot = axes === null ? ['No run has a held-out loss.'] : linePlot(lines, { ...options, axes });
  return [
    ' held-out loss',
    ...plot,
    ...lines.map(({ mark, paint, label }) => ` ${paint(mark)} ${label}`),
    '',
    ...table([sweepHead, ...variants.flatMap(sweepRows)]).map((line) => ` ${line}`),
    '',
    ...variants.flatMap(adviceText).map((line) => ` ${line}`),
    ` sweep ${id}: to continue it with the same jobs, repeat the command with --id ${id}`,
  ];
}

export const sweepHead = ['kind', 'rank', 'scale', 'rate', 'held-out', '', 'job'];

/** Cells of the runs of one kind, rank and scale. */
export function sweepRows(variant: SweepVariant): string[][] {
  return variant.runs.map((run) => [
    word(run.kind, 'JOB_KIND_'),
    run.rank === 0 ? '–' : String(run.rank),
    run.scale === null ? '–' : String(run.scale),
    rateText(run.learningRate),
    run.evaluationLoss === null ? '–' : run.evaluationLoss.toFixed(4),
    run === variant.best ? 'best' : run.outcome === 'succeeded' ? '' : run.outcome,
    run.job.name,
  ]);
}

/** How to use the result. */
export function adviceText({ kind, rank, scale, best, isBestAtEdge, runs }: SweepVariant): string[] {
  const flags = [
    `--kind ${word(kind, 'JOB_KIND_')}`,
    rank === 0 ? '' : ` --rank ${rank}`,
    scale === null ? '' : ` --alpha ${scale * rank}`,
  ].join('');
  if (best === null) return [`${flags}: no learning rate gave a held-out loss below that of the start`];
  const advice = [`next: ${flags} --lr ${rateText(best.learningRate)}`];
  if (isBestAtEdge) {
    const side = best.learningRate === runs[0]!.learningRate ? 'lower' : 'higher';
    advice.push(`warning: the best learning rate is at the edge of the grid; try ${side} ones as well`);
  }
  return advice;
}

export function variantLabel({ kind, rank, scale }: Pick<SweepRun, 'kind' | 'rank' | 'scale'>): string {
  const parts = [rank === 0 ? '' : `, rank ${rank}`, scale === null ? '' : `, scale ${scale}`];
  return `${word(kind, 'JOB_KIND_')}${parts.join('')}`;
}

/** Held-out loss by rate, of the runs that count. */
export function pointsOf({ runs }: SweepVariant): (readonly [number, number])[] {
  return runs.flatMap(({ outcome, learningRate, evaluationLoss }) =>
    outcome === 'succeeded' && evaluationLoss !== null ? [[learningRate, evaluationLoss] as const] : [],
  );
}

/** A rate in the usual notation, for example 3e-4. */
export function rateText(rate: number): string {
  return Number(rate.toPrecision(3)).toExponential();
}
