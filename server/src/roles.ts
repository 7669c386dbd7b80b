/** Each may what those before it may: read; change what its tenant has; and act for every tenant and on the server itself. */
export const roles = ['viewer', 'trainer', 'operator'] as const;
export type Role = (typeof roles)[number];
