import {
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  ModelServiceDefinition,
  ServerServiceDefinition,
  TrainingServiceDefinition,
  WeightsServiceDefinition,
} from '@relora/sdk/contract';
import { createServer, type Server } from 'nice-grpc';
import { artifactService } from '../api/artifactService.js';
import { datasetService } from '../api/datasetService.js';
import { deadlineMiddleware, errorMiddleware, metadataMiddleware } from '../api/middleware.js';
import { modelService } from '../api/modelService.js';
import type { ApiParts } from '../api/parts.js';
import { serverService } from '../api/serverService.js';
import { trainingService } from '../api/trainingService.js';
import { weightsService } from '../api/weightsService.js';
import { rpcMetricsMiddleware } from '../metrics/rpcMetrics.js';
import { endStreamsMiddleware } from './endStreams.js';
import type { Health } from './health.js';
import { addReflection } from './reflection.js';
import { serverOptions } from './serverOptions.js';

const services = [
  TrainingServiceDefinition,
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  ModelServiceDefinition,
  ServerServiceDefinition,
  WeightsServiceDefinition,
];

/** Full names of the services of the contract. */
export const serviceNames: readonly string[] = services.map(({ fullName }) => fullName);

/** What calls with one answer may take beyond the time that a trainer has to stop. */
const unarySeconds = 60;

/** Puts every service behind the same middleware; does not listen yet. */
export function createGrpcServer(parts: ApiParts, health: Health): Server {
  const { config, log, metrics } = parts;
  const server = createServer(serverOptions(config))
    .use(rpcMetricsMiddleware(metrics, services))
    .use(errorMiddleware(log, config))
    .use(metadataMiddleware(config.metadataBytesMax))
    .use(endStreamsMiddleware(parts.stopping))
    .use(deadlineMiddleware(config.trainerGraceSeconds + unarySeconds));
  server.add(TrainingServiceDefinition, trainingService(parts));
  server.add(ArtifactServiceDefinition, artifactService(parts));
  server.add(DatasetServiceDefinition, datasetService(parts));
  server.add(ModelServiceDefinition, modelService(parts));
  server.add(ServerServiceDefinition, serverService(parts));
  server.add(WeightsServiceDefinition, weightsService(parts));
  health.addTo(server);
  if (config.reflection) {
    addReflection(server, [...serviceNames, 'grpc.health.v1.Health']);
  }
  return server;
}
