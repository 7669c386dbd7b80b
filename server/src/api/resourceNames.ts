import { quote, ServiceError } from '../errors.js';
import { idIn } from '../store/tenantIds.js';

/**
 * Names as clients write them within their tenant, chosen by a client or made by the server. A name is never a path. It is turned into the
 * id in the store, which no name of another tenant can refer to.
 */
const id = '[a-z][a-z0-9-]{2,61}[a-z0-9]';
const jobPattern = new RegExp(`^jobs/(${id})$`);
const datasetPattern = new RegExp(`^datasets/(${id})$`);
const weightsPattern = new RegExp(`^weights/(${id})$`);
const webhookPattern = new RegExp(`^webhooks/(${id})$`);
const artifactPattern = new RegExp(`^jobs/(${id})/artifacts/([a-z0-9][a-z0-9-]{0,62})$`);

/** Id of `jobs/{job}`; throws REQUEST_INVALID. */
export function parseJobName(tenant: string, field: string, name: string): string {
  return jobIdOf(tenant, name) ?? refuse(field, 'jobs/{job}', name);
}

/** Id of `jobs/{job}`, or undefined. */
export function jobIdOf(tenant: string, name: string): string | undefined {
  return qualify(tenant, jobPattern.exec(name)?.[1]);
}

/** Id of `datasets/{dataset}`; throws REQUEST_INVALID. */
export function parseDatasetName(tenant: string, field: string, name: string): string {
  return datasetIdOf(tenant, name) ?? refuse(field, 'datasets/{dataset}', name);
}

/** Id of `datasets/{dataset}`, or undefined. */
export function datasetIdOf(tenant: string, name: string): string | undefined {
  return qualify(tenant, datasetPattern.exec(name)?.[1]);
}

/** Ids of `jobs/{job}/artifacts/{artifact}`; throws REQUEST_INVALID. */
export function parseArtifactName(
  tenant: string,
  field: string,
  name: string,
): { jobId: string; artifactId: string } {
  return artifactIdsOf(tenant, name) ?? refuse(field, 'jobs/{job}/artifacts/{artifact}', name);
}

/** Ids of `jobs/{job}/artifacts/{artifact}`, or undefined. */
export function artifactIdsOf(
  tenant: string,
  name: string,
): { jobId: string; artifactId: string } | undefined {
  const match = artifactPattern.exec(name);
  return match === null ? undefined : { jobId: idIn(tenant, match[1]!), artifactId: match[2]! };
}

/** Id of `webhooks/{webhook}`; throws REQUEST_INVALID. */
export function parseWebhookName(tenant: string, field: string, name: string): string {
  return qualify(tenant, webhookPattern.exec(name)?.[1]) ?? refuse(field, 'webhooks/{webhook}', name);
}

/** Id of `weights/{weights}`; throws REQUEST_INVALID. */
export function parseWeightsName(tenant: string, field: string, name: string): string {
  return weightsIdOf(tenant, name) ?? refuse(field, 'weights/{weights}', name);
}

/** Id of `weights/{weights}`, or undefined. */
export function weightsIdOf(tenant: string, name: string): string | undefined {
  return qualify(tenant, weightsPattern.exec(name)?.[1]);
}

function qualify(tenant: string, name: string | undefined): string | undefined {
  return name === undefined ? undefined : idIn(tenant, name);
}

const idRule = 'an id of 4 to 63 of a-z 0-9 -, beginning with a letter, ending with a letter or digit';

function refuse(field: string, shape: string, got: string): never {
  // The shape is right, so the id is what is wrong.
  const isNamed = new RegExp(`^${shape.replace(/\{\w+\}/g, '[^/]+')}$`).test(got);
  const expected = isNamed ? `${shape} with ${idRule}` : shape;
  throw new ServiceError('REQUEST_INVALID', { problems: [{ field, expected, got: quote(got) }] });
}
