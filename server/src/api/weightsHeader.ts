import { chatTemplatePattern } from '@relora/engine/plan';
import type { UploadWeightsHeader } from '@relora/sdk/contract';
import type { Config } from '../config.js';
import { quote } from '../errors.js';
import type { NewWeights } from '../weights/weightsStore.js';
import type { Principal } from '../access/principal.js';
import { FieldChecks } from './fieldChecks.js';
import { idIn } from '../store/tenantIds.js';

/** These become file names on the disk, so only names that the engine and Hugging Face's libraries know are allowed. */
const fileNames = new Set([
  'chat_template.jinja',
  'chat_template.json',
  'config.json',
  'generation_config.json',
  'model.safetensors.index.json',
  'special_tokens_map.json',
  'tokenizer.json',
  'tokenizer_config.json',
]);
const shardPattern = /^model[A-Za-z0-9_-]{0,200}\.safetensors$/;

/** Whether a file of this name belongs to a model. */
export function isWeightsFile(fileName: string): boolean {
  return fileNames.has(fileName) || shardPattern.test(fileName) || chatTemplatePattern.test(fileName);
}

/** Turns the header of an upload into weights, or throws REQUEST_INVALID with everything that is wrong. */
export function parseWeightsHeader(
  config: Config,
  { tenant, name: owner }: Pick<Principal, 'tenant' | 'name'>,
  header: UploadWeightsHeader,
): NewWeights {
  const { uploadBytesMax, weightsBytesMax, weightsFilesMax } = config;
  const checks = new FieldChecks();
  const weightsId = checks.id('header.weights_id', header.weightsId);
  const displayName = checks.text('header.display_name', header.displayName, 63);
  const labels = checks.labels('header.labels', header.labels);
  if (header.files.length > weightsFilesMax)
    checks.add('header.files', `at most ${weightsFilesMax} files`, header.files.length);
  const names = new Set<string>();
  const files = header.files.slice(0, weightsFilesMax).map((file, index) => {
    const field = `header.files[${index}]`;
    const { fileName } = file;
    if (!isWeightsFile(fileName)) {
      checks.add(
        `${field}.file_name`,
        `one of ${[...fileNames].join(', ')}, model….safetensors, or additional_chat_templates/….jinja`,
        quote(fileName),
      );
    }
    if (names.has(fileName))
      checks.add(`${field}.file_name`, 'a name that no other file has', quote(fileName));
    names.add(fileName);
    if (!/^[0-9a-f]{64}$/i.test(file.sha256))
      checks.add(`${field}.sha256`, '64 hexadecimal digits', quote(file.sha256));
    return {
      fileName,
      sizeBytes: checks.integer(`${field}.size_bytes`, file.sizeBytes, 0, 1, uploadBytesMax),
      sha256: file.sha256.toLowerCase(),
    };
  });
  if (!names.has('config.json') || ![...names].some((name) => shardPattern.test(name)))
    checks.add('header.files', 'config.json and model.safetensors, or its shards with their index', 'others');
  const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  if (sizeBytes > weightsBytesMax)
    checks.add('header.files', `at most ${weightsBytesMax} bytes in all`, sizeBytes);
  checks.throwIfWrong();
  return { tenant, weightsId: weightsId && idIn(tenant, weightsId), displayName, labels, owner, files };
}
