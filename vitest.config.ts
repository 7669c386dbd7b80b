import { defineConfig } from 'vitest/config';

export default defineConfig({
  plugins: [
    {
      // As eslint.config.js has it, for names that are put together when a test runs.
      name: 'tests-import-builds',
      load(id) {
        if (/\/(engine|server|sdk|cli|page)\/src\//.test(id))
          throw new Error(`${id} is a source: tests import what is built, never sources beside it`);
      },
    },
  ],
  test: {
    include: ['test/**/*.test.ts'],
    // Real servers, trainers and kills: a test that hangs is a fault to show, not to wait for. Nothing else may depend on the limit,
    // so it is many times what the slowest test takes on a busy machine.
    testTimeout: 600_000,
    hookTimeout: 600_000,
    expect: { poll: { timeout: 300_000 } },
    // The message of a failed test is all that CI prints of it: whole, not the first forty characters.
    chaiConfig: { truncateThreshold: 2000 },
    pool: 'forks',
    maxWorkers: 2,
  },
});
