import { copyFileSync, writeFileSync } from 'node:fs';
import { get, request } from 'node:https';
import { connect as connectTcp } from 'node:net';
import { join } from 'node:path';
import { connect, type TLSSocket } from 'node:tls';
import { createLog, readConfig, startServer, type RunningServer } from '@relora/server';
import { ReloraClient, type ClientOptions } from '@relora/sdk';
import { describe, expect, it, onTestFinished } from 'vitest';
import { patientSettings } from '../patience.mjs';
import { hasOpenssl, makeAuthority } from './certificateFiles.js';
import { temporaryFolder } from './parts.js';

type Authority = ReturnType<typeof makeAuthority>;

/** A server whose certificate file can be replaced. */
async function secureServer(authority: Authority, settings: Record<string, string> = {}) {
  const folder = temporaryFolder();
  const [certificateFile, keyFile] = [join(folder, 'server.pem'), join(folder, 'server.key')];
  const put = (name: string) => {
    const made = authority.sign(name, `/CN=${name}`);
    copyFileSync(made.keyFile, keyFile);
    copyFileSync(made.certificateFile, certificateFile);
  };
  put('first');
  const config = readConfig({
    RELORA_DATA_FOLDER: folder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_LOG_LEVEL: 'silent',
    RELORA_TLS_CERTIFICATE: certificateFile,
    RELORA_TLS_KEY: keyFile,
    ...patientSettings,
    ...settings,
  });
  const server = await startServer(config, { log: createLog(config) });
  onTestFinished(async () => await server.stop());
  return { server, put, certificateFile, keyFile };
}

function clientOf({ grpcAddress }: RunningServer, options: ClientOptions): ReloraClient {
  const client = new ReloraClient({
    address: `https://${grpcAddress}`,
    retries: { attemptsMax: 1 },
    ...options,
  });
  onTestFinished(() => client.close());
  return client;
}

/** The name in the certificate of a port. */
async function shownBy(address: string, ca: Buffer): Promise<string> {
  const port = Number(address.slice(address.lastIndexOf(':') + 1));
  const socket = await new Promise<TLSSocket>((resolve, reject) => {
    const opened = connect({ host: '127.0.0.1', port, ca, ALPNProtocols: ['h2', 'http/1.1'] }, () =>
      resolve(opened),
    );
    opened.on('error', reject);
  });
  const { CN } = socket.getPeerCertificate().subject;
  socket.destroy();
  return String(CN);
}

async function statusOf(
  address: string,
  options: { ca: Buffer; cert?: Buffer; key?: Buffer },
): Promise<number> {
  return await new Promise((resolve, reject) => {
    get(`https://${address}/metrics`, { ...options, agent: false }, (response) => {
      response.resume();
      resolve(response.statusCode ?? 0);
    }).on('error', reject);
  });
}

/** The cookie set by a login on the page. */
async function cookieOf(address: string, ca: Buffer): Promise<string> {
  return await new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/json' };
    const options = { method: 'POST', ca, headers, agent: false };
    request(`https://${address}/api/session`, options, (response) => {
      response.resume();
      resolve(String(response.headers['set-cookie']));
    })
      .on('error', reject)
      .end('{"token":"any"}');
  });
}

describe.skipIf(!hasOpenssl)('a server with a certificate', () => {
  it('speaks TLS on both ports, and nothing else', async () => {
    const authority = makeAuthority();
    const { server } = await secureServer(authority);
    const client = clientOf(server, { tls: { rootCertificates: authority.ca } });
    expect((await client.serverInfo()).version).toMatch(/^\d/);
    expect(await statusOf(server.httpAddress, { ca: authority.ca })).toBe(200);
    // Browsers never send it over plain text then.
    expect(await cookieOf(server.httpAddress, authority.ca)).toMatch(/^relora-token=any; .*; Secure$/);
    const plain = clientOf(server, { address: server.grpcAddress });
    await expect(plain.serverInfo()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    await expect(fetch(`http://${server.httpAddress}/metrics`)).rejects.toThrow();
    const stranger = clientOf(server, { tls: { rootCertificates: makeAuthority().ca } });
    await expect(stranger.serverInfo()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  });

  it('takes another certificate while it runs, and open streams stay', async () => {
    const authority = makeAuthority();
    const { server, put, certificateFile } = await secureServer(authority);
    const client = clientOf(server, { tls: { rootCertificates: authority.ca } });
    await client.serverInfo();
    const before = connect({
      host: '127.0.0.1',
      port: Number(server.grpcAddress.split(':')[1]),
      ca: authority.ca,
      ALPNProtocols: ['h2'],
    });
    await new Promise((resolve) => before.once('secureConnect', resolve));
    expect(await shownBy(server.grpcAddress, authority.ca)).toBe('first');
    // An incomplete file has no effect.
    writeFileSync(certificateFile, 'not a certificate');
    await new Promise((resolve) => setTimeout(resolve, 1500)); // longer than the interval at which the files are checked
    expect(await shownBy(server.grpcAddress, authority.ca)).toBe('first');
    put('second');
    for (const address of [server.grpcAddress, server.httpAddress])
      while ((await shownBy(address, authority.ca)) !== 'second')
        await new Promise((resolve) => setTimeout(resolve, 50)); // clients are not informed
    expect(before.destroyed).toBe(false);
    before.destroy();
    expect((await client.serverInfo()).version).toMatch(/^\d/);
  });

  it('asks for certificates of its authority, which say who calls', async () => {
    const authority = makeAuthority();
    const { server } = await secureServer(authority, { RELORA_TLS_CLIENT_CA: authority.caFile });
    const with_ = (subject: string) => {
      const { certificate, key } = authority.sign('client', subject);
      return clientOf(server, {
        tls: { rootCertificates: authority.ca, certificateChain: certificate, privateKey: key },
      });
    };
    const trainer = with_('/O=acme/OU=trainer/CN=ci');
    await expect(trainer.cancelJob('jobs/not-there')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    const viewer = with_('/O=acme/OU=viewer/CN=eve');
    await expect(viewer.cancelJob('jobs/not-there')).rejects.toMatchObject({ reason: 'ROLE_TOO_LOW' });
    for (const subject of [
      '/CN=nobody',
      '/O=acme/OU=king/CN=x',
      '/OU=trainer/CN=x',
      '/O=acme/OU=trainer/OU=operator/CN=x',
    ])
      await expect(with_(subject).serverInfo(), subject).rejects.toMatchObject({
        reason: 'NOT_AUTHENTICATED',
      });
    const { certificate, key } = authority.sign('admin', '/OU=operator/CN=admin');
    expect(await statusOf(server.httpAddress, { ca: authority.ca, cert: certificate, key })).toBe(200);
  });

  it('refuses clients without a certificate of its authority before they can say anything', async () => {
    const authority = makeAuthority();
    const { server } = await secureServer(authority, { RELORA_TLS_CLIENT_CA: authority.caFile });
    const without = clientOf(server, { tls: { rootCertificates: authority.ca } });
    await expect(without.serverInfo()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    const { certificate, key } = makeAuthority().sign('other', '/O=acme/OU=operator/CN=x');
    const tls = { rootCertificates: authority.ca, certificateChain: certificate, privateKey: key };
    await expect(clientOf(server, { tls }).serverInfo()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
    await expect(statusOf(server.httpAddress, { ca: authority.ca })).rejects.toThrow();
  });

  it('cuts a connection that does not come to the end of its handshake', async () => {
    const { server } = await secureServer(makeAuthority(), { RELORA_HEADER_SECONDS: '0.3' });
    for (const address of [server.grpcAddress, server.httpAddress]) {
      const socket = connectTcp(Number(address.split(':')[1]), '127.0.0.1');
      await new Promise((resolve) => socket.once('close', resolve).on('error', () => {}));
    }
  });

  it('does not start with a key of another certificate, or with files that are not there', async () => {
    const authority = makeAuthority();
    const [one, two] = [authority.sign('one', '/CN=one'), authority.sign('two', '/CN=two')];
    await expect(
      secureServer(authority, { RELORA_TLS_CERTIFICATE: one.certificateFile, RELORA_TLS_KEY: two.keyFile }),
    ).rejects.toThrow('the key is that of another certificate');
    await expect(secureServer(authority, { RELORA_TLS_KEY: '/not/there' })).rejects.toThrow(
      '/not/there cannot be read',
    );
  });
});

describe('an address that other machines reach', () => {
  const problemsOf = (settings: Record<string, string>): string => {
    try {
      readConfig(settings);
      return '';
    } catch (error) {
      return (error as Error).message;
    }
  };
  const reached = { RELORA_GRPC_ADDRESS: '0.0.0.0:50051' };
  const login = { RELORA_TOKEN_FILE: '/tokens.json' };
  const tls = { RELORA_TLS_CERTIFICATE: '/a.pem', RELORA_TLS_KEY: '/a.key' };

  it.each<Record<string, string>>([
    {},
    { RELORA_GRPC_ADDRESS: 'localhost:1', RELORA_HTTP_ADDRESS: '[::1]:1' },
    { RELORA_GRPC_ADDRESS: '127.0.0.2:1' },
  ])('is none of %j, which needs nothing', (settings) => {
    expect(problemsOf(settings)).toBe('');
  });

  it.each(['0.0.0.0:1', '[::]:1', '192.168.1.7:1', 'server.example.org:1'])(
    '%s needs TLS and a login',
    (address) => {
      for (const variable of ['RELORA_GRPC_ADDRESS', 'RELORA_HTTP_ADDRESS']) {
        const problems = problemsOf({ [variable]: address });
        expect(problems).toContain(`${variable} is`);
        expect(problems).toContain('in plain text: set RELORA_TLS_CERTIFICATE');
        expect(problems).toContain('without a login: set RELORA_TOKEN_FILE');
      }
    },
  );

  it('may lack what is said in plain words, and no more', () => {
    expect(problemsOf({ ...reached, RELORA_INSECURE: 'plain-text' })).toMatch(
      /^[^\n]*without a login[^\n]*$/,
    );
    expect(problemsOf({ ...reached, RELORA_INSECURE: 'no-login' })).toMatch(/^[^\n]*in plain text[^\n]*$/);
    expect(problemsOf({ ...reached, RELORA_INSECURE: 'plain-text,no-login' })).toBe('');
    expect(problemsOf({ ...reached, ...login })).toMatch(/^[^\n]*in plain text[^\n]*$/);
    expect(problemsOf({ ...reached, ...tls })).toMatch(/^[^\n]*without a login[^\n]*$/);
    expect(problemsOf({ ...reached, ...login, ...tls })).toBe('');
    expect(problemsOf({ ...reached, ...login, RELORA_BEHIND_PROXY: 'on' })).toBe('');
    expect(problemsOf({ ...reached, ...tls, RELORA_TLS_CLIENT_CA: '/ca.pem' })).toBe('');
    expect(problemsOf({ RELORA_TLS_CERTIFICATE: '/a.pem' })).toContain('must be set together');
    expect(problemsOf({ RELORA_TLS_CLIENT_CA: '/a.pem' })).toContain('needs RELORA_TLS_CERTIFICATE');
    expect(problemsOf({ RELORA_INSECURE: 'yes' })).toContain('plain-text, no-login');
  });
});
