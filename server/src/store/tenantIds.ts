/** The tenant of everything from before there were tenants, and on a server without a login. */
export const defaultTenant = 'default';

/**
 * The id for a name of a tenant: the name itself for the tenant `default`, `tenant.name` for others. Neither tenants nor names have a dot,
 * so no name that a client can write refers to another tenant.
 */
export function idIn(tenant: string, name: string): string {
  return tenant === defaultTenant ? name : `${tenant}.${name}`;
}

/** The name by which its tenant knows it. */
export function nameOf(id: string): string {
  return id.slice(id.indexOf('.') + 1);
}

export function tenantOf(id: string): string {
  const end = id.indexOf('.');
  return end < 0 ? defaultTenant : id.slice(0, end);
}

/** A name in a specification, such as `weights/x` or `jobs/x/artifacts/y`, with the id in place of the tenant's name. */
export function withId(tenant: string, resource: string): string {
  const [kind = '', name = '', ...rest] = resource.split('/');
  return [kind, idIn(tenant, name), ...rest].join('/');
}

/** The reverse: with the name that its tenant uses. */
export function withName(resource: string): string {
  const [kind = '', id = '', ...rest] = resource.split('/');
  return [kind, nameOf(id), ...rest].join('/');
}
