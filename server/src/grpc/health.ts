import { EventEmitter, once } from 'node:events';
import { ServiceError } from '../errors.js';
import type { CallContext } from './service.js';

/** Values of HealthCheckResponse.ServingStatus. */
const statuses = { serving: 1, notServing: 2, serviceUnknown: 3 } as const;

/** As proto-loader reads it: an empty field is absent. */
interface HealthRequest {
  service?: string;
}

/** Answers gRPC health checks for the whole server (the empty name) and for each of its services. */
export class Health {
  private isServing = false;
  private readonly changes = new EventEmitter();

  /** Not serving until that is set. */
  constructor(
    private readonly serviceNames: readonly string[],
    private readonly stopping: AbortSignal,
  ) {
    // Every open Health.Watch adds a listener; their number is limited by the streams per connection.
    this.changes.setMaxListeners(0);
  }

  setServing(isServing: boolean): void {
    this.isServing = isServing;
    this.changes.emit('change');
  }

  readonly handlers = {
    Check: async ({ service = '' }: HealthRequest) => {
      const status = this.statusOf(service);
      if (status === statuses.serviceUnknown) throw new ServiceError('SERVICE_UNKNOWN', { service });
      return { status };
    },
    Watch: ({ service = '' }: HealthRequest, context: CallContext) => this.watch(service, context),
  };

  private async *watch(service: string, { signal }: CallContext): AsyncGenerator<{ status: number }> {
    const over = AbortSignal.any([signal, this.stopping]);
    for (let last = 0; ;) {
      const status = this.statusOf(service);
      if (status !== last) yield { status };
      last = status;
      if (this.stopping.aborted) throw new ServiceError('SERVER_STOPPING', {});
      // A change while a slow client blocked us at `yield` is found by the next comparison.
      if (status === this.statusOf(service))
        await once(this.changes, 'change', { signal: over }).catch(() => {});
      signal.throwIfAborted();
    }
  }

  private statusOf(service: string): number {
    if (service !== '' && !this.serviceNames.includes(service)) return statuses.serviceUnknown;
    return this.isServing ? statuses.serving : statuses.notServing;
  }
}
