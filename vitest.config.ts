import { defineConfig } from 'vitest/config';

export default defineConfig({
  plugins: [
    {
      // As in eslint.config.js, for names that are assembled at run time.
      name: 'tests-import-builds',
      load(id) {
        if (/\/(engine|server|sdk|cli|page)\/src\//.test(id))
          throw new Error(`${id} is a source: tests import what is built, never sources beside it`);
      },
    },
  ],
  test: {
    include: ['test/**/*.test.ts'],
    // Builds are loaded as they are: transformed once more, they would take seconds in each test file.
    server: { deps: { external: [/\/(engine|server|sdk|cli|page)\/dist\//] } },
    // Real servers, trainers and kills: the limit only ends tests that hang. Nothing else may depend on it, so it is many times what the
    // slowest test takes on a busy machine.
    testTimeout: 600_000,
    hookTimeout: 600_000,
    expect: { poll: { timeout: 300_000 } },
    // CI prints only the message of a failed test: print it whole, not the first forty characters.
    chaiConfig: { truncateThreshold: 2000 },
    pool: 'forks',
    maxWorkers: 2,
  },
});
