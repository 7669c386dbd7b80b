// Preloaded into a command: emulates answers of Windows, as far as possible on another system. Paths with backslashes follow the rules of
// Windows, each being a single name here; folders cannot be synced; every file has the mode that Windows shows.
import fs from 'node:fs';
import promises from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import path from 'node:path';

Object.defineProperty(process, 'platform', { value: 'win32' });
const posix = { ...path };
const { win32 } = path;
for (const name of ['basename', 'dirname', 'join', 'resolve'])
  path[name] = (...parts) => (parts.some((part) => part.includes('\\')) ? win32 : posix)[name](...parts);

const { statSync } = fs;
fs.statSync = (name, ...options) => {
  const found = statSync(name, ...options);
  if (found?.isFile()) found.mode = 0o100666;
  return found;
};
const { open } = promises;
promises.open = async (name, ...options) => {
  if (fs.existsSync(name) && statSync(name).isDirectory())
    throw Object.assign(new Error(`EPERM: operation not permitted, open '${name}'`), { code: 'EPERM' });
  return await open(name, ...options);
};
syncBuiltinESMExports();
