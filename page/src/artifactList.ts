import type { Artifact } from '@relora/sdk/contract';
import { call, type Json } from './api.js';
import { el, fill } from './element.js';
import { bytes, figure, idOf, whole, word } from './format.js';

/** The artifacts of a job, with a download link for each file. */
export class ArtifactList {
  readonly element = el(
    'div',
    {},
    el('p', { class: 'muted' }, 'None. The last step of a job is followed by an export.'),
  );

  constructor(private readonly jobId: string) {}

  async load(signal: AbortSignal): Promise<void> {
    const { artifacts } = await call(
      'ArtifactService',
      'listArtifacts',
      { parent: `jobs/${this.jobId}`, pageSize: 100 },
      signal,
    );
    if (artifacts.length > 0)
      fill(this.element, ...artifacts.reverse().map((artifact) => this.item(artifact)));
  }

  private item(artifact: Json<Artifact>): HTMLElement {
    const id = idOf(artifact.name);
    const { state, format, weightType, castErrorMax, difference, step, failure, files } = artifact;
    const what = [
      word(format, 'EXPORT_FORMAT').replace('_', ' '),
      word(weightType, 'WEIGHT_TYPE'),
      `step ${whole(step)}`,
      Number(castErrorMax) > 0 ? `cast error ${figure(castErrorMax)}` : 'exact',
      ...(difference
        ? [
            `logits ${figure(100 * Number(difference.logitDifferenceRatio))} % off, loss ${figure(difference.exportedLoss)} for ${figure(difference.loss)}`,
          ]
        : []),
    ];
    const links = files.map(({ fileName, sizeBytes, sha256 }) =>
      el(
        'li',
        {},
        el(
          'a',
          {
            href: this.pathOf(id, fileName),
            download: fileName.split('/').at(-1)!,
            title: `SHA-256 ${sha256}`,
          },
          fileName,
        ),
        el('span', { class: 'number muted' }, bytes(sizeBytes)),
      ),
    );
    return el(
      'details',
      { class: 'artifact', open: state !== 'ARTIFACT_STATE_READY' },
      el(
        'summary',
        {},
        el('strong', {}, id),
        el(
          'span',
          { class: 'number muted' },
          state === 'ARTIFACT_STATE_READY' ? bytes(artifact.sizeBytes) : word(state, 'ARTIFACT_STATE'),
        ),
      ),
      el('p', { class: 'muted' }, failure ? `${failure.reason}: ${failure.message}` : what.join(' · ')),
      el('ul', { class: 'files' }, ...links),
      el(
        'p',
        { class: 'muted' },
        'All files, with their hashes checked: ',
        el('code', {}, `relora download ${this.jobId}`),
      ),
    );
  }

  private pathOf(artifact: string, fileName: string): string {
    return `/api/jobs/${encodeURIComponent(this.jobId)}/artifacts/${encodeURIComponent(artifact)}/${fileName.split('/').map(encodeURIComponent).join('/')}`;
  }
}
