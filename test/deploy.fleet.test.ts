import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Ajv } from 'ajv';
import { describe, expect, it, onTestFinished } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { readConfig } from '../server/dist/config.js';
import { metricTable } from '../server/dist/metrics/metricTable.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const hasProgram = (name: string): boolean => spawnSync(name, ['--help']).error === undefined;

interface Kustomization {
  configMapGenerator: { name: string; literals: string[] }[];
}
interface Probe {
  httpGet?: { path: string; scheme: string };
  grpc?: { port: number };
}
interface Container {
  image: string;
  ports: { containerPort: number }[];
  livenessProbe: Probe;
  readinessProbe: Probe;
  startupProbe: Probe;
  resources: { limits: Record<string, unknown> };
  volumeMounts: { name: string }[];
}
interface Manifest {
  kind: string;
  metadata: { name: string };
  spec: {
    selector: { matchLabels: Record<string, string> };
    template: {
      metadata: { labels: Record<string, string> };
      spec: {
        terminationGracePeriodSeconds: number;
        containers: [Container];
        volumes: { name: string; secret?: { secretName: string } }[];
      };
    };
    volumeClaimTemplates: { metadata: { name: string } }[];
    minReplicaCount: number;
    triggers: { metadata: { query: string; threshold: string } }[];
  };
}

const folder = join(root, 'deploy/kubernetes');
const read = (path: string): Manifest[] =>
  parseAllDocuments(readFileSync(join(folder, path), 'utf8'), { strict: true }).map(
    (document) => document.toJS() as Manifest,
  );
const { configMapGenerator } = parse(readFileSync(join(folder, 'base/kustomization.yml'), 'utf8'), {
  strict: true,
}) as Kustomization;
const settings = Object.fromEntries(
  configMapGenerator[0]!.literals.map((text) => text.split(/=(.*)/s, 2)),
) as Record<string, string>;
const config = readConfig({
  ...settings,
  RELORA_DATABASE_URL: 'postgres://relora@db/relora',
  RELORA_STORE_URL: 's3://training/fleet',
});
const pods = ['base/servers.yml', 'cards/servers.yml'].map((path) => ({ path, spec: read(path)[0]!.spec }));

describe.each(pods)('pods of $path', ({ spec }) => {
  const {
    terminationGracePeriodSeconds,
    containers: [container],
    volumes,
  } = spec.template.spec;

  it('have settings that the server takes, and are stopped later than it stops', () => {
    expect(config.shutdownSeconds).toBeLessThan(terminationGracePeriodSeconds);
    expect(config.tlsCertificate).not.toBe('');
    // Connections are closed now and then, so that clients find new pods; but not before their streams end.
    expect(config.connectionAgeSeconds).toBeGreaterThan(0);
  });

  it('have every volume that they mount, and probes that ask what the server answers', () => {
    const names = [...volumes, ...spec.volumeClaimTemplates.map(({ metadata }) => metadata)].map(
      ({ name }) => name,
    );
    for (const { name } of container.volumeMounts) expect(names).toContain(name);
    const { livenessProbe, readinessProbe, startupProbe } = container;
    expect(readinessProbe.httpGet).toMatchObject({ path: '/readyz', scheme: 'HTTPS' });
    for (const probe of [livenessProbe, startupProbe])
      expect(probe.grpc).toEqual({ port: config.healthAddress!.port });
    const ports = container.ports.map(({ containerPort }) => containerPort);
    const { grpcAddress, httpAddress, healthAddress } = config;
    expect(ports).toEqual([grpcAddress.port, httpAddress.port, healthAddress!.port]);
  });

  it('are those of their own set alone', () => {
    const { labels } = spec.template.metadata;
    const selects = ({ selector: { matchLabels } }: Manifest['spec']) =>
      Object.entries(matchLabels).every(([key, value]) => labels[key] === value);
    expect(pods.filter((other) => selects(other.spec)).map((other) => other.spec)).toEqual([spec]);
  });
});

it('pods with cards ask for one, and have the image that has the libraries', () => {
  const [{ image, resources }] = pods[1]!.spec.template.spec.containers;
  expect(resources.limits['nvidia.com/gpu']).toBe(1);
  expect(image).toBe('relora-gpu');
  expect(pods[0]!.spec.template.spec.containers[0].resources.limits).not.toHaveProperty('nvidia.com/gpu');
});

it('the scaler asks for metrics that the server has, one server for as many jobs as it runs', () => {
  const [{ spec }] = read('scaling/scaler.yml') as [Manifest];
  const { query, threshold } = spec.triggers[0]!.metadata;
  expect(query).toContain(`${metricTable.jobs.name}{`);
  const states = /state=~"([^"]*)"/.exec(query)![1]!.split('|');
  expect(states.sort()).toEqual(['queued', 'running', 'starting']);
  expect(Number(threshold)).toBe(config.slots);
  expect(spec.minReplicaCount).toBeGreaterThanOrEqual(2);
});

const kubernetes = JSON.parse(readFileSync(join(root, 'test/fixtures/schemas/kubernetes.json'), 'utf8')) as {
  kinds: Record<string, string>;
  definitions: object;
};
/** The kinds that operators define. */
const ofOperators = JSON.parse(
  readFileSync(join(root, 'test/fixtures/schemas/operators.json'), 'utf8'),
) as Record<string, object>;
const inBase = ['ConfigMap', 'Namespace', 'PodDisruptionBudget', 'Service', 'ServiceMonitor', 'StatefulSet'];

describe.skipIf(!hasProgram('kubectl'))('kustomize', () => {
  const ajv = new Ajv({ strict: false, validateFormats: false });
  ajv.addSchema(kubernetes, 'kubernetes');

  it.each([
    ['.', inBase],
    ['cards', [...inBase, 'StatefulSet']],
    ['scaling', [...inBase, 'ScaledObject'].sort()],
  ])('makes every manifest of %s, as the schemas of Kubernetes and its operators have it', (name, kinds) => {
    const { status, stdout, stderr } = spawnSync('kubectl', ['kustomize', join(folder, name)], {
      encoding: 'utf8',
    });
    expect(stderr).toBe('');
    expect(status).toBe(0);
    const made = parseAllDocuments(stdout).map((document) => document.toJS() as Manifest);
    expect(made.map(({ kind }) => kind).sort()).toEqual(kinds);
    for (const manifest of made) {
      const { kind } = manifest;
      const validate = ajv.compile(
        ofOperators[kind] ?? { $ref: `kubernetes#/definitions/${kubernetes.kinds[kind]!}` },
      );
      expect(validate(manifest), `${kind} ${JSON.stringify(validate.errors)}`).toBe(true);
      // The schema knows every field: a misspelled one is refused.
      expect(validate({ ...manifest, sepc: {} })).toBe(false);
    }
  });
});

const kubeconform = [...(process.env.PATH ?? '').split(delimiter), join(homedir(), 'go/bin')]
  .map((path) => join(path, 'kubeconform'))
  .find((path) => existsSync(path));

it.skipIf(kubeconform === undefined || !hasProgram('kubectl'))('kubeconform takes every manifest', () => {
  const temporary = mkdtempSync(join(tmpdir(), 'relora-schemas-'));
  onTestFinished(() => rmSync(temporary, { recursive: true }));
  const { kinds, definitions } = kubernetes;
  for (const [kind, name] of Object.entries(kinds)) {
    const schema = { $ref: `#/definitions/${name}`, definitions };
    writeFileSync(join(temporary, `${kind.toLowerCase()}.json`), JSON.stringify(schema));
  }
  for (const [kind, schema] of Object.entries(ofOperators))
    writeFileSync(join(temporary, `${kind.toLowerCase()}.json`), JSON.stringify(schema));
  for (const name of ['.', 'cards', 'scaling']) {
    const { stdout: input } = spawnSync('kubectl', ['kustomize', join(folder, name)], { encoding: 'utf8' });
    const options = ['-strict', '-schema-location'];
    const place = join(temporary, '{{ .ResourceKind }}.json');
    const { stdout, status } = spawnSync(kubeconform!, [...options, place], { input, encoding: 'utf8' });
    expect({ stdout, status }, name).toEqual({ stdout: '', status: 0 });
  }
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
