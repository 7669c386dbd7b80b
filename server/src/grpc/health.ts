import type { Server } from 'nice-grpc';
import { HealthDefinition, HealthServiceImpl, HealthState } from 'nice-grpc-server-health';

/** Answers gRPC health checks for the whole server (the empty name) and for each of its services. */
export class Health {
  private readonly state = HealthState();

  /** Not serving until it is said. */
  constructor(private readonly serviceNames: readonly string[]) {
    // Every open Health.Watch listens; their number is bounded by the streams of the connections.
    this.state.setMaxListeners(0);
    this.setServing(false);
  }

  setServing(isServing: boolean): void {
    for (const name of ['', ...this.serviceNames])
      this.state.setStatus(isServing ? 'healthy' : 'unhealthy', name);
  }

  addTo(server: Pick<Server, 'add'>): void {
    server.add(HealthDefinition, HealthServiceImpl(this.state));
  }
}
