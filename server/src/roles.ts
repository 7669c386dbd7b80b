/** In ascending order, each including those before it: read; change what the tenant has; act for every tenant and on the server itself. */
export const roles = ['viewer', 'trainer', 'operator'] as const;
export type Role = (typeof roles)[number];
