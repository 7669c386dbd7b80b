import { expect, test } from 'vitest';
import { callOnce, dynamicClient, reflect } from '../e2e/reflectedClient.js';
import { runServer } from './runningServer.js';

test('reflection v1 and v1alpha tell the same contract, which is enough to call every service', async () => {
  const { server } = await runServer();
  const [v1, v1alpha] = [
    await reflect(server.grpcAddress, 'v1'),
    await reflect(server.grpcAddress, 'v1alpha'),
  ];
  expect(v1alpha).toEqual(v1);
  expect([...v1.serviceNames].sort()).toEqual([
    'grpc.health.v1.Health',
    'grpc.reflection.v1.ServerReflection',
    'grpc.reflection.v1alpha.ServerReflection',
    'relora.v1.ArtifactService',
    'relora.v1.DatasetService',
    'relora.v1.ModelService',
    'relora.v1.ServerService',
    'relora.v1.TrainingService',
    'relora.v1.WebhookService',
    'relora.v1.WeightsService',
  ]);
  const client = dynamicClient(v1.descriptorSet, 'relora.v1.TrainingService', server.grpcAddress);
  expect(await callOnce(client, 'ListJobs', {})).toMatchObject({ jobs: [], next_page_token: '' });
  client.close();
});

test('reflection can be turned off', async () => {
  const { server } = await runServer({ RELORA_REFLECTION: 'off' });
  await expect(reflect(server.grpcAddress, 'v1')).rejects.toThrow('UNIMPLEMENTED');
});

test('a name that does not exist is an answer, not the end of the stream', async () => {
  const { server } = await runServer();
  await expect(reflect(server.grpcAddress, 'v1', ['relora.v1.Tea'])).rejects.toThrow('not found');
});
