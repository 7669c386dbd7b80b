import type { DeviceSpeed } from '@relora/engine/plan';
import type { Database } from './database.js';

/** The speed that jobs reached on one device; see api/reachedSpeed.ts. */
interface StoredSpeed {
  device: string;
  basis: DeviceSpeed;
  ratios: number[];
}

/** Stores the speed that jobs reached on devices, so that the next server can use it from its first estimate. */
export class ReachedSpeedStore {
  constructor(private readonly db: Database) {}

  async read(): Promise<StoredSpeed[]> {
    const rows = await this.db.selectFrom('reached_speeds').selectAll().execute();
    return rows.map(({ device, basis, ratios }) => ({
      device,
      basis: JSON.parse(basis) as DeviceSpeed,
      ratios: JSON.parse(ratios) as number[],
    }));
  }

  async write({ device, basis, ratios }: StoredSpeed): Promise<void> {
    const values = { basis: JSON.stringify(basis), ratios: JSON.stringify(ratios) };
    await this.db
      .insertInto('reached_speeds')
      .values({ device, ...values })
      .onConflict((conflict) => conflict.column('device').doUpdateSet(values))
      .execute();
  }
}
