import { createHash } from 'node:crypto';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

/** A local registry with only the archives of a folder; npm uses it only for our scope. */
export async function openRegistry(
  folder: string,
): Promise<{ flags: string[]; asked: Set<string>; close: () => void }> {
  const asked = new Set<string>();
  const packages = new Map(
    readdirSync(folder)
      .filter((file) => file.endsWith('.tgz'))
      .map((file) => {
        const archive = readFileSync(join(folder, file));
        const manifest = JSON.parse(
          execFileSync('tar', ['xzOf', join(folder, file), 'package/package.json'], { encoding: 'utf8' }),
        ) as { name: string; version: string };
        return [manifest.name, { manifest, archive, file }];
      }),
  );
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url!.slice(1));
    const archive = [...packages.values()].find(({ file }) => path === `archives/${file}`);
    if (archive !== undefined) return void response.end(archive.archive);
    asked.add(path);
    const found = packages.get(path);
    if (found === undefined) return void response.writeHead(404).end('{}');
    const { manifest, file } = found;
    const { version } = manifest;
    const integrity = `sha512-${createHash('sha512').update(found.archive).digest('base64')}`;
    const tarball = `http://${request.headers.host}/archives/${file}`;
    const versions = { [version]: { ...manifest, dist: { tarball, integrity } } };
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({ name: path, 'dist-tags': { latest: version }, versions }));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
  return { flags: [`--@relora:registry=${address}`], asked, close: () => void server.close() };
}
