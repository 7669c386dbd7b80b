import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Real servers, trainers and kills: a test that hangs is a fault to show, not to wait for. Nothing else may depend on the limit,
    // so it is many times what the slowest test takes on a busy machine.
    testTimeout: 600_000,
    hookTimeout: 600_000,
    expect: { poll: { timeout: 300_000 } },
    pool: 'forks',
    maxWorkers: 2,
  },
});
