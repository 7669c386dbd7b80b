import { describe, expect, it } from 'vitest';
import { stepIntervalMsMax } from '../../server/dist/api/watchJob.js';
import { ConfigInvalid, readConfig, settings } from '../../server/dist/config.js';

const problemsOf = (environment: Record<string, string>): string[] => {
  try {
    readConfig(environment);
    return [];
  } catch (error) {
    if (error instanceof ConfigInvalid) return error.problems;
    throw error;
  }
};

describe('settings', () => {
  it('have a default that is in their own range, each variable once', () => {
    expect(readConfig({})).toMatchObject({
      grpcAddress: { host: '127.0.0.1', port: 50051 },
      slots: 1,
      reflection: true,
      allowedFolders: [],
    });
    const variables = Object.values(settings).map(({ variable }) => variable);
    expect(new Set(variables).size).toBe(variables.length);
    for (const { range, reason } of Object.values(settings))
      expect(Math.min(range.length, reason.length)).toBeGreaterThan(3);
  });

  it('keep each step for longer than a watcher may pause', () => {
    const [problem] = problemsOf({ RELORA_STEP_WINDOW_SECONDS: '59' });
    expect(problem).toMatch(/^RELORA_STEP_WINDOW_SECONDS must be a whole number from 60 to .*, not "59"$/);
    const { stepWindowSeconds } = readConfig({ RELORA_STEP_WINDOW_SECONDS: '60' });
    expect(1000 * stepWindowSeconds).toBeGreaterThanOrEqual(stepIntervalMsMax);
  });

  it('do not let a job span servers that share no store, or whose trainers the kernel keeps from the network', () => {
    const shared = { RELORA_DATABASE_URL: 'postgres://u@h:1/d', RELORA_STORE_URL: 'file:///blobs' };
    expect(problemsOf({ RELORA_MPIRUN: 'mpirun' })).toEqual([
      'RELORA_MPIRUN needs RELORA_DATABASE_URL: a job spans the servers of one store',
    ]);
    expect(problemsOf({ ...shared, RELORA_MPIRUN: 'mpirun', RELORA_SANDBOX: 'required' })).toEqual([
      expect.stringMatching(/^RELORA_MPIRUN needs RELORA_SANDBOX=auto or off/),
    ]);
    expect(problemsOf({ ...shared, RELORA_MPIRUN: 'mpirun' })).toEqual([]);
  });

  it('do not ask for sockets between cards and for trainers without sockets', () => {
    expect(problemsOf({ RELORA_NCCL: 'on', RELORA_SANDBOX: 'required' })).toEqual([
      expect.stringMatching(/^RELORA_NCCL=on needs RELORA_SANDBOX=auto or off/),
    ]);
    expect(problemsOf({ RELORA_NCCL: 'on' })).toEqual([]);
  });

  it('are read from the environment', () => {
    const config = readConfig({
      RELORA_GRPC_ADDRESS: '[::1]:0',
      RELORA_ALLOWED_FOLDERS: '/data:/models',
      RELORA_REFLECTION: 'off',
      HOME: '/root',
    });
    expect(config).toMatchObject({
      grpcAddress: { host: '::1', port: 0 },
      allowedFolders: ['/data', '/models'],
      reflection: false,
    });
  });

  it('that are wrong are all named at once, with what was expected and what came', () => {
    expect(
      problemsOf({
        RELORA_SLOTS: '0',
        RELORA_GRPC_ADDRESS: 'localhost',
        RELORA_LOG_LEVEL: 'loud',
        RELORA_ALLOWED_FOLDERS: 'data',
      }),
    ).toEqual([
      'RELORA_GRPC_ADDRESS must be host:port with a port from 0 to 65535, not "localhost"',
      'RELORA_ALLOWED_FOLDERS must be absolute paths with `:` between them, not "data"',
      'RELORA_SLOTS must be a whole number from 1 to 64, not "0"',
      'RELORA_LOG_LEVEL must be one of trace, debug, info, warn, error, fatal, silent, not "loud"',
    ]);
  });

  it.each(['', ' 1', '1e1', '0x1', '1.5', '-1', 'NaN', 'Infinity', '99999999999999999999'])(
    'a number is not written %j',
    (text) => {
      expect(problemsOf({ RELORA_SLOTS: text })).toHaveLength(1);
    },
  );

  it('that are not known are refused with the nearest name', () => {
    expect(problemsOf({ RELORA_SLOT: '2', RELORA_GRPC_ADRESS: 'x' })).toEqual([
      'RELORA_SLOT is not a setting; did you mean RELORA_SLOTS?',
      'RELORA_GRPC_ADRESS is not a setting; did you mean RELORA_GRPC_ADDRESS?',
    ]);
  });

  it('lets the variable be with which clients find the server', () => {
    expect(() => readConfig({ RELORA_ADDRESS: '127.0.0.1:50051' })).not.toThrow();
  });
});
