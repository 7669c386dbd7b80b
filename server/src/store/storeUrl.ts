/** Where blobs are that several servers share. */
export type StoreUrl =
  | { kind: 'folder'; path: string }
  | {
      kind: 's3';
      bucket: string;
      prefix: string;
      endpoint: string | undefined;
      region: string;
      pathStyle: boolean;
    };

export const storeUrlRange =
  'file:///folder, or s3://bucket/prefix with ?region=, ?endpoint=http://host:port and ?path_style=on';

/** Undefined if it is not such a URL; the rest is checked by PostgreSQL at the start. */
export function parseDatabaseUrl(text: string): string | undefined {
  // Without `//`, pg would take it for the name of a local database.
  return URL.canParse(text) && /^postgres(ql)?:\/\/\S+$/.test(text) ? text : undefined;
}

const parameters = ['region', 'endpoint', 'path_style'];

/** Undefined if it is not such a URL. It cannot contain credentials: the AWS SDK finds them in its usual places. */
export function parseStoreUrl(text: string): StoreUrl | undefined {
  if (!URL.canParse(text)) return undefined;
  const url = new URL(text);
  if (url.username !== '' || url.password !== '' || url.port !== '' || url.hash !== '') return undefined;
  if (url.protocol === 'file:') {
    const path = decodeURIComponent(url.pathname);
    const isPlain = url.hostname === '' && url.search === '' && path !== '/' && !path.includes('\0');
    return isPlain ? { kind: 'folder', path: path.replace(/\/+$/, '') } : undefined;
  }
  const { hostname: bucket, searchParams } = url;
  const prefix = url.pathname.replace(/^\/+|\/+$/g, '');
  if (url.protocol !== 's3:' || !/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(bucket)) return undefined;
  if (!/^([\w.-]+(\/[\w.-]+)*)?$/.test(prefix)) return undefined;
  if ([...searchParams.keys()].some((name) => !parameters.includes(name))) return undefined;
  const endpoint = searchParams.get('endpoint') ?? undefined;
  if (endpoint !== undefined && !/^https?:\/\/[^/?#]+\/?$/.test(endpoint)) return undefined;
  const pathStyle = searchParams.get('path_style') ?? (endpoint === undefined ? 'off' : 'on');
  if (pathStyle !== 'on' && pathStyle !== 'off') return undefined;
  const region = searchParams.get('region') ?? 'us-east-1';
  return { kind: 's3', bucket, prefix, endpoint, region, pathStyle: pathStyle === 'on' };
}
