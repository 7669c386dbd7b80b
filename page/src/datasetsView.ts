import type { Dataset } from '@relora/sdk/contract';
import { call, messageOf, type Json } from './api.js';
import { el, fill, setText, scrolling } from './element.js';
import { age, bytes, duration, idOf, short, whole, word } from './format.js';
import { Problem } from './problem.js';
import { facts } from './serverView.js';
import { repeat, type View } from './view.js';

const pauseMs = 3000;
const filesMax = 99;
const previewTokens = 256;

/** All data sets. */
export function datasetsView(): View {
  const body = el('tbody');
  const problem = new Problem();
  const nothing = el(
    'p',
    { class: 'muted', hidden: true },
    'No data sets yet. `relora upload FILE --id NAME` makes one.',
  );
  const load = async (signal: AbortSignal): Promise<void> => {
    let datasets: Json<Dataset>[] = [];
    let pageToken = '';
    do {
      const page = await call('DatasetService', 'listDatasets', { pageSize: 500, pageToken }, signal);
      datasets = datasets.concat(page.datasets);
      pageToken = page.nextPageToken;
    } while (pageToken !== '' && datasets.length < 2000);
    fill(body, ...datasets.map(row));
    nothing.hidden = datasets.length > 0;
  };
  const end = repeat((signal) => problem.of(() => load(signal), signal), pauseMs);
  const heads = [
    'State',
    'Data set',
    'Tokenizer',
    'Vocabulary',
    'Training tokens',
    'Held-out tokens',
    'Size',
    'Created',
  ];
  return {
    title: 'Data sets',
    element: el(
      'section',
      {},
      el('header', { class: 'bar' }, el('h1', {}, 'Data sets')),
      problem.element,
      scrolling(
        'Data sets',
        el(
          'table',
          { class: 'rows' },
          el(
            'thead',
            {},
            el(
              'tr',
              {},
              ...heads.map((head, at) => el('th', { scope: 'col', class: at > 2 ? 'right' : '' }, head)),
            ),
          ),
          body,
        ),
      ),
      nothing,
    ),
    end,
  };
}

function stateOf({ state }: Json<Dataset>): HTMLElement {
  const name = word(state, 'DATASET_STATE');
  const like: Record<string, string> = {
    ready: 'succeeded',
    failed: 'failed',
    preparing: 'running',
    uploading: 'queued',
  };
  return el('span', { class: `state ${like[name] ?? ''}` }, name);
}

/** Estimated from the rate so far. */
function timeLeft({
  preparationRemainingSeconds: left,
  preparedBytesPerSecond: rate,
}: Json<Dataset>): string {
  return left === undefined ? '' : `, ${duration(left)} left at ${bytes(rate)}/s`;
}

function row(dataset: Json<Dataset>): HTMLElement {
  const { name, displayName, tokenizer, train, heldOut } = dataset;
  const progress =
    dataset.state === 'DATASET_STATE_PREPARING'
      ? ` ${Math.round(Number(dataset.preparedRatio) * 100)} %${timeLeft(dataset)}`
      : '';
  return el(
    'tr',
    {},
    el('td', {}, stateOf(dataset), progress),
    el(
      'td',
      {},
      el('a', { class: 'title', href: `/datasets/${idOf(name)}` }, displayName || idOf(name)),
      displayName ? el('small', {}, idOf(name)) : null,
    ),
    el('td', {}, tokenizer?.kind ?? ''),
    el('td', { class: 'right number' }, tokenizer === undefined ? '' : whole(tokenizer.vocabularySize)),
    el('td', { class: 'right number' }, train === undefined ? '' : short(train.tokenCount)),
    el('td', { class: 'right number' }, heldOut === undefined ? '' : short(heldOut.tokenCount)),
    el('td', { class: 'right number' }, bytes(dataset.sizeBytes)),
    el('td', { class: 'right number' }, age(dataset.createTime)),
  );
}

/** One data set, with its first tokens as the model sees them. */
export function datasetView(id: string): View {
  const body = el('div', {}, el('p', { class: 'muted' }, 'Asking the server …'));
  const fileArea = el('div');
  const preview = el('div', { class: 'tokens' }, el('p', { class: 'muted' }, 'Asking the server …'));
  const split = el(
    'select',
    { 'aria-label': 'Part', change: () => void showPreview() },
    el('option', { value: 'DATASET_SPLIT_TRAIN' }, 'Training part'),
    el('option', { value: 'DATASET_SPLIT_HELD_OUT' }, 'Held-out part'),
  );
  const name = `datasets/${id}`;

  const showPreview = async (): Promise<void> => {
    try {
      const { tokens } = await call('DatasetService', 'previewDataset', {
        name,
        tokenCount: previewTokens,
        split: split.value as never,
      });
      fill(
        preview,
        ...tokens.map(({ id: tokenId, text, trained }) =>
          el(
            'span',
            {
              class: trained ? 'token' : 'token untrained',
              title: `${tokenId}${trained ? '' : ', does not count in the loss'}`,
            },
            text,
          ),
        ),
      );
    } catch (error) {
      fill(preview, el('p', { class: 'problem' }, messageOf(error)));
    }
  };

  let isPreviewed = false;
  const end = repeat(async (signal) => {
    try {
      const { dataset } = await call('DatasetService', 'getDataset', { name }, signal);
      if (dataset === undefined) return;
      fill(body, ...parts(dataset));
      if (fileArea.childElementCount === 0) fill(fileArea, ...fileList(dataset.files));
      if (dataset.state === 'DATASET_STATE_READY' && !isPreviewed) {
        isPreviewed = true;
        void showPreview();
      } else if (!isPreviewed) setText(preview, 'There is one when the data set is ready.');
    } catch (error) {
      if (!signal.aborted) fill(body, el('p', { class: 'problem', role: 'alert' }, messageOf(error)));
    }
  }, pauseMs);
  return {
    title: id,
    element: el(
      'section',
      {},
      el(
        'header',
        { class: 'bar' },
        el('h1', {}, el('a', { href: '/datasets', class: 'crumb' }, 'Data sets'), ` ${id}`),
      ),
      body,
      el('header', { class: 'bar' }, el('h2', {}, 'Preview'), split),
      preview,
      fileArea,
    ),
    end,
  };
}

function parts(dataset: Json<Dataset>): HTMLElement[] {
  const { tokenizer, train, heldOut, warnings, skippedRows, failure } = dataset;
  return [
    ...(failure ? [el('p', { class: 'problem' }, `${failure.reason}: ${failure.message}`)] : []),
    ...warnings.map(({ reason, message }) => el('p', { class: 'caution' }, `${reason}: ${message}`)),
    facts([
      ['State', stateOf(dataset)],
      ['Training tokens', whole(train?.tokenCount)],
      ['Held-out tokens', whole(heldOut?.tokenCount)],
      ['Vocabulary', whole(tokenizer?.vocabularySize)],
      ['Rows left out', whole(skippedRows?.rowCount ?? 0)],
      ['Manifest', dataset.manifestSha256.slice(0, 16)],
      ['Created', age(dataset.createTime)],
    ]),
  ];
}

/** The first of many files, in as many columns as there is room for. */
function fileList(files: Json<Dataset>['files']): HTMLElement[] {
  const shown = files.slice(0, filesMax);
  const more = files.length - shown.length;
  return [
    el('h2', {}, `Files (${whole(files.length)})`),
    el(
      'ul',
      { class: 'names' },
      ...shown.map((file) =>
        el('li', {}, file.fileName, el('span', { class: 'number muted' }, bytes(file.sizeBytes))),
      ),
    ),
    ...(more > 0 ? [el('p', { class: 'muted' }, `and ${whole(more)} more`)] : []),
  ];
}
