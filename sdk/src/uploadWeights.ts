import { readdir } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { split, type CallOptions } from './callOptions.js';
import {
  UploadWeightsHeader,
  type DeepPartial,
  type UploadWeightsRequest,
  type Weights,
} from './contract.js';
import { fewAtOnce } from './fewAtOnce.js';
import type { Patience } from './patience.js';
import { checkMessage } from './requestFields.js';
import { measure, messagesOf, newId, resumeUpload } from './resumeUpload.js';

export interface UploadWeightsOptions extends CallOptions {
  /** A folder in Hugging Face layout, from which the files of the model and its tokenizer are taken; or a list of files. */
  from: string | readonly string[];
  /** Id of the weights; with it a later process can resume an interrupted upload. Default: a new one. */
  weightsId?: string;
  displayName?: string;
  /** Labels to find them by. */
  labels?: Record<string, string>;
  /** From 0 to 1; at 1 the server checks every tensor. */
  onProgress?: (ratio: number) => void;
}

export interface UploadWeightsCalls {
  upload(messages: AsyncIterable<DeepPartial<UploadWeightsRequest>>): Promise<Weights>;
  /** Undefined if they do not exist. */
  get(name: string): Promise<Weights | undefined>;
}

const templates = 'additional_chat_templates';

/** Files of a folder that belong to the model; others, such as weights in PyTorch's format, are left out. */
const ofModel =
  /^(model[\w-]*\.safetensors|model\.safetensors\.index\.json|chat_template\.jinja|(chat_template|config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json|additional_chat_templates\/[A-Za-z0-9][\w.-]*\.jinja)$/;

/** Uploads the missing bytes of weights; resolves when the server has checked them. */
export async function uploadWeights(
  calls: UploadWeightsCalls,
  options: UploadWeightsOptions,
  patience: Patience,
): Promise<Weights> {
  const [{ from, onProgress, weightsId = newId('weights'), ...given }] = split(options);
  const paths = typeof from === 'string' ? await filesOf(from) : from;
  const files = await fewAtOnce(paths, async (path) => ({
    fileName: nameOf(path),
    ...(await measure({ path })),
  }));
  const header = { ...given, weightsId, files };
  checkMessage(UploadWeightsHeader, header, '');
  const total = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  return await resumeUpload(
    {
      sources: paths.map((path) => ({ path })),
      upload: async (chunks) => await calls.upload(messagesOf(header, chunks)),
      known: async () => await calls.get(`weights/${weightsId}`),
      onSent: (bytes) => onProgress?.(bytes / total),
    },
    patience,
  );
}

async function filesOf(folder: string): Promise<string[]> {
  const names = await readdir(folder);
  // The only subfolder that belongs to a model.
  if (names.includes(templates))
    for (const name of await readdir(join(folder, templates))) names.push(`${templates}/${name}`);
  return names
    .filter((name) => ofModel.test(name))
    .sort()
    .map((name) => join(folder, name));
}

/** Chat templates keep their folder, whether the folder or the files were named. */
function nameOf(path: string): string {
  const name = basename(path);
  return basename(dirname(path)) === templates ? `${templates}/${name}` : name;
}
