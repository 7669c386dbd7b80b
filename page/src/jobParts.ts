import type { Job } from '@relora/sdk/contract';
import type { Json } from './api.js';
import { el, svg } from './element.js';
import { short, word } from './format.js';
import type { Point } from './series.js';

export const terminalStates = ['JOB_STATE_SUCCEEDED', 'JOB_STATE_FAILED', 'JOB_STATE_CANCELLED'];
export function isTerminal(job: Pick<Json<Job>, 'state'>): boolean {
  return terminalStates.includes(job.state);
}

/** The state as a word with a color; the color is never the only sign of it. */
export function stateBadge(state: string): HTMLElement {
  const name = word(state, 'JOB_STATE');
  return el('span', { class: `state ${name}` }, name);
}

export function titleOf({ displayName, name }: Pick<Json<Job>, 'displayName' | 'name'>): string {
  return displayName || name.slice('jobs/'.length);
}

/** For example `relora r128` or `full rank`. */
export function kindOf({ spec }: Pick<Json<Job>, 'spec'>): string {
  const kind = word(spec?.kind, 'JOB_KIND').replace('_', ' ');
  return spec?.adapter?.rank === undefined ? kind : `${kind} r${spec.adapter.rank}`;
}

/** For example `llama-60m`, `from artifact` or `512 × 8`. */
export function modelOf({ spec }: Pick<Json<Job>, 'spec'>): string {
  const { preset, config, baseWeights } = spec?.model ?? {};
  if (preset) return preset;
  if (baseWeights) return baseWeights.weights || baseWeights.artifact || baseWeights.path;
  return config ? `${config.hiddenSize} × ${config.numHiddenLayers}` : '';
}

export function progressBar({ progress }: Pick<Json<Job>, 'progress'>, format = short): HTMLElement {
  const step = Number(progress?.step ?? 0);
  const steps = Number(progress?.stepCount ?? 0);
  return el(
    'div',
    { class: 'progress' },
    el('progress', { value: step, max: Math.max(1, steps), 'aria-label': 'Steps taken' }),
    el('span', { class: 'number' }, `${format(step)} / ${format(steps)}`),
  );
}

/** A curve a hundred pixels wide; the points must be in order. */
export function sparkline(points: readonly Point[], label: string): SVGElement {
  const [width, height] = [104, 24];
  const box = svg('svg', {
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    class: 'sparkline',
    role: 'img',
    'aria-label': label,
  });
  if (points.length < 2) return box;
  const values = points.map(({ mean }) => mean);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [first, last] = [points[0]!.step, points.at(-1)!.step];
  const path = points.map(({ step, mean }, index) => {
    const x = ((step - first) / Math.max(1, last - first)) * (width - 2) + 1;
    const y = height - 2 - ((mean - low) / (high - low || 1)) * (height - 4);
    return `${index === 0 ? 'M' : 'L'}${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  box.append(svg('path', { d: path.join('') }));
  return box;
}
