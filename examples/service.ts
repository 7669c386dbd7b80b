// A service that trains for others: POST /models launches a job, GET /models/NAME reports it, GET /models/NAME/result waits for its end.
// Compile it in a project that has @relora/sdk and fastify, then: node service.js (a server starts with npx relora-server)
import Fastify, { type FastifyInstance } from 'fastify';
import { isReloraError, JobFailedError, ReloraClient } from '@relora/sdk';

interface Order {
  name: string;
  dataset: string;
  steps: number;
}

const order = {
  type: 'object',
  additionalProperties: false,
  required: ['name', 'dataset', 'steps'],
  properties: {
    name: { type: 'string', pattern: '^[a-z][a-z0-9-]{3,62}$' },
    dataset: { type: 'string' },
    steps: { type: 'integer', minimum: 1 },
  },
};

/** The service over a client; the caller listens and closes. */
export function makeService(client: ReloraClient): FastifyInstance {
  const app = Fastify({ logger: false });

  app.post<{ Body: Order }>('/models', { schema: { body: order } }, async ({ body, headers }, reply) => {
    const { name, dataset, steps } = body;
    const requestId = headers['idempotency-key'];
    const job = await client.createJob(
      { model: { preset: 'demo' }, dataset, stepCount: steps, adapter: { rank: 8, cycleStepCount: steps } },
      // The same key always gets the same job, however often the request is sent.
      { jobId: name, labels: { service: 'models' }, ...(typeof requestId === 'string' ? { requestId } : {}) },
    );
    return await reply.code(202).header('location', `/models/${name}`).send({ name, state: job.state });
  });

  app.get<{ Params: { name: string } }>('/models/:name', async ({ params }) => {
    const { state, progress } = await client.getJob(`jobs/${params.name}`);
    return {
      name: params.name,
      state,
      step: progress?.step,
      steps: progress?.stepCount,
      loss: progress?.loss,
    };
  });

  app.get<{ Params: { name: string } }>('/models/:name/result', async ({ params, raw }) => {
    // A client that disconnects stops waiting; the job continues.
    const gone = new AbortController();
    raw.once('close', () => gone.abort());
    const job = await client.waitForJob(`jobs/${params.name}`, { signal: gone.signal });
    const artifacts = await client.listArtifacts(job.name);
    return { name: params.name, state: job.state, artifacts: artifacts.map((artifact) => artifact.name) };
  });

  app.setErrorHandler((error: Error & { statusCode?: number }, _, reply) => {
    if (error instanceof JobFailedError)
      return reply.code(422).send({ reason: error.reason, message: error.message });
    if (!isReloraError(error)) return reply.code(error.statusCode ?? 500).send({ message: error.message });
    const { code, reason, message, fields } = error;
    return reply.code(statuses[code] ?? 502).send({ reason, message, fields });
  });
  return app;
}

/** Errors that callers of this service see; anything else is an internal error. */
const statuses: Readonly<Record<string, number>> = {
  INVALID_ARGUMENT: 400,
  NOT_FOUND: 404,
  ALREADY_EXISTS: 409,
  FAILED_PRECONDITION: 409,
  RESOURCE_EXHAUSTED: 429,
  UNAVAILABLE: 503,
};

if (process.argv[1]?.endsWith('service.js')) {
  const client = new ReloraClient(); // 127.0.0.1:50051, or RELORA_ADDRESS
  const app = makeService(client);
  app.addHook('onClose', () => client.close());
  console.log(await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT ?? 8080) }));
}
