import { constants } from 'node:os';
import { expect, test } from 'vitest';
import { isStoreAway } from '../../server/dist/store/storeError.js';

test('a store is away whatever the system calls it that a machine cannot be reached, and not for its files', () => {
  const names = Object.keys(constants.errno);
  const isAway = (code: string): boolean => isStoreAway(Object.assign(new Error(code), { code }));
  const ofNetwork = names.filter((name) => /^E(NET|HOST)|^ECONN|^ETIMEDOUT|^EPIPE/.test(name));
  expect(ofNetwork).toContain('EHOSTUNREACH');
  expect(ofNetwork.filter((code) => !isAway(code))).toEqual([]);
  expect(names.filter(isAway).filter((code) => !ofNetwork.includes(code))).toEqual(['EADDRNOTAVAIL']);
});
