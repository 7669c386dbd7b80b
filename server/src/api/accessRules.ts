import type {
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  ModelServiceDefinition,
  ServerServiceDefinition,
  TrainingServiceDefinition,
  WebhookServiceDefinition,
  WeightsServiceDefinition,
} from '@relora/sdk/contract';
import type { Role } from '../roles.js';
import type { Config } from '../config.js';

type Rules<Definition extends { methods: object }> = Record<keyof Definition['methods'], Role>;

/** The lowest role that may call each method. A method of the contract without a rule does not compile. */
export interface AccessRules {
  'relora.v1.TrainingService': Rules<TrainingServiceDefinition>;
  'relora.v1.ArtifactService': Rules<ArtifactServiceDefinition>;
  'relora.v1.DatasetService': Rules<DatasetServiceDefinition>;
  'relora.v1.ModelService': Rules<ModelServiceDefinition>;
  'relora.v1.ServerService': Rules<ServerServiceDefinition>;
  'relora.v1.WeightsService': Rules<WeightsServiceDefinition>;
  'relora.v1.WebhookService': Rules<WebhookServiceDefinition>;
}

/** Reading needs `viewer`, changing what the tenant has needs `trainer`, and what concerns the whole server needs `operator`. */
export const accessRules: AccessRules = {
  'relora.v1.TrainingService': {
    createJob: 'trainer',
    updateJob: 'trainer',
    getJobLog: 'viewer',
    exportJob: 'viewer',
    importJob: 'trainer',
    forkJob: 'trainer',
    restartJob: 'trainer',
    estimateJob: 'viewer',
    getJob: 'viewer',
    listJobs: 'viewer',
    listRestarts: 'viewer',
    watchJob: 'viewer',
    watchJobs: 'viewer',
    explainJob: 'viewer',
    getMetricHistory: 'viewer',
    compareJobs: 'viewer',
    pauseJob: 'trainer',
    resumeJob: 'trainer',
    cancelJob: 'trainer',
    deleteJob: 'trainer',
    undeleteJob: 'trainer',
  },
  'relora.v1.ArtifactService': {
    getArtifact: 'viewer',
    listArtifacts: 'viewer',
    downloadArtifact: 'viewer',
    exportWeights: 'trainer',
    deleteArtifact: 'trainer',
  },
  'relora.v1.DatasetService': {
    getDataset: 'viewer',
    listDatasets: 'viewer',
    previewDataset: 'viewer',
    uploadDataset: 'trainer',
    deleteDataset: 'trainer',
    undeleteDataset: 'trainer',
  },
  // They use the machine as a job does.
  'relora.v1.ModelService': { generateText: 'trainer', evaluateModel: 'trainer' },
  'relora.v1.ServerService': {
    getServerInfo: 'viewer',
    getDiskUse: 'viewer',
    scrub: 'trainer',
    getQuota: 'viewer',
    getUsage: 'viewer',
    listAuditEntries: 'operator',
  },
  'relora.v1.WeightsService': {
    getWeights: 'viewer',
    listWeights: 'viewer',
    uploadWeights: 'trainer',
    deleteWeights: 'trainer',
  },
  'relora.v1.WebhookService': {
    createWebhook: 'trainer',
    listWebhooks: 'viewer',
    deleteWebhook: 'trainer',
    testWebhook: 'trainer',
    listWebhookDeliveries: 'viewer',
    resendWebhookDeliveries: 'trainer',
  },
};

/** The lowest role that may call the method at a path such as `/relora.v1.TrainingService/GetJob`; null: anybody may. */
export function roleFor(path: string, withoutToken: Config['withoutToken']): Role | null {
  const [, service = '', method = ''] = path.split('/');
  if (service.startsWith('grpc.health.')) return withoutToken.includes('health') ? null : 'viewer';
  if (service.startsWith('grpc.reflection.')) return withoutToken.includes('reflection') ? null : 'viewer';
  const rules = (accessRules as unknown as Record<string, Record<string, Role> | undefined>)[service];
  // A method without a rule is left to those who may do everything.
  return rules?.[method.slice(0, 1).toLowerCase() + method.slice(1)] ?? 'operator';
}

/** Whether a method changes what a tenant has. The other methods for trainers only read or compute at length. */
export function changes(service: string, method: string): boolean {
  const rules = (accessRules as unknown as Record<string, Record<string, Role> | undefined>)[service];
  return rules?.[method] === 'trainer';
}
