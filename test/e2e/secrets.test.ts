import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseJobSpec, ReloraClient } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { hasOpenssl, makeAuthority } from '../server/certificateFiles.js';
import { freshDatabase, hasPostgres } from '../server/postgres.js';
import { startReceiver } from '../server/webhookReceiver.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));
const reloraCli = fileURLToPath(new URL('../../cli/dist/main.js', import.meta.url));

/** Must not appear in anything that a server, its children and its clients write. */
const secrets = {
  databasePassword: 'planted-database-password-1f2e',
  s3Key: 'planted-s3-secret-key-9a8b',
  wrongToken: 'relora_planted-wrong-token-3c4d',
};

/** All texts in a folder, by path. */
function textsBelow(folder: string): [path: string, text: string][] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .map((path) => [path, readFileSync(path, 'latin1')]);
}

test.skipIf(!hasPostgres || !hasOpenssl)(
  'secrets are in nothing that a server, its children and its clients write',
  async () => {
    const [dataFolder, blobs, outside, work] = Array.from({ length: 4 }, temporaryFolder) as [
      string,
      string,
      string,
      string,
    ];
    const authority = makeAuthority();
    const { certificateFile, keyFile } = authority.sign('server', '/CN=localhost');
    const url = (await freshDatabase()).replace('relora@', `relora:${secrets.databasePassword}@`);
    const tokenFile = join(outside, 'tokens.json');
    const base = { PATH: process.env.PATH!, RELORA_DATA_FOLDER: dataFolder, RELORA_TOKEN_FILE: tokenFile };
    const run = (program: string, args: string[], environment: Record<string, string>) => {
      const { stdout, stderr } = spawnSync(process.execPath, [program, ...args], {
        encoding: 'utf8',
        cwd: work,
        env: { PATH: process.env.PATH!, ...environment },
      });
      return `${stdout}${stderr}`;
    };
    const added = spawnSync(process.execPath, [main, 'token', 'add', 'ci', '--role', 'operator'], {
      encoding: 'utf8',
      env: base,
    });
    const token = added.stdout.trim();
    expect(token).toMatch(/^relora_/);
    const settings = {
      RELORA_DATABASE_URL: url,
      RELORA_STORE_URL: `file://${blobs}`,
      RELORA_TOKEN_FILE: tokenFile,
      RELORA_TLS_CERTIFICATE: certificateFile,
      RELORA_TLS_KEY: keyFile,
      RELORA_LOG_LEVEL: 'trace',
      RELORA_WEBHOOK_NETWORKS: '127.0.0.1',
      AWS_ACCESS_KEY_ID: 'planted',
      AWS_SECRET_ACCESS_KEY: secrets.s3Key,
    };
    const keyLine = readFileSync(keyFile, 'utf8').split('\n')[1]!;
    const planted = { ...secrets, token, keyLine };
    const written: [string, string][] = [];

    const server = await startServerProcess(dataFolder, settings);
    server.process.stderr!.on('data', (data: Buffer) => written.push(['standard error', data.toString()]));
    const address = `https://localhost:${server.grpcAddress.split(':')[1]}`;
    const client = new ReloraClient({ address, token, tls: { rootCertificates: authority.ca } });
    onTestFinished(() => client.close());
    // A receiver that refuses everything: messages about each failure are checked too.
    const receiver = await startReceiver();
    receiver.answer = () => 503;
    const { secret: webhookSecret } = await client.createWebhook(receiver.url, { webhookId: 'tales-hook' });
    expect(webhookSecret).toMatch(/^whsec_/);
    await client.uploadDataset({
      datasetId: 'tiny-text',
      files: [{ content: tinyText(), fileName: 'tiny.txt' }],
    });
    const { name } = await client.createJob(parseJobSpec(tinySpec(60)));
    const { kill } = process;
    let isKilled = false;
    const seen: unknown[] = [];
    await client.waitForJob(name, {
      onEvent: (event) => {
        seen.push(event);
        // Messages of a crash are checked too.
        if (isKilled || event.kind !== 'step') return;
        isKilled = true;
        const children = readFileSync(
          `/proc/${server.process.pid}/task/${server.process.pid}/children`,
          'utf8',
        );
        for (const pid of children.trim().split(' ')) {
          written.push(['environment of a child', readFileSync(`/proc/${pid}/environ`, 'latin1')]);
          kill.call(process, Number(pid), 'SIGABRT');
        }
      },
    });
    expect(isKilled).toBe(true);
    written.push(['events', JSON.stringify(seen)]);
    for await (const piece of client.jobLog(name)) written.push(['its log', JSON.stringify(piece)]);
    const [artifact] = await client.listArtifacts(name);
    await client.downloadArtifact(artifact!.name, join(work, 'weights'));
    const audit: unknown[] = [];
    for await (const entry of client.listAuditEntries()) audit.push(entry);
    written.push(['audit log', JSON.stringify(audit)]);
    written.push(['info', JSON.stringify(await client.serverInfo())]);
    await receiver.until((received) => received.length > 0);
    for await (const webhook of client.listWebhooks()) written.push(['a webhook', JSON.stringify(webhook)]);
    for await (const delivery of client.listWebhookDeliveries('webhooks/tales-hook'))
      written.push(['a message', JSON.stringify(delivery)]);
    written.push(['what a receiver gets', JSON.stringify(receiver.received)]);

    // Clients that are refused, with the messages of each.
    const caFile = { RELORA_CA_FILE: authority.caFile, RELORA_ADDRESS: address };
    written.push(['refused', run(reloraCli, ['list'], { ...caFile, RELORA_TOKEN: secrets.wrongToken })]);
    written.push([
      'refused JSON',
      run(reloraCli, ['list', '--json'], { ...caFile, RELORA_TOKEN: secrets.wrongToken }),
    ]);
    written.push(['allowed', run(reloraCli, ['info', '--json'], { ...caFile, RELORA_TOKEN: token })]);
    const wrong = run(reloraCli, ['create', '--request-id', 'x', '--rank', token], {
      ...caFile,
      RELORA_TOKEN: token,
    });
    expect(wrong).not.toBe('');

    // Also the output of doctor, and of a start that fails.
    written.push(['doctor', run(main, ['doctor', '--json'], { ...base, ...settings })]);
    const gone = url.replace(/:[0-9]+\//, ':1/');
    const [httpPort, grpcPort] = ['127.0.0.1:0', '127.0.0.1:0'];
    const start = { ...base, ...settings, RELORA_HTTP_ADDRESS: httpPort, RELORA_GRPC_ADDRESS: grpcPort };
    const elsewhere = { RELORA_DATA_FOLDER: join(outside, 'data') };
    const failed = run(main, [], { ...start, ...elsewhere, RELORA_DATABASE_URL: gone });
    expect(failed).toContain('127.0.0.1:1');
    written.push(['a failed start', failed]);
    const misspelled = run(main, [], { ...start, ...elsewhere, RELORA_DATABASE_URL: `mysql${url}` });
    expect(misspelled).toContain('RELORA_DATABASE_URL must be');
    written.push(['a wrong setting', misspelled]);

    server.process.kill('SIGTERM');
    await server.exited;
    written.push(['log of the server', JSON.stringify(server.logged)]);
    expect(server.logged.length).toBeGreaterThan(5);
    const backup = run(main, ['backup', join(work, 'backup')], { ...base, ...settings });
    written.push(['backup', backup]);
    for (const folder of [dataFolder, blobs, work]) written.push(...textsBelow(folder));
    written.push(['the file of tokens', readFileSync(tokenFile, 'latin1')]);

    expect(written.length).toBeGreaterThan(30);
    const found = written.flatMap(([where, text]) =>
      Object.entries(planted)
        .filter(([, secret]) => text.includes(secret))
        .map(([what]) => `${what} in ${where}`),
    );
    expect(found).toEqual([]);

    // A restored server must sign with the same key, so this secret is in a backup, and nowhere else.
    const places = written.filter(([, text]) => text.includes(webhookSecret)).map(([where]) => where);
    expect(places).toEqual([join(work, 'backup', 'tables', 'webhooks.jsonl')]);
  },
);
