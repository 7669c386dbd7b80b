import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it, onTestFinished } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { readConfig } from '../server/dist/config.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const hasProgram = (name: string): boolean => spawnSync(name, ['--help']).error === undefined;

interface Kustomization {
  resources: string[];
  configMapGenerator: { name: string; literals: string[] }[];
}
interface Probe {
  httpGet: { path: string; scheme: string };
}
interface Manifest {
  kind: string;
  metadata: { name: string };
  spec: {
    template: {
      spec: {
        terminationGracePeriodSeconds: number;
        containers: { livenessProbe: Probe; readinessProbe: Probe; volumeMounts: { name: string }[] }[];
        volumes: { name: string; secret?: { secretName: string } }[];
      };
    };
    volumeClaimTemplates: { metadata: { name: string } }[];
  };
}

const folder = join(root, 'deploy/kubernetes');
const kustomization = parse(readFileSync(join(folder, 'kustomization.yml'), 'utf8'), {
  strict: true,
}) as Kustomization;
const manifests = kustomization.resources.flatMap((file) =>
  parseAllDocuments(readFileSync(join(folder, file), 'utf8'), { strict: true }).map(
    (document) => document.toJS() as Manifest,
  ),
);
const servers = manifests.find(({ kind }) => kind === 'StatefulSet')!.spec;

it('the settings of the pods are such that the server takes, and it is stopped later than it stops', () => {
  const literals = kustomization.configMapGenerator[0]!.literals.map((text) => text.split(/=(.*)/s, 2));
  const config = readConfig({
    ...(Object.fromEntries(literals) as Record<string, string>),
    RELORA_DATABASE_URL: 'postgres://relora@db/relora',
    RELORA_STORE_URL: 's3://training/fleet',
  });
  const { terminationGracePeriodSeconds } = servers.template.spec;
  expect(config.shutdownSeconds).toBeLessThan(terminationGracePeriodSeconds);
  expect(config.tlsCertificate).not.toBe('');
});

it('every volume that a pod mounts is there, and probes ask what the server answers', () => {
  const { containers, volumes } = servers.template.spec;
  const names = [...volumes, ...servers.volumeClaimTemplates.map(({ metadata }) => metadata)].map(
    ({ name }) => name,
  );
  for (const { name } of containers[0]!.volumeMounts) expect(names).toContain(name);
  const { livenessProbe, readinessProbe } = containers[0]!;
  expect(livenessProbe.httpGet).toMatchObject({ path: '/healthz', scheme: 'HTTPS' });
  expect(readinessProbe.httpGet).toMatchObject({ path: '/readyz', scheme: 'HTTPS' });
});

it.skipIf(!hasProgram('kubectl'))('kustomize makes every manifest', () => {
  const { status, stdout, stderr } = spawnSync('kubectl', ['kustomize', folder], { encoding: 'utf8' });
  expect(stderr).toBe('');
  expect(status).toBe(0);
  const kinds = parseAllDocuments(stdout).map((document) => (document.toJS() as Manifest).kind);
  expect(kinds.sort()).toEqual([
    'ConfigMap',
    'Namespace',
    'PodDisruptionBudget',
    'Service',
    'ServiceMonitor',
    'StatefulSet',
  ]);
});

it.skipIf(!hasProgram('systemd-analyze'))('systemd takes the unit', () => {
  const temporary = mkdtempSync(join(tmpdir(), 'relora-unit-'));
  onTestFinished(() => rmSync(temporary, { recursive: true }));
  const unit = join(temporary, 'relora.service');
  copyFileSync(join(root, 'deploy/systemd/relora.service'), unit);
  const { status, stderr } = spawnSync('systemd-analyze', ['verify', unit], { encoding: 'utf8' });
  expect(stderr).toBe('');
  expect(status).toBe(0);
});
