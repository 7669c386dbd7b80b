import { readFileSync } from 'node:fs';
import {
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  ModelServiceDefinition,
  ServerServiceDefinition,
  TrainingServiceDefinition,
  WebhookServiceDefinition,
  WeightsServiceDefinition,
} from '@relora/sdk/contract';
import { openToAll, type Authenticate } from '../access/principal.js';
import type { Certificates } from '../certificates.js';
import { readDescriptors } from '../grpc/descriptors.js';
import { GrpcServer } from '../grpc/grpcServer.js';
import type { Health } from '../grpc/health.js';
import { jsonMethods, type JsonMethod } from '../grpc/jsonMethods.js';
import {
  accessMiddleware,
  deadlineMiddleware,
  errorMiddleware,
  metadataMiddleware,
} from '../grpc/middleware.js';
import { reflectionHandlers } from '../grpc/reflection.js';
import { rpcMetricsMiddleware } from '../grpc/rpcMetrics.js';
import type { Implementation, ServiceDefinition } from '../grpc/service.js';
import { standardFiles, standardMethods } from '../grpc/standardServices.js';
import { changes, roleFor } from './accessRules.js';
import { audited } from './audited.js';
import { artifactService } from './artifactService.js';
import { datasetService } from './datasetService.js';
import { modelService } from './modelService.js';
import type { ApiParts } from './parts.js';
import { serverService } from './serverService.js';
import { trainingService } from './trainingService.js';
import { webhookService } from './webhookService.js';
import { weightsService } from './weightsService.js';

const services = [
  TrainingServiceDefinition,
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  ModelServiceDefinition,
  ServerServiceDefinition,
  WeightsServiceDefinition,
  WebhookServiceDefinition,
];

/** Full names of the services of the contract. */
export const serviceNames: readonly string[] = services.map(({ fullName }) => fullName);

const contractFile = new URL('../../src/generated/relora.binpb', import.meta.url);
const healthName = 'grpc.health.v1.Health';
const reflectionNames = ['v1', 'v1alpha'].map((version) => `grpc.reflection.${version}.ServerReflection`);

/** The methods of the contract for JSON clients. */
export function contractMethods(): Map<string, JsonMethod> {
  return jsonMethods(readFileSync(contractFile), serviceNames);
}

/** Time that calls with one answer may take in addition to the time that a trainer has to stop. */
const unarySeconds = 60;

/**
 * Calls that wait for a task and end it when they end. Such a task has a limit of its own (RELORA_TASK_TIMEOUT_SECONDS), or, if it may take
 * as long as its model needs, a heartbeat.
 */
const taskCalls: ReadonlySet<string> = new Set([
  pathOf(ModelServiceDefinition, 'evaluateModel'),
  pathOf(DatasetServiceDefinition, 'previewDataset'),
  pathOf(TrainingServiceDefinition, 'explainJob'),
]);

function pathOf<Definition extends ServiceDefinition>(
  { fullName, methods }: Definition,
  method: keyof Definition['methods'] & string,
): string {
  return `/${fullName}/${methods[method]!.name}`;
}

/**
 * Serves only health checks, unencrypted and without a login: all that a probe learns is whether the server serves. Does not listen yet.
 */
export function serveHealth(
  { config, log, stopping }: Pick<ApiParts, 'config' | 'log' | 'stopping'>,
  health: Health,
): GrpcServer {
  const descriptors = readDescriptors(Buffer.concat([readFileSync(contractFile), standardFiles()]));
  const middleware = [errorMiddleware(log, config), metadataMiddleware(config.metadataBytesMax)];
  const server = new GrpcServer({ config, descriptors, stopping, middleware });
  server.addMethods(standardMethods(healthName, health.handlers));
  return server;
}

/** Puts every service behind the same middleware; does not listen yet. */
export function serveApi(
  parts: ApiParts,
  health: Health,
  options: {
    deadlineSeconds?: number;
    connectionsMax?: number;
    authenticate?: Authenticate;
    certificates?: Certificates | undefined;
  } = {},
): GrpcServer {
  const { config, log, metrics } = parts;
  const {
    deadlineSeconds = config.trainerGraceSeconds + unarySeconds,
    connectionsMax = config.connectionsMax,
    authenticate = openToAll,
  } = options;
  const descriptors = readDescriptors(Buffer.concat([readFileSync(contractFile), standardFiles()]));
  const server = new GrpcServer({
    config: { ...config, connectionsMax },
    descriptors,
    stopping: parts.stopping,
    certificates: options.certificates,
    middleware: [
      rpcMetricsMiddleware(metrics, services),
      errorMiddleware(log, config),
      metadataMiddleware(config.metadataBytesMax),
      accessMiddleware(authenticate, (path) => roleFor(path, config.withoutToken)),
      deadlineMiddleware(deadlineSeconds, taskCalls),
    ],
  });
  const add = <Definition extends ServiceDefinition>(
    definition: Definition,
    implementation: Implementation<Definition>,
  ): void => {
    const isChange = (method: string): boolean => changes(definition.fullName, method);
    server.add(definition, audited(definition, implementation, isChange, parts.audit));
  };
  add(TrainingServiceDefinition, trainingService(parts));
  add(ArtifactServiceDefinition, artifactService(parts));
  add(DatasetServiceDefinition, datasetService(parts));
  add(ModelServiceDefinition, modelService(parts));
  add(ServerServiceDefinition, serverService(parts));
  add(WeightsServiceDefinition, weightsService(parts));
  add(WebhookServiceDefinition, webhookService(parts));
  server.addMethods(standardMethods(healthName, health.handlers));
  if (config.reflection) {
    const handlers = reflectionHandlers(descriptors, [...serviceNames, healthName, ...reflectionNames]);
    for (const name of reflectionNames) server.addMethods(standardMethods(name, handlers));
  }
  return server;
}
