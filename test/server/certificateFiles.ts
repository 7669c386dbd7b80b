import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryFolder } from './parts.js';

export const hasOpenssl = (() => {
  try {
    execFileSync('openssl', ['version']);
    return true;
  } catch {
    return false;
  }
})();

/** A certificate authority in its own folder. */
export function makeAuthority() {
  const folder = temporaryFolder();
  const at = (name: string) => join(folder, name);
  const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: folder, stdio: 'pipe' });
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  openssl(
    'req',
    '-x509',
    ...newKey,
    '-keyout',
    'ca.key',
    '-out',
    'ca.pem',
    '-days',
    '2',
    '-subj',
    '/CN=Authority',
  );
  return {
    caFile: at('ca.pem'),
    ca: readFileSync(at('ca.pem')),
    /** Signs a certificate for this machine, with a subject like `/O=acme/OU=trainer/CN=ci`. */
    sign(name: string, subject: string) {
      openssl('req', ...newKey, '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', subject);
      writeFileSync(at('names'), 'subjectAltName=DNS:localhost,IP:127.0.0.1\n');
      openssl(
        ...['x509', '-req', '-in', `${name}.csr`, '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial'],
        ...['-out', `${name}.pem`, '-days', '2', '-extfile', 'names'],
      );
      const [certificateFile, keyFile] = [at(`${name}.pem`), at(`${name}.key`)];
      return {
        certificateFile,
        keyFile,
        certificate: readFileSync(certificateFile),
        key: readFileSync(keyFile),
      };
    },
  };
}
