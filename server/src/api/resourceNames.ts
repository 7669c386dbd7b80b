import { quote, ServiceError } from '../errors.js';

/** Ids as they may stand in names: chosen by clients or made by the server. A name is never a path. */
const id = '[a-z][a-z0-9-]{2,61}[a-z0-9]';
const jobPattern = new RegExp(`^jobs/(${id})$`);
const datasetPattern = new RegExp(`^datasets/(${id})$`);
const weightsPattern = new RegExp(`^weights/(${id})$`);
const artifactPattern = new RegExp(`^jobs/(${id})/artifacts/([a-z0-9][a-z0-9-]{0,62})$`);

/** Id of `jobs/{job}`; throws REQUEST_INVALID. */
export function parseJobName(field: string, name: string): string {
  return jobIdOf(name) ?? refuse(field, 'jobs/{job}', name);
}

/** Id of `jobs/{job}`, or undefined. */
export function jobIdOf(name: string): string | undefined {
  return jobPattern.exec(name)?.[1];
}

/** Id of `datasets/{dataset}`; throws REQUEST_INVALID. */
export function parseDatasetName(field: string, name: string): string {
  return datasetIdOf(name) ?? refuse(field, 'datasets/{dataset}', name);
}

/** Id of `datasets/{dataset}`, or undefined. */
export function datasetIdOf(name: string): string | undefined {
  return datasetPattern.exec(name)?.[1];
}

/** Ids of `jobs/{job}/artifacts/{artifact}`; throws REQUEST_INVALID. */
export function parseArtifactName(field: string, name: string): { jobId: string; artifactId: string } {
  return artifactIdsOf(name) ?? refuse(field, 'jobs/{job}/artifacts/{artifact}', name);
}

/** Ids of `jobs/{job}/artifacts/{artifact}`, or undefined. */
export function artifactIdsOf(name: string): { jobId: string; artifactId: string } | undefined {
  const match = artifactPattern.exec(name);
  return match === null ? undefined : { jobId: match[1]!, artifactId: match[2]! };
}

/** Id of `weights/{weights}`; throws REQUEST_INVALID. */
export function parseWeightsName(field: string, name: string): string {
  return weightsIdOf(name) ?? refuse(field, 'weights/{weights}', name);
}

/** Id of `weights/{weights}`, or undefined. */
export function weightsIdOf(name: string): string | undefined {
  return weightsPattern.exec(name)?.[1];
}

function refuse(field: string, expected: string, got: string): never {
  throw new ServiceError('REQUEST_INVALID', { problems: [{ field, expected, got: quote(got) }] });
}
