/**
 * Whether an operation failed because the disk, or the quota on it, is full. What it began was undone: it can be tried
 * again once there is room. Any other failure of the store is none that waiting mends.
 */
export function isDiskFull(error: unknown): boolean {
  const { code } = (error ?? {}) as { code?: unknown };
  return code === 'SQLITE_FULL' || code === 'ENOSPC' || code === 'EDQUOT';
}
