import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ServerServiceDefinition, type AuditEntry } from '@relora/sdk/contract';
import { createClient, Metadata, Status, type CallOptions } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import { addToken } from '../../server/dist/access/tokens.js';
import { readdressed } from './auditEntries.js';
import { jobSpec, openApi } from './apiServer.js';
import { readyDataset, temporaryFolder } from './parts.js';
import { runServer } from './runningServer.js';

const requestId = '00000000-0000-4000-8000-000000000001';

describe('the audit log', () => {
  it('has every change with who, what, from where, request id and result, the refused ones too', async () => {
    const { parts, training, server, artifacts } = await openApi();
    await readyDataset(parts);
    await training.createJob({ jobId: 'first-job', requestId, spec: jobSpec() });
    await training.createJob({ jobId: 'only-looked-at', validateOnly: true, spec: jobSpec() });
    await training.getJob({ name: 'jobs/first-job' });
    await training.cancelJob({ name: 'jobs/first-job' });
    await training.pauseJob({ name: 'jobs/none-such' }).catch(() => {});
    await artifacts.exportWeights({ job: 'jobs/first-job' }).catch(() => {});
    const { entries } = await server.listAuditEntries({});
    expect(entries.map(readdressed)).toEqual([
      {
        method: 'ArtifactService/ExportWeights',
        resource: 'jobs/first-job',
        requestId: '',
        result: 'CHECKPOINT_NOT_FOUND',
      },
      {
        method: 'TrainingService/PauseJob',
        resource: 'jobs/none-such',
        requestId: '',
        result: 'JOB_NOT_FOUND',
      },
      { method: 'TrainingService/CancelJob', resource: 'jobs/first-job', requestId: '', result: 'OK' },
      { method: 'TrainingService/CreateJob', resource: 'jobs/first-job', requestId, result: 'OK' },
    ]);
    for (const { caller, tenant, peer, time } of entries) {
      expect([caller, tenant]).toEqual(['anyone', 'default']);
      expect(peer).toMatch(/^127\.0\.0\.1:\d+$/);
      expect(Math.abs(time!.getTime() - Date.now())).toBeLessThan(600_000);
    }
  });

  it('holds no more of a name than a name can be, whatever a refused call says', async () => {
    const { server, training } = await openApi();
    const name = 'x'.repeat(60_000);
    await training.cancelJob({ name, etag: name }).catch(() => {});
    const { entries } = await server.listAuditEntries({});
    expect(entries.map(({ resource }) => resource)).toEqual([`${'x'.repeat(255)}…`]);
  });

  it('has one line for each change, whatever a call says, so that nobody can write entries of their own', async () => {
    const auditFile = join(temporaryFolder(), 'audit.jsonl');
    const { server, training } = await openApi({ RELORA_AUDIT_FILE: auditFile });
    const forged = '{"time":"2026-01-01T00:00:00.000Z","caller":"root","result":"OK"}';
    const names = ['\n', '\r\n', '\r', '\u2028', '\u0085', '\u001b[1A\u001b[2K', '"}\n'].map(
      (separator) => `jobs/x${separator}${forged}`,
    );
    for (const name of names) await training.cancelJob({ name, requestId: `${name}` }).catch(() => {});
    const lines = readFileSync(auditFile, 'utf8').split('\n');
    expect(lines.pop()).toBe('');
    expect(lines.map((line) => (JSON.parse(line) as { caller: string }).caller)).toEqual(
      names.map(() => 'anyone'),
    );
    const { entries } = await server.listAuditEntries({});
    expect(entries.map(({ caller }) => caller)).toEqual(names.map(() => 'anyone'));
    expect(entries.map(({ resource }) => resource).reverse()).toEqual(names);
  });

  it('comes in pages, for one tenant or one caller', async () => {
    const { server, training } = await openApi();
    const as = (tenant: string): CallOptions => ({ metadata: Metadata({ 'relora-tenant': tenant }) });
    for (const tenant of ['acme', 'other', 'acme', 'acme'])
      await training.cancelJob({ name: 'jobs/none-such' }, as(tenant)).catch(() => {});
    const all: AuditEntry[] = [];
    for (let pageToken = ''; ;) {
      const page = await server.listAuditEntries({ tenant: 'acme', pageSize: 2, pageToken });
      all.push(...page.entries);
      pageToken = page.nextPageToken;
      if (pageToken === '') break;
    }
    expect(all.map(({ tenant }) => tenant)).toEqual(['acme', 'acme', 'acme']);
    expect((await server.listAuditEntries({ caller: 'nobody' })).entries).toEqual([]);
  });

  it('is for operators, has tokens that are added and revoked, and goes into a file', async () => {
    const folder = temporaryFolder();
    const [tokenFile, auditFile] = [join(folder, 'tokens.json'), join(folder, 'audit.jsonl')];
    const wish = { tenant: 'acme', expireTimeMs: null };
    const operator = await addToken(tokenFile, { ...wish, name: 'root', role: 'operator' });
    const trainer = await addToken(tokenFile, { ...wish, name: 'ci', role: 'trainer' });
    const { channel, training } = await runServer({
      RELORA_TOKEN_FILE: tokenFile,
      RELORA_AUDIT_FILE: auditFile,
    });
    const bearer = (token: string) => ({ metadata: Metadata({ authorization: `Bearer ${token}` }) });
    const server = createClient(ServerServiceDefinition, channel);
    await training.cancelJob({ name: 'jobs/none-such' }, bearer(trainer)).catch(() => {});
    const refused = server.listAuditEntries({}, bearer(trainer));
    await expect(refused).rejects.toMatchObject({ code: Status.PERMISSION_DENIED });
    const { entries } = await server.listAuditEntries({}, bearer(operator));
    expect(entries).toMatchObject([{ caller: 'ci', tenant: 'acme', resource: 'jobs/none-such' }]);
    const lines = readFileSync(auditFile, 'utf8').trim().split('\n');
    expect(lines.map((line) => JSON.parse(line) as object)).toMatchObject([
      { caller: 'ci', method: 'TrainingService/CancelJob' },
    ]);
    expect(statSync(auditFile).mode & 0o077).toBe(0);
    for (const token of [operator, trainer]) expect(lines.join()).not.toContain(token.slice(7));
  });
});
