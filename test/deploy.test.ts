import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Ajv } from 'ajv';
import { describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { dashboardText } from '../scripts/makeDashboards.mjs';
import { metricTable, type MetricEntry } from '../server/dist/metrics/metricTable.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const read = (path: string): string => readFileSync(join(root, path), 'utf8');

/** All metric names served, with their labels. */
const series = new Map<string, readonly string[]>(
  Object.values(metricTable as Record<string, MetricEntry>).flatMap(({ name, type, labels }) =>
    type === 'histogram'
      ? [
          [`${name}_bucket`, [...labels, 'le']],
          [`${name}_sum`, labels],
          [`${name}_count`, labels],
        ]
      : [[name, labels]],
  ) as [string, readonly string[]][],
);

interface Panel {
  title: string;
  type: string;
  id: number;
  gridPos: { x: number; y: number; w: number; h: number };
  targets?: { expr: string }[];
}
interface Dashboard {
  uid: string;
  panels: Panel[];
  annotations: { list: { name: string; expr: string }[] };
  templating: { list: { name: string; query: string | { query: string } }[] };
}

const dashboards = readdirSync(join(root, 'deploy/grafana/dashboards')).map(
  (file) => JSON.parse(read(`deploy/grafana/dashboards/${file}`)) as Dashboard,
);
/** Throws on invalid YAML, including repeated keys. */
const readYaml = (path: string): unknown =>
  parse(read(path), { strict: true, uniqueKeys: true, merge: true });
const { groups } = readYaml('deploy/prometheus/rules.yml') as {
  groups: { rules: { alert: string; expr: string; annotations: Record<string, string> }[] }[];
};
const alerts = groups.flatMap(({ rules }) => rules);
const compose = read('docker-compose.yml');
const { $schema: _, ...composeSchema } = JSON.parse(read('test/fixtures/schemas/compose-spec.json')) as {
  $schema: string;
};

const queries = [
  ...dashboards.flatMap(({ panels, annotations, templating }) => [
    ...panels.flatMap((panel) => (panel.targets ?? []).map(({ expr }) => expr)),
    ...annotations.list.map(({ expr }) => expr),
    ...templating.list.map(({ query }) => (typeof query === 'string' ? query : query.query)),
  ]),
  ...alerts.map(({ expr }) => expr),
];

describe('dashboards and alerts', () => {
  it('are written in YAML and JSON, and every alert says what it means', () => {
    for (const path of [
      'docker-compose.yml',
      'deploy/prometheus/prometheus.yml',
      'deploy/prometheus/alertmanager.yml',
      'deploy/grafana/provisioning/datasources/prometheus.yml',
      'deploy/grafana/provisioning/dashboards/relora.yml',
    ]) {
      expect(readYaml(path), path).toBeTypeOf('object');
    }
    expect(dashboards).toHaveLength(1);
    expect(alerts.length).toBeGreaterThan(5);
    for (const { alert, annotations } of alerts) {
      expect(annotations, alert).toMatchObject({
        summary: expect.any(String) as string,
        description: expect.any(String) as string,
      });
    }
  });

  it('are what the script makes with the builders of Grafana', async () => {
    expect(read('deploy/grafana/dashboards/relora.json')).toBe(await dashboardText());
  });

  it('lead to a section of the runbook each, which has a section for each alert in their order', () => {
    const sections = [...read('docs/runbook.md').matchAll(/^## (\w+)$/gm)].map((match) => match[1]!);
    expect(sections).toEqual(alerts.map(({ alert }) => alert));
    for (const { alert, annotations } of alerts)
      expect(annotations.runbook_url).toBe(`docs/runbook.md#${alert.toLowerCase()}`);
  });

  it('ask only for metrics that the server has', () => {
    const names = queries.flatMap((query) => query.match(/\brelora_[a-z0-9_]+/g) ?? []);
    expect(names.length).toBeGreaterThan(40);
    expect([...new Set(names)].filter((name) => !series.has(name))).toEqual([]);
  });

  it('ask only for labels that these metrics have', () => {
    const wrong: string[] = [];
    for (const query of queries) {
      for (const [, name, selector] of query.matchAll(/\b(relora_[a-z0-9_]+)\{([^}]*)\}/g)) {
        for (const [, label] of selector!.matchAll(/([a-z_]+)\s*(?:=~|!~|!=|=)/g)) {
          if (!series.get(name!)?.includes(label!)) wrong.push(`${name} has no label ${label}`);
        }
      }
    }
    expect(wrong).toEqual([]);
  });

  it('have whole expressions', () => {
    for (const query of queries) {
      for (const [open, close] of [
        ['(', ')'],
        ['{', '}'],
        ['[', ']'],
      ] as const) {
        expect(query.split(open).length, query).toBe(query.split(close).length);
      }
    }
  });

  it('show what a person wants to see of a run', () => {
    const text = JSON.stringify(dashboards);
    for (const name of [
      'relora_job_loss_smoothed',
      'relora_job_learning_rate',
      'relora_job_tokens_per_second',
      'relora_job_gradient_norm',
      'relora_job_resident_bytes',
      'relora_jobs',
    ]) {
      expect(text).toContain(name);
    }
    expect(dashboards[0]!.annotations.list.some(({ expr }) => expr.includes('relora_job_restarts'))).toBe(
      true,
    );
  });

  it('place panels beside each other, never on top', () => {
    for (const { panels } of dashboards) {
      expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
      for (const [index, { gridPos: a, title }] of panels.entries()) {
        expect(a.x + a.w, title).toBeLessThanOrEqual(24);
        for (const { gridPos: b, title: other } of panels.slice(index + 1)) {
          const apart = a.x + a.w <= b.x || b.x + b.w <= a.x || a.y + a.h <= b.y || b.y + b.h <= a.y;
          expect(apart, `${title} and ${other}`).toBe(true);
        }
      }
    }
  });
});

interface Service {
  image?: string;
  profiles?: string[];
  scale?: number;
  environment?: Record<string, string>;
  ports?: string[];
  command?: string[];
  depends_on?: Record<string, { condition: string }>;
  healthcheck?: object;
  mem_limit?: string;
}

/** With compose's defaults for unset variables. */
function withDefaults(environment: Record<string, string>): Record<string, string> {
  const filled = Object.entries(environment).map(([name, value]) => [
    name,
    value.replaceAll(/\$\{\w+:-([^}]*)\}/g, '$1'),
  ]);
  return Object.fromEntries(filled) as Record<string, string>;
}

const composeServices = (readYaml('docker-compose.yml') as { services: Record<string, Service> }).services;

describe('docker-compose.yml', () => {
  const volumes = [...compose.matchAll(/^ {6}- (\S+):(\/\S*?)(:ro)?$/gm)].map(([, source, target]) => ({
    source: source!,
    target: target!,
  }));

  it('mounts what is there, and declares the volumes that it names', () => {
    expect(volumes.length).toBeGreaterThan(4);
    const declared = [...compose.slice(compose.indexOf('\nvolumes:')).matchAll(/^ {2}([a-z0-9-]+):/gm)].map(
      (match) => match[1],
    );
    for (const { source } of volumes) {
      if (source.startsWith('./')) expect(existsSync(join(root, source)), source).toBe(true);
      else expect(declared).toContain(source);
    }
    expect(declared.filter((name) => !volumes.some(({ source }) => source === name))).toEqual([]);
  });

  it('opens ports on this machine only, and fixes the version of every image', () => {
    const ports = Object.values(composeServices).flatMap(({ ports: ofService = [] }) => ofService);
    expect(ports.length).toBeGreaterThanOrEqual(7);
    for (const port of ports) expect(port).toMatch(/^127\.0\.0\.1:\d+(-\d+)?:\d+$/);
    const images = Object.values(composeServices).flatMap(({ image = [] }) => image);
    // PostgreSQL's versions have only two numbers.
    expect(images.filter((image) => !/:(v?\d+\.\d+\.\d+|(?<=postgres:)\d+\.\d+)$/.test(image))).toEqual([]);
  });

  it('starts each service when those that it needs are well, and bounds its memory', () => {
    expect(Object.keys(composeServices)).toEqual([
      ...['server', 'fleet', 'postgres', 's3'],
      ...['prometheus', 'alertmanager', 'grafana'],
    ]);
    for (const [name, { depends_on: needed = {}, healthcheck, mem_limit: limit }] of Object.entries(
      composeServices,
    )) {
      expect(limit, name).toMatch(/^\d+[mg]$/);
      // The server's image has its own health check.
      if (name !== 'server' && name !== 'fleet') expect(healthcheck, name).toBeTypeOf('object');
      for (const [other, { condition }] of Object.entries(needed))
        expect([other in composeServices, condition], `${name} needs ${other}`).toEqual([
          true,
          'service_healthy',
        ]);
    }
  });

  it('Prometheus sends what fires to an Alertmanager that is there', () => {
    const { alerting } = readYaml('deploy/prometheus/prometheus.yml') as {
      alerting: { alertmanagers: { static_configs: { targets: string[] }[] }[] };
    };
    expect(alerting.alertmanagers[0]!.static_configs[0]!.targets).toEqual(['alertmanager:9093']);
    expect(compose).toContain('--config.file=/etc/alertmanager/alertmanager.yml');
    const { route, receivers } = readYaml('deploy/prometheus/alertmanager.yml') as {
      route: { receiver: string };
      receivers: { name: string }[];
    };
    expect(receivers.map(({ name }) => name)).toContain(route.receiver);
  });

  it('Prometheus scrapes the port that the server serves, and finds its rules', () => {
    const prometheus = read('deploy/prometheus/prometheus.yml');
    const port = /RELORA_HTTP_ADDRESS: 0\.0\.0\.0:(\d+)/.exec(compose)?.[1];
    expect(prometheus).toContain(`server:${port}`);
    const mounted = volumes.find(({ target }) => target === '/etc/prometheus')!;
    const rulesPath = /- \/etc\/prometheus\/(\S+)/.exec(prometheus)![1]!;
    expect(existsSync(join(root, mounted.source, rulesPath))).toBe(true);
  });

  it('Grafana finds its data source and dashboards', () => {
    expect(read('deploy/grafana/provisioning/datasources/prometheus.yml')).toContain(
      'url: http://prometheus:9090',
    );
    const path = /path: (\S+)/.exec(read('deploy/grafana/provisioning/dashboards/relora.yml'))![1]!;
    const mounted = volumes.find(({ target }) => target === path)!;
    expect(readdirSync(join(root, mounted.source))).toContain('relora.json');
    expect(compose).toContain(`GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH: ${path}/relora.json`);
  });

  it.each(['docker-compose.yml', 'deploy/docker-compose.gpu.yml'])(
    '%s is as the schema of compose has it',
    (path) => {
      const validate = new Ajv({ strict: false, validateFormats: false }).compile(composeSchema);
      const file = readYaml(path) as { services: Record<string, object> };
      expect(validate(file), JSON.stringify(validate.errors)).toBe(true);
      // Checks that the schema finds errors.
      const [name] = Object.keys(file.services) as [string];
      const wrong = {
        ...file,
        services: { ...file.services, [name]: { ...file.services[name], memlimit: '1g' } },
      };
      expect(validate(wrong)).toBe(false);
    },
  );

  it('has a profile of three servers over PostgreSQL and S3, each at ports of its own', async () => {
    const { readConfig } = await import('../server/dist/config.js');
    const { fleet, postgres, s3 } = composeServices as Record<'fleet' | 'postgres' | 's3', Service>;
    for (const service of [fleet, postgres, s3]) expect(service.profiles).toEqual(['fleet']);
    const environment = withDefaults(fleet.environment!);
    const { databaseUrl, storeUrl } = readConfig(
      Object.fromEntries(Object.entries(environment).filter(([name]) => name.startsWith('RELORA_'))),
    );
    const { username, password, hostname, pathname } = new URL(databaseUrl!);
    const { POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB } = withDefaults(postgres.environment!);
    expect([username, password, hostname, pathname]).toEqual([
      ...[POSTGRES_USER, POSTGRES_PASSWORD, 'postgres'],
      `/${POSTGRES_DB}`,
    ]);
    const { ROOT_ACCESS_KEY, ROOT_SECRET_KEY } = withDefaults(s3.environment!);
    expect([environment.AWS_ACCESS_KEY_ID, environment.AWS_SECRET_ACCESS_KEY]).toEqual([
      ...[ROOT_ACCESS_KEY, ROOT_SECRET_KEY],
    ]);
    const port = s3.command![s3.command!.indexOf('--port') + 1]!;
    expect(storeUrl).toMatchObject({ kind: 's3', bucket: 'relora', endpoint: `http://s3${port}` });
    // The bucket is the folder that the volume creates.
    expect(compose).toContain(`:${s3.command!.at(-1)}/relora\n`);
    for (const range of fleet.ports!) {
      const [, first, last] = /:(\d+)-(\d+):/.exec(range)!;
      expect(Number(last) - Number(first) + 1).toBe(fleet.scale);
    }
  });

  it('the server has longer to stop than it takes', async () => {
    const { readConfig } = await import('../server/dist/config.js');
    const grace = Number(/stop_grace_period: (\d+)s/.exec(compose)![1]);
    expect(grace).toBeGreaterThan(readConfig({}).shutdownSeconds);
  });
});

describe('the image', () => {
  const dockerfile = read('deploy/Dockerfile');

  it('runs as a user without rights, on a supported Node, and says when it is well', () => {
    const stages = dockerfile.split(/^FROM /m).slice(1);
    expect(stages.every((stage) => /^node:24[.\d]*-bookworm-slim/.test(stage))).toBe(true);
    expect(stages.at(-1)).toMatch(/^USER node$/m);
    expect(stages.at(-1)).toContain('HEALTHCHECK');
    // Only with an init process do signals reach a program that has no handlers yet.
    expect(stages.at(-1)).toContain('ENTRYPOINT ["tini", "--"]');
    expect(stages.at(-1)).toContain('CMD ["node", "server/dist/main.js", "health"]');
  });

  it('sets only variables that are settings, and starts a program that is there', async () => {
    const { readConfig } = await import('../server/dist/config.js');
    for (const text of [dockerfile, compose]) {
      const lines = text
        .split('\n')
        .filter((line) => !/^\s*#/.test(line))
        .join('\n');
      const pairs = [...lines.matchAll(/(RELORA_[A-Z_]+)(?:=|: )'?([^\s']+)/g)].map(([, name, value]) => [
        name!,
        value!,
      ]);
      expect(pairs.length).toBeGreaterThan(0);
      const environment = Object.fromEntries(pairs) as Record<string, string>;
      // The image alone would be open to everybody, and therefore does not start.
      if (text === dockerfile) expect(() => readConfig(environment)).toThrow('RELORA_INSECURE');
      expect(() => readConfig({ RELORA_INSECURE: 'plain-text,no-login', ...environment })).not.toThrow();
    }
    expect(compose).toContain('RELORA_INSECURE: plain-text,no-login');
    const open = [...compose.matchAll(/^ +- (\S+):\d+:\d+$/gm)].map(([, host]) => host);
    expect(new Set(open)).toEqual(new Set(['127.0.0.1']));
    const program = /CMD \["node", "([^"]+)"\]/.exec(dockerfile)![1]!;
    expect(existsSync(join(root, program))).toBe(true);
  });

  it('copies every package of the workspace into the build', () => {
    const { workspaces } = JSON.parse(read('package.json')) as { workspaces: string[] };
    for (const name of workspaces) expect(dockerfile).toContain(`COPY ${name}/package.json ${name}/`);
  });
});

it.each(['deploy/Dockerfile', 'deploy/Dockerfile.gpu'])(
  '%s names no architecture: buildx makes it for each',
  (file) => {
    expect(read(file)).not.toMatch(/x86_64|amd64|aarch64|arm64|x64|--platform/i);
  },
);

describe('the image for cards', () => {
  const dockerfile = read('deploy/Dockerfile.gpu');
  const file = 'deploy/docker-compose.gpu.yml';

  it('takes the libraries from where it puts them, and fixes the version of each', async () => {
    const { readConfig } = await import('../server/dist/config.js');
    const folder = /RELORA_CUDA_FOLDER=(\S+)/.exec(dockerfile)![1]!;
    expect(dockerfile).toMatch(new RegExp(`^COPY --from=libraries \\S+ ${folder}$`, 'm'));
    expect(readConfig({ RELORA_CUDA_FOLDER: folder }).cudaFolder).toBe(folder);
    expect(dockerfile).toMatch(new RegExp(`libcublasLt\\.so\\.12 ${folder}/$`, 'm'));
    expect(dockerfile).toMatch(/nvidia-cuda-nvrtc-cu12==\d+\.\d+\.\d+ \\$/m);
    expect(dockerfile).toMatch(/nvidia-cublas-cu12==\d+\.\d+\.\d+\.\d+$/m);
    // Like the CPU image: unprivileged, with its init process and its health check.
    expect(dockerfile.split(/^FROM /m).at(-1)).toMatch(/^\$\{SERVER\}$/m);
    expect(dockerfile).not.toMatch(/^(USER|ENTRYPOINT|CMD)/m);
  });

  it('reserves the cards for the server of the other file, as the schema of compose has it', () => {
    const { services, ...rest } = readYaml(file) as {
      services: Record<string, { build: { dockerfile: string }; deploy: object }>;
    };
    expect(rest).toEqual({});
    expect(Object.keys(services)).toEqual(['server']);
    expect(compose).toMatch(/^ {2}server:$/m);
    expect(existsSync(join(root, services.server!.build.dockerfile))).toBe(true);
    expect(services.server!.deploy).toEqual({
      resources: {
        reservations: { devices: [{ driver: 'nvidia', count: 'all', capabilities: ['gpu'] }] },
      },
    });
  });
});

const hasHadolint = spawnSync('hadolint', ['--version']).status === 0;

it.skipIf(!hasHadolint)('images pass hadolint', () => {
  // Package versions in the base image do not stay available; the user is that of the base.
  const ignored = ['DL3008', 'DL3066'].flatMap((rule) => ['--ignore', rule]);
  const files = ['deploy/Dockerfile', 'deploy/Dockerfile.gpu'];
  const { stdout, status } = spawnSync('hadolint', [...ignored, ...files], { cwd: root, encoding: 'utf8' });
  expect({ stdout, status }).toEqual({ stdout: '', status: 0 });
});
