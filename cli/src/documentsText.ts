import type { ExplainJobResponse } from '@relora/sdk';
import { table } from './format.js';
import { printable } from './screenText.js';

/** Width of a histogram bin, in nats. */
const binNats = 0.25;
const barWidth = 40;
const textWidth = 60;

/** Which documents contributed most to the loss of a step, where they are, and how the losses are distributed. */
export function documentsText(
  job: string,
  step: number,
  { documents, places }: Pick<ExplainJobResponse, 'documents' | 'places'>,
): string[] {
  if (documents === undefined)
    return [
      `Step ${step} is not in a report of documents yet; a report is made at the end of each window of steps.`,
    ];
  const { firstStep, step: last, isSpike, documentCount, histogram, worst } = documents;
  const what = isSpike
    ? `The loss of step ${step} jumped.`
    : `Steps ${firstStep} to ${last} were reported together.`;
  const rows = worst.map((document, index) => {
    const place = places[index];
    return [
      String(document.step),
      document.loss.toFixed(3),
      document.excess.toFixed(1),
      String(document.tokenCount),
      place === undefined ? '' : `${place.dataset} ${place.file}:${place.fileToken}`,
      place?.documentIndex === undefined ? '' : `${place.documentIndex}+${place.documentToken}`,
      place === undefined || place.sourceFile === ''
        ? ''
        : `${printable(place.sourceFile)}:${place.sourceDocument}`,
      printable(place?.text ?? '').slice(0, textWidth),
    ];
  });
  const steps = [...new Set(worst.map((document) => document.step))].slice(0, 1);
  return [
    `${what} ${documentCount} documents; those that added most to the loss of their step:`,
    ...table([['STEP', 'LOSS', 'ADDS', 'TOKENS', 'PLACE', 'DOCUMENT', 'FILE', 'TEXT'], ...rows]),
    '',
    'Losses of all these documents:',
    ...histogramText(histogram),
    ...steps.flatMap((each) => {
      const id = job.replace(/^jobs\//, '');
      const known = places.filter(({ documentFirstToken }) => documentFirstToken !== undefined);
      return [
        ...(known.length === 0
          ? []
          : [`Without these documents: relora fork ${id} --omit-documents-of-step ${step}`]),
        `Without step ${isSpike ? step : each}: relora fork ${id} --omit-steps ${isSpike ? step : each}`,
      ];
    }),
  ];
}

function histogramText(histogram: readonly number[]): string[] {
  const highest = Math.max(1, ...histogram);
  return histogram.flatMap((count, bin) => {
    if (count === 0) return [];
    const from = (bin * binNats).toFixed(2).padStart(6);
    return [`${from}  ${'#'.repeat(Math.ceil((barWidth * count) / highest)).padEnd(barWidth)}  ${count}`];
  });
}
