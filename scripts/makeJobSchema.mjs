// Writes the JSON schema of run files, with which editors complete and check: from the contract (fields, words, comments) and the table of
// settings (defaults and limits). Part of `npm run proto`; a test checks that it is up to date.
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { createFileRegistry, fromBinary, ScalarType } from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import * as plan from '../engine/dist/plan/index.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const contract = readFileSync(`${root}/server/src/generated/relora.binpb`);

/** Groups of settings by the message that has them. */
const tables = {
  JobSpec: plan.runSettings,
  StreamVersions: plan.streamSettings,
  LlamaConfig: plan.modelSettings,
  WarmStartSpec: plan.warmStartSettings,
  AdapterSpec: plan.adapterSettings,
  LearningRateSpec: plan.learningRateSettings,
  OptimizerSpec: plan.optimizerSettings,
  BatchSpec: plan.batchSettings,
  EvaluationSpec: plan.evaluationSettings,
  NamedEvaluationSpec: plan.namedEvaluationSettings,
  CheckpointSpec: plan.checkpointSettings,
  SampleSpec: plan.sampleSettings,
  ExportSpec: plan.exportSettings,
};

/** The schema as text. */
export function makeJobSchema() {
  const set = fromBinary(FileDescriptorSetSchema, contract);
  const registry = createFileRegistry(set);
  const comments = commentsOf(set);
  const definitions = {};
  const refer = (message) => {
    if (definitions[message.name] === undefined) {
      definitions[message.name] = {};
      definitions[message.name] = objectOf(message);
    }
    return { $ref: `#/definitions/${message.name}` };
  };
  const objectOf = (message) => ({
    type: 'object',
    description: comments.get(message.typeName),
    additionalProperties: false,
    properties: Object.fromEntries(
      message.fields
        .filter((field) => !field.deprecated)
        .map((field) => [
          field.name,
          { description: comments.get(`${message.typeName}.${field.name}`), ...valueOf(field, message) },
        ]),
    ),
  });
  const valueOf = (field, message) => {
    if (field.fieldKind === 'list') return { type: 'array', items: itemOf(field.listKind, field) };
    if (field.fieldKind === 'map') return { type: 'object', additionalProperties: { type: 'string' } };
    return { ...itemOf(field.fieldKind, field), ...limitsOf(tables[message.name]?.[field.localName]) };
  };
  const itemOf = (kind, field) => {
    if (kind === 'message') return refer(field.message);
    if (kind === 'enum')
      return {
        enum: field.enum.values.map(({ name }) => name).filter((name) => !name.endsWith('_UNSPECIFIED')),
      };
    if (field.scalar === ScalarType.STRING) return { type: 'string' };
    if (field.scalar === ScalarType.BOOL) return { type: 'boolean' };
    return { type: field.scalar === ScalarType.DOUBLE ? 'number' : 'integer' };
  };
  const spec = refer(registry.getMessage('relora.v1.JobSpec'));
  const schema = {
    $schema: 'http://json-schema.org/draft-07/schema#',
    title: 'A run file of relora: `relora run job.yaml`',
    type: 'object',
    additionalProperties: false,
    required: ['spec'],
    properties: {
      id: {
        type: 'string',
        pattern: '^[a-z][a-z0-9-]{3,62}$',
        description: 'Id to use; by default made by the server.',
      },
      title: { type: 'string', maxLength: 63, description: 'Title for people.' },
      labels: {
        type: 'object',
        additionalProperties: { type: 'string' },
        description: 'Labels to find the job by.',
      },
      files: {
        type: 'array',
        items: { type: 'string' },
        description:
          'Text, JSONL, CSV or Parquet to upload as the data set, in place of spec.dataset; from the folder of this file.',
      },
      vocabulary: {
        type: 'integer',
        minimum: 258,
        description: 'Train a BPE vocabulary of this size on the files; by default bytes are tokens.',
      },
      output: { type: 'string', description: 'Folder where the weights go; relora-output by default.' },
      spec,
    },
    definitions,
  };
  return `${JSON.stringify(schema, null, 2)}\n`;
}

/** The constant parts of a setting's default and limits; those that depend on other settings are known only to the server. */
function limitsOf(setting) {
  if (setting === undefined) return {};
  const limits = {};
  if (typeof setting.min === 'number') limits[setting.above ? 'exclusiveMinimum' : 'minimum'] = setting.min;
  if (typeof setting.max === 'number') limits[setting.below ? 'exclusiveMaximum' : 'maximum'] = setting.max;
  if (typeof setting.default === 'number' || typeof setting.default === 'boolean')
    limits.default = setting.default;
  if (typeof setting.lengthMax === 'number') limits.maxLength = setting.lengthMax;
  return limits;
}

/** Comments of messages and fields by full name. */
function commentsOf({ file }) {
  const comments = new Map();
  for (const { package: scope, messageType, sourceCodeInfo } of file) {
    for (const { path, leadingComments } of sourceCodeInfo?.location ?? []) {
      if (path[0] !== 4 || leadingComments === '') continue;
      const message = messageType[path[1]];
      const text = leadingComments.trim().replace(/\s*\n\s*/g, ' ');
      if (path.length === 2) comments.set(`${scope}.${message.name}`, text);
      if (path.length === 4 && path[2] === 2)
        comments.set(`${scope}.${message.name}.${message.field[path[3]].name}`, text);
    }
  }
  return comments;
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  writeFileSync(`${root}/cli/job.schema.json`, makeJobSchema());
