import { dirname } from 'node:path';
import type { Config } from '../config.js';
import type { ChildAccess } from './confinement.js';
import type { DeviceSettings, Task, TrainOrder } from './messages.js';

type Settings = Pick<Config, 'allowedFolders'>;

/** A trainer may write to its job's folder, and read its data, its weights and what it begins at. */
export function accessOfTrainer(order: TrainOrder): ChildAccess {
  const { device, jobFolder, datasetFolders, baseWeightsFolder, baseWeightsBeneath, origin, checkpoints } =
    order;
  return {
    read: present([
      ...datasetFolders,
      baseWeightsFolder,
      // Files of weights may be links to another place in an allowed folder.
      ...(baseWeightsFolder === null ? [] : (baseWeightsBeneath ?? [])),
      origin?.path ?? null,
      ...checkpoints.map(({ path }) => path),
      ...kernels(device),
    ]),
    write: [jobFolder],
    cards: usesCards(device),
    network: order.member !== null && (order.member.by === 'mpi' || order.member.mayConnect),
  };
}

/**
 * A task may read what it names, and write to the parent of its output folder, which has nothing of others in it. Null: it is not confined.
 */
export function accessOfTask(task: Task, settings: Settings): ChildAccess | null {
  const onProcessors = { write: [], cards: false };
  switch (task.kind) {
    case 'prepareDataset':
      return {
        ...onProcessors,
        read: present([
          ...task.files.flatMap(({ path, beneath }) => (beneath === null ? [path] : [...beneath])),
          task.baseFolder,
        ]),
        write: [dirname(task.outputFolder)],
      };
    case 'previewDataset':
      return { ...onProcessors, read: [task.preparedFolder] };
    case 'locateDocuments':
      return { ...onProcessors, read: [...task.datasetFolders] };
    case 'evaluateModel':
      return {
        ...onProcessors,
        read: present([
          task.source.folder,
          task.datasetFolder,
          ...task.datasets.map(({ folder }) => folder),
          ...kernels(task.device),
        ]),
        cards: usesCards(task.device),
      };
    case 'checkDataset':
      return { ...onProcessors, read: [task.folder] };
    case 'checkWeights':
      return { ...onProcessors, read: [task.folder, ...(task.beneath ?? [])] };
    case 'generate':
      return {
        ...onProcessors,
        read: present([task.source.folder, task.datasetFolder, ...kernels(task.device)]),
        cards: usesCards(task.device),
      };
    case 'exportWeights':
      return {
        read: [task.checkpoint.path, task.datasetFolder, ...settings.allowedFolders, ...kernels(task.device)],
        write: [dirname(task.outputFolder)],
        cards: usesCards(task.device),
      };
    case 'describeDevices':
      // Without a trial it locks cards by a socket while it measures them.
      return task.isTrial ? { ...onProcessors, read: kernels(task.device), cards: true } : null;
    case 'compileKernels':
    case 'watchCards':
      // Like the one above, these read nothing that a client sent.
      return null;
  }
}

function usesCards({ device }: DeviceSettings): boolean {
  return device === 'cuda' || device === 'auto' || device === 'tensorflow';
}

function kernels(device: DeviceSettings): string[] {
  const { libraryFolder, cacheFolder } = device.card;
  return usesCards(device) ? [cacheFolder, ...(libraryFolder === null ? [] : [libraryFolder])] : [];
}

function present(paths: readonly (string | null)[]): string[] {
  return [...new Set(paths.filter((path) => path !== null))];
}
