import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { chatFilesOf, chatTemplateFile, endTokensOf, type EndTokens } from '@relora/engine/plan';
import type {
  DatasetFile as DatasetFileProto,
  DatasetSpec as DatasetSpecProto,
  HuggingFaceTokenizer,
  TokenizerSpec,
  UploadDatasetHeader,
} from '@relora/sdk/contract';
import type { DatasetSpec, DatasetTokenizerSpec } from '../datasets/dataset.js';
import type { NewDataset } from '../datasets/datasetStore.js';
import { quote } from '../errors.js';
import { enums } from './enums.js';
import type { Principal } from '../access/principal.js';
import { FieldChecks } from './fieldChecks.js';
import type { ApiParts } from './parts.js';
import { readTextFile } from './readTextFile.js';
import { datasetIdOf, weightsIdOf } from './resourceNames.js';
import { idIn } from '../store/tenantIds.js';

type NewFile = NewDataset['files'][number];

type HeaderParts = Pick<ApiParts, 'config' | 'allowedFolders' | 'weights' | 'datasets' | 'stage'>;

const tokenizerJsonBytesMax = 3 << 20;
const tokenizerConfigBytesMax = 1 << 20;
/** A file on the server may be larger than one in a message. */
const tokenizerFileBytesMax = 64 << 20;

/** Turns the header of an upload into a data set, or throws REQUEST_INVALID with everything that is wrong. */
export async function parseDatasetHeader(
  parts: HeaderParts,
  { tenant, name: owner }: Pick<Principal, 'tenant' | 'name'>,
  header: UploadDatasetHeader,
): Promise<NewDataset> {
  const { config } = parts;
  const checks = new FieldChecks();
  const datasetId = checks.id('header.dataset_id', header.datasetId);
  const displayName = checks.text('header.display_name', header.displayName, 63);
  const labels = checks.labels('header.labels', header.labels);
  const named =
    header.base === ''
      ? await parseTokenizer(checks, parts, tenant, header.spec?.tokenizer)
      : {
          tokenizer: await tokenizerOfDataset(checks, parts, tenant, 'header.base', header.base),
          companions: {},
        };
  const spec: DatasetSpec = {
    tokenizer: named.tokenizer,
    heldOutShare: checks.number('header.spec.held_out_share', header.spec?.heldOutShare, 0.01, {
      min: 0,
      max: 0.5,
    }),
    textField: checks.text('header.spec.text_field', header.spec?.textField ?? 'text', 256),
    seed: checks.integer('header.spec.seed', header.spec?.seed, 0, 0, 2 ** 31 - 1),
  };
  const pairFields = parsePairFields(checks, header.spec);
  // Absent otherwise: an upload that resumes is recognized by its stored specification.
  if (pairFields !== undefined) spec.pairFields = pairFields;
  const chat = parseChat(checks, header.spec, named.companions);
  if (chat !== undefined) spec.chat = chat;
  if (header.base !== '') {
    spec.base = header.base;
    await checkBase(checks, parts, tenant, header, spec);
  }
  const skipInvalid = parseSkipInvalid(checks, header.spec);
  if (skipInvalid !== undefined) spec.skipInvalid = skipInvalid;
  if (spec.textField === '') checks.add('header.spec.text_field', 'the name of a field', '""');

  const files: NewFile[] = [];
  if (header.files.length === 0) checks.add('header.files', 'at least one file', 'none');
  // If there are too many, none is checked: there may be ten thousand.
  const areTooMany = header.files.length > config.datasetFilesMax;
  if (areTooMany) checks.add('header.files', `at most ${config.datasetFilesMax} files`, header.files.length);
  for (const [index, file] of areTooMany ? [] : header.files.entries()) {
    const parsed = await parseFile(checks, parts, file, `header.files[${index}]`);
    const isText = parsed.format === 'text' || (parsed.format === 'auto' && textName.test(parsed.fileName));
    if (pairFields !== undefined && isText)
      checks.add(`header.files[${index}]`, 'a file with fields, as prompt_field needs', 'TEXT');
    const isJson = ['auto', 'jsonl', 'json'].includes(parsed.format) && !isText;
    if (chat !== undefined && !isJson)
      checks.add(
        `header.files[${index}]`,
        'JSONL or JSON, as messages_field needs',
        parsed.format.toUpperCase(),
      );
    files.push(parsed);
  }
  const uploads = files.filter(({ serverPath }) => serverPath === null).length;
  if (uploads > 0 && uploads < files.length)
    checks.add('header.files', 'either only uploads or only files on the server', 'both');
  const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  if (sizeBytes > config.datasetBytesMax)
    checks.add('header.files', `at most ${config.datasetBytesMax} bytes in all`, sizeBytes);

  checks.throwIfWrong();
  return { tenant, datasetId: datasetId && idIn(tenant, datasetId), displayName, labels, owner, files, spec };
}

/** Both fields or neither, and not together with text_field. */
function parsePairFields(
  checks: FieldChecks,
  spec: DatasetSpecProto | undefined,
): DatasetSpec['pairFields'] | undefined {
  const prompt = spec?.promptField ?? '';
  const completion = spec?.completionField ?? '';
  if (prompt === '' && completion === '') return undefined;
  checks.text('header.spec.prompt_field', prompt, 256);
  checks.text('header.spec.completion_field', completion, 256);
  if (prompt === '') checks.add('header.spec.prompt_field', 'a name, since completion_field is set', 'none');
  if (completion === '')
    checks.add('header.spec.completion_field', 'a name, since prompt_field is set', 'none');
  if (prompt === completion)
    checks.add('header.spec.completion_field', 'another field than prompt_field', quote(completion));
  if (spec?.textField !== undefined)
    checks.add('header.spec.text_field', 'unset if prompt_field is set', quote(spec.textField));
  return { prompt, completion };
}

/** Chat messages with their template: the given one, or the one next to the tokenizer. */
function parseChat(
  checks: FieldChecks,
  spec: DatasetSpecProto | undefined,
  companions: CompanionFiles,
): DatasetSpec['chat'] | undefined {
  const { messagesField: field, chatTemplate } = spec ?? {};
  if (field === undefined) {
    if (chatTemplate !== undefined)
      checks.add('header.spec.chat_template', 'nothing without messages_field', 'a template');
    return undefined;
  }
  checks.text('header.spec.messages_field', field, 256);
  if (field === '') checks.add('header.spec.messages_field', 'the name of a field', '""');
  for (const other of ['textField', 'promptField', 'completionField'] as const)
    if (spec?.[other] !== undefined)
      checks.add(
        'header.spec.messages_field',
        'unset if text_field, prompt_field or completion_field is set',
        quote(field),
      );
  const { template: found, tokens } = chatFilesOf(companions);
  const template = chatTemplate ?? found;
  if (template === null)
    checks.add(
      'header.spec.chat_template',
      'a template, or a tokenizer that comes with one (chat_template.jinja, or in tokenizer_config.json)',
      'none',
    );
  else if (Buffer.byteLength(template) > chatTemplateBytesMax)
    checks.add(
      'header.spec.chat_template',
      `at most ${chatTemplateBytesMax} bytes`,
      Buffer.byteLength(template),
    );
  return { field, template: template ?? '', tokens };
}

const chatTemplateBytesMax = 65_536;

/** The engine reads files with these names as plain text, whatever they begin with. */
const textName = /\.(txt|text|md)(\.(gz|gzip|zst|zstd))?$/i;

/** At most one of a count and a share. */
function parseSkipInvalid(
  checks: FieldChecks,
  spec: DatasetSpecProto | undefined,
): DatasetSpec['skipInvalid'] | undefined {
  const { skipInvalidCount: count, skipInvalidShare: share } = spec ?? {};
  if (count !== undefined && share !== undefined)
    checks.add('header.spec.skip_invalid_share', 'unset if skip_invalid_count is set', share);
  if (count !== undefined)
    return { count: checks.integer('header.spec.skip_invalid_count', count, 0, 0, Number.MAX_SAFE_INTEGER) };
  if (share !== undefined)
    return { share: checks.number('header.spec.skip_invalid_share', share, 0, { min: 0, max: 1 }) };
  return undefined;
}

async function parseFile(
  checks: FieldChecks,
  parts: Pick<ApiParts, 'config' | 'allowedFolders'>,
  file: DatasetFileProto,
  field: string,
): Promise<NewFile> {
  const { uploadBytesMax } = parts.config;
  // If the client does not name it, the format is recognized from the content when the data set is prepared.
  const format = checks.word(`${field}.format`, file.format, enums.DatasetFormat, 'auto' as const);
  const split = checks.word(`${field}.split`, file.split, enums.DatasetSplit, null);
  if (file.serverPath !== '') {
    if (file.fileName !== '')
      checks.add(`${field}.file_name`, 'unset if server_path is set', quote(file.fileName));
    const found = await parts.allowedFolders.file(file.serverPath);
    if ('problem' in found)
      checks.add(
        `${field}.server_path`,
        'a regular file inside a folder of RELORA_ALLOWED_FOLDERS',
        found.problem,
      );
    const fileName = file.serverPath.slice(file.serverPath.lastIndexOf('/') + 1);
    return {
      fileName,
      serverPath: 'problem' in found ? file.serverPath : found.path,
      format,
      split,
      sizeBytes: 'problem' in found ? 0 : found.sizeBytes,
      sha256: null,
    };
  }
  // The name is for people and, where the content leaves the format open, for recognizing it; on the disk a file has a number. So only
  // names that cannot be displayed are refused.
  checks.text(`${field}.file_name`, file.fileName, 255);
  if (
    file.fileName === '' ||
    /[/\\]/.test(file.fileName) ||
    file.fileName === '.' ||
    file.fileName === '..'
  ) {
    checks.add(`${field}.file_name`, 'a name without folders, or a server_path', quote(file.fileName));
  }
  if (!/^[0-9a-f]{64}$/i.test(file.sha256))
    checks.add(`${field}.sha256`, '64 hexadecimal digits', quote(file.sha256));
  return {
    fileName: file.fileName,
    serverPath: null,
    format,
    split,
    sizeBytes: checks.integer(`${field}.size_bytes`, file.sizeBytes, 0, 0, uploadBytesMax),
    sha256: file.sha256.toLowerCase(),
  };
}

async function parseTokenizer(
  checks: FieldChecks,
  parts: HeaderParts,
  tenant: string,
  spec: TokenizerSpec | undefined,
): Promise<NamedTokenizer> {
  const field = 'header.spec.tokenizer';
  if (spec?.trainedBpe !== undefined) {
    const max = Math.min(131_072, parts.config.vocabularySizeMax);
    const { vocabularySize: size } = spec.trainedBpe;
    const vocabularySize = checks.integer(`${field}.trained_bpe.vocabulary_size`, size, 257, 257, max);
    return alone({ kind: 'trainedBpe', vocabularySize });
  }
  if (spec?.dataset !== undefined)
    return alone(await tokenizerOfDataset(checks, parts, tenant, `${field}.dataset`, spec.dataset));
  if (spec?.huggingFace === undefined) return alone({ kind: 'bytes' });
  return await huggingFaceTokenizer(checks, parts, tenant, `${field}.hugging_face`, spec.huggingFace);
}

async function huggingFaceTokenizer(
  checks: FieldChecks,
  parts: HeaderParts,
  tenant: string,
  field: string,
  { tokenizerJson, serverPath, weights, endToken, tokenizerConfigJson }: HuggingFaceTokenizer,
): Promise<NamedTokenizer> {
  checks.text(`${field}.end_token`, endToken, 256);
  const asked: EndTokens | undefined =
    endToken === '' ? undefined : { ids: [], name: endToken, isAsked: true };
  const named = [tokenizerJson, serverPath, weights].filter((text) => text !== '');
  if (named.length !== 1) {
    const got = named.length === 0 ? 'none' : named.length === 2 ? 'two' : 'all';
    checks.add(field, 'exactly one of tokenizer_json, server_path and weights', got);
    return alone({ kind: 'bytes' });
  }
  const configField = `${field}.tokenizer_config_json`;
  const configBytes = Buffer.byteLength(tokenizerConfigJson);
  if (configBytes > 0 && tokenizerJson === '')
    checks.add(configField, 'unset if server_path or weights is set', 'a config');
  if (configBytes > tokenizerConfigBytesMax)
    checks.add(configField, `at most ${tokenizerConfigBytesMax} bytes`, configBytes);
  if (serverPath !== '')
    return await tokenizerAtPath(checks, parts, `${field}.server_path`, serverPath, asked);
  if (weights !== '')
    return await tokenizerOfWeights(checks, parts, tenant, `${field}.weights`, weights, asked);
  const jsonBytes = Buffer.byteLength(tokenizerJson);
  if (jsonBytes > tokenizerJsonBytesMax) {
    const most = `at most ${tokenizerJsonBytesMax} bytes; name a longer one by server_path`;
    checks.add(`${field}.tokenizer_json`, most, jsonBytes);
  }
  // The content is checked by the process that prepares the data set; a hostile file can harm nothing but that process.
  const files: CompanionFiles = configBytes === 0 ? {} : { 'tokenizer_config.json': tokenizerConfigJson };
  return withCompanions(tokenizerJson, asked, files);
}

const unreadTokenizer = (): NamedTokenizer => alone({ kind: 'huggingFace', tokenizerJson: '' });

async function tokenizerAtPath(
  checks: FieldChecks,
  { allowedFolders }: HeaderParts,
  field: string,
  path: string,
  asked: EndTokens | undefined,
): Promise<NamedTokenizer> {
  const read = await allowedFolders.text(path, tokenizerFileBytesMax);
  if ('problem' in read) {
    checks.add(field, 'a tokenizer.json inside a folder of RELORA_ALLOWED_FOLDERS', read.problem);
    return unreadTokenizer();
  }
  const readCompanion = async (name: string) =>
    await allowedFolders.text(join(dirname(path), name), companionBytesMax);
  return withCompanions(read.text, asked, await companionFiles(readCompanion));
}

async function tokenizerOfWeights(
  checks: FieldChecks,
  { weights, stage }: HeaderParts,
  tenant: string,
  field: string,
  name: string,
  asked: EndTokens | undefined,
): Promise<NamedTokenizer> {
  const unread = (problem: string): NamedTokenizer => {
    checks.add(field, 'weights with a tokenizer.json', problem);
    return unreadTokenizer();
  };
  const id = weightsIdOf(tenant, name);
  const found = id === undefined ? undefined : await weights.find(id);
  if (found?.state !== 'ready')
    return unread(`${quote(name)}, which ${found === undefined ? 'do not exist' : 'are not READY'}`);
  const release = await stage.take(`weights/${found.id}`);
  try {
    const folder = weights.folder(found.id);
    const read = await readTextFile(join(folder, 'tokenizer.json'), tokenizerFileBytesMax);
    if ('problem' in read) return unread(read.problem);
    const readCompanion = async (file: string) => await readTextFile(join(folder, file), companionBytesMax);
    return withCompanions(read.text, asked, await companionFiles(readCompanion));
  } finally {
    release();
  }
}

/** The tokenizer of a data set, as it was prepared. */
async function tokenizerOfDataset(
  checks: FieldChecks,
  { datasets, stage }: HeaderParts,
  tenant: string,
  field: string,
  name: string,
): Promise<DatasetTokenizerSpec> {
  const id = datasetIdOf(tenant, name);
  const found = id === undefined ? undefined : await datasets.findHead(id);
  if (found === undefined || found.prepared === null || found.deleteTimeMs !== null) {
    const what = found === undefined ? 'which does not exist' : 'which is not READY';
    checks.add(field, 'a data set that is READY', `${quote(name)}, ${what}`);
    return { kind: 'bytes' };
  }
  const { kind, endOfTextId } = found.prepared.tokenizer;
  if (kind === 'bytes') return { kind };
  const release = await stage.take(`datasets/${found.id}/prepared`);
  try {
    const tokenizerJson = await readFile(join(datasets.preparedFolder(found.id), 'tokenizer.json'), 'utf8');
    return { kind: 'huggingFace', tokenizerJson, endTokens: { ids: [endOfTextId], name: null } };
  } finally {
    release();
  }
}

/** An appended data set has the tokenizer of its base, and prompts if the base has them. */
async function checkBase(
  checks: FieldChecks,
  { datasets }: HeaderParts,
  tenant: string,
  { base, spec }: UploadDatasetHeader,
  { pairFields, chat }: DatasetSpec,
): Promise<void> {
  if (spec?.tokenizer !== undefined)
    checks.add('header.spec.tokenizer', `unset if base is set, since its tokenizer is used`, 'a tokenizer');
  const found = await datasets.find(datasetIdOf(tenant, base) ?? '');
  if (found === undefined) return;
  // Either all of a data set has masks or none of it.
  if ((found.spec.chat !== undefined) !== (chat !== undefined))
    checks.add(
      'header.spec.messages_field',
      chat ? 'nothing, as in its base' : 'messages, as in its base',
      chat ? 'a field' : 'none',
    );
  const hasPairs = pairFields !== undefined;
  if ((found.spec.pairFields !== undefined) === hasPairs) return;
  const expected = hasPairs ? 'nothing, as in its base' : 'fields of prompts and completions, as in its base';
  checks.add('header.spec.prompt_field', expected, hasPairs ? 'a field' : 'none');
}

/** Longest config that is read from next to a tokenizer. */
const companionBytesMax = 4 << 20;

/** A tokenizer, and the files next to it that complete it. */
interface NamedTokenizer {
  tokenizer: DatasetTokenizerSpec;
  companions: CompanionFiles;
}
type CompanionFiles = Readonly<Record<string, string>>;

function alone(tokenizer: DatasetTokenizerSpec): NamedTokenizer {
  return { tokenizer, companions: {} };
}

/** Adds how texts end, as the client says or else as the files say; nothing if neither does. */
function withCompanions(
  tokenizerJson: string,
  asked: EndTokens | undefined,
  companions: CompanionFiles,
): NamedTokenizer {
  const found = asked ?? endTokensOf(companions);
  const isNothing = found.ids.length === 0 && found.name === null;
  return {
    tokenizer: { kind: 'huggingFace', tokenizerJson, ...(isNothing ? {} : { endTokens: found }) },
    companions,
  };
}

async function companionFiles(
  read: (name: string) => Promise<{ text: string } | { problem: string }>,
): Promise<CompanionFiles> {
  const files: Record<string, string> = {};
  for (const name of ['config.json', 'generation_config.json', 'tokenizer_config.json', chatTemplateFile]) {
    const found = await read(name);
    if ('text' in found) files[name] = found.text;
  }
  return files;
}
