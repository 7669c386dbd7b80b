import type { Job } from '@relora/sdk/contract';
import type { Json } from './api.js';
import { el } from './element.js';
import { dateTime, whole, word } from './format.js';
import { facts } from './serverView.js';

/** The specification with every default filled in, and the execution. */
export function settingsPanel(job: Json<Job>): HTMLElement {
  const { spec, execution, labels, origin } = job;
  const ran: [string, string | HTMLElement][] = [
    ['Id', job.name],
    ['Created', dateTime(job.createTime)],
    ...Object.entries(labels).map(([key, value]): [string, string] => [`Label ${key}`, value]),
    ...(origin
      ? [
          ['Began at', el('a', { href: `/${origin.job}` }, `${origin.job}, step ${origin.step}`)] as [
            string,
            HTMLElement,
          ],
        ]
      : []),
    ...(execution
      ? ([
          ['Backend', `${execution.backend} ${execution.instructionSet}`],
          ['Threads', String(execution.threadCount)],
          ['Processes', whole(execution.replicas)],
          ['Precision', word(execution.precision, 'PRECISION')],
          ['Base', word(execution.basePrecision, 'PRECISION')],
          ['Engine', execution.engineVersion],
          ['Settings hash', execution.specSha256.slice(0, 16)],
          ['Data hash', execution.datasetSha256.slice(0, 16)],
        ] as [string, string][])
      : []),
  ];
  const text = el(
    'pre',
    { tabindex: 0, 'aria-label': 'Settings as JSON' },
    JSON.stringify(compact(spec), null, 2),
  );
  return el('div', { class: 'columns' }, facts(ran), text);
}

/** Without empty values. */
function compact(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(compact);
  if (typeof value !== 'object' || value === null) return value;
  const entries = Object.entries(value)
    .map(([key, each]) => [key, compact(each)] as const)
    .filter(
      ([, each]) =>
        !(each === '' || (typeof each === 'object' && each !== null && Object.keys(each).length === 0)),
    );
  return Object.fromEntries(entries);
}
