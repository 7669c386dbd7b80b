import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import {
  createSecureContext,
  type PeerCertificate,
  type SecureContextOptions,
  type TLSSocket,
} from 'node:tls';
import type { Logger } from 'pino';
import type { CertificateNames } from './access/principal.js';
import type { Config } from './config.js';

/** How soon a replaced certificate takes effect. */
const lookMs = 1000;

/** A certificate, key or authority that cannot be used. The message names the file. */
export class CertificateInvalid extends Error {
  override name = 'CertificateInvalid';
}

type TlsConfig = Pick<Config, 'tlsCertificate' | 'tlsKey' | 'tlsClientCa'>;

/** What Node's TLS servers take. `requestCert` and `rejectUnauthorized` ask clients for a certificate of the authority. */
export interface TlsOptions extends SecureContextOptions {
  requestCert: boolean;
  rejectUnauthorized: boolean;
}

/**
 * The certificate of both ports, read again whenever its files change: open connections keep the old one, new ones get the new one. Files
 * that do not match each other, as between two writes, change nothing.
 */
export class Certificates {
  private readonly listeners: ((options: TlsOptions) => void)[] = [];
  private timer: NodeJS.Timeout | undefined;

  private constructor(
    private readonly config: TlsConfig,
    private readonly log: Logger,
    private present: TlsOptions,
    private stamp: string,
  ) {}

  /** Undefined if the settings name no certificate. Throws CertificateInvalid. */
  static async open(config: TlsConfig, log: Logger): Promise<Certificates | undefined> {
    if (config.tlsCertificate === '') return undefined;
    const stamp = await stampOf(config);
    const certificates = new Certificates(config, log, await readFiles(config), stamp);
    certificates.timer = setInterval(() => void certificates.look(), lookMs).unref();
    return certificates;
  }

  get options(): TlsOptions {
    return this.present;
  }

  /** Called with the options for new connections whenever they change. */
  onChange(listener: (options: TlsOptions) => void): void {
    this.listeners.push(listener);
  }

  close(): void {
    clearInterval(this.timer);
  }

  private async look(): Promise<void> {
    const stamp = await stampOf(this.config);
    if (stamp === this.stamp) return;
    try {
      this.present = await readFiles(this.config);
      this.stamp = stamp;
    } catch (error) {
      // Tried again in a second: the key may be written after the certificate.
      this.log.warn(
        { err: error },
        'The changed certificate cannot be used yet; the previous one stays in use',
      );
      return;
    }
    for (const listener of this.listeners) listener(this.present);
    this.log.info({ certificate: this.config.tlsCertificate }, 'The certificate was read again');
  }
}

async function readFiles({ tlsCertificate, tlsKey, tlsClientCa }: TlsConfig): Promise<TlsOptions> {
  const [cert, key, ca] = [
    await read(tlsCertificate),
    await read(tlsKey),
    tlsClientCa === '' ? undefined : await read(tlsClientCa),
  ];
  const options = {
    cert,
    key,
    ca,
    minVersion: 'TLSv1.2' as const,
    requestCert: ca !== undefined,
    rejectUnauthorized: ca !== undefined,
  };
  try {
    if (!new X509Certificate(cert).checkPrivateKey(createPrivateKey(key)))
      throw new Error('the key is that of another certificate');
    createSecureContext(options);
  } catch (error) {
    throw new CertificateInvalid(
      `${tlsCertificate} and ${tlsKey} cannot be used: ${(error as Error).message}`,
    );
  }
  return options;
}

async function read(path: string): Promise<Buffer> {
  return await readFile(path).catch((error: Error) => {
    throw new CertificateInvalid(`${path} cannot be read: ${error.message}`);
  });
}

async function stampOf({ tlsCertificate, tlsKey, tlsClientCa }: TlsConfig): Promise<string> {
  const paths = [tlsCertificate, tlsKey, tlsClientCa].filter((path) => path !== '');
  const stamps = paths.map(async (path) => {
    const found = await stat(path, { bigint: true }).catch(() => undefined);
    return found === undefined ? 'none' : `${found.ino} ${found.size} ${found.mtimeNs}`;
  });
  return (await Promise.all(stamps)).join('; ');
}

/** The names in a client's certificate, if it has one that was verified. */
export function certificateNames(socket: TLSSocket): CertificateNames | undefined {
  return socket.authorized ? subjectNames(socket.getPeerCertificate()) : undefined;
}

export function subjectNames({ subject }: Pick<PeerCertificate, 'subject'>): CertificateNames {
  // A name that is given more than once does not count.
  const only = (value: unknown): string => (typeof value === 'string' ? value : '');
  return { commonName: only(subject?.CN), organization: only(subject?.O), unit: only(subject?.OU) };
}
