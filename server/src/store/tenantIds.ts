/** Whose everything was before there were tenants, and whose everything is on a server that asks nobody who they are. */
export const defaultTenant = 'default';

/**
 * The id of what a tenant calls by a name: the name itself for the tenant `default`, `tenant.name` for others. Neither tenants nor names
 * have a dot, so no name that a client can write means something of another tenant.
 */
export function idIn(tenant: string, name: string): string {
  return tenant === defaultTenant ? name : `${tenant}.${name}`;
}

/** What its tenant calls it. */
export function nameOf(id: string): string {
  return id.slice(id.indexOf('.') + 1);
}

export function tenantOf(id: string): string {
  const end = id.indexOf('.');
  return end < 0 ? defaultTenant : id.slice(0, end);
}

/** A name as it stands in a specification, such as `weights/x` or `jobs/x/artifacts/y`, with the id in place of what a tenant calls it. */
export function withId(tenant: string, resource: string): string {
  const [kind = '', name = '', ...rest] = resource.split('/');
  return [kind, idIn(tenant, name), ...rest].join('/');
}

/** Back again: as its tenant calls it. */
export function withName(resource: string): string {
  const [kind = '', id = '', ...rest] = resource.split('/');
  return [kind, nameOf(id), ...rest].join('/');
}
