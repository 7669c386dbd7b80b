import { status as Status } from '@grpc/grpc-js';
import { nameOf, withName } from './store/tenantIds.js';

/** One thing wrong with a request. */
export interface FieldProblem {
  /** Path in the request, as in the proto, for example `spec.adapter.rank`. */
  field: string;
  /** What is accepted. */
  expected: string;
  /** What came; empty when there is nothing to show. */
  got: string;
}

interface Entry<Detail> {
  status: Status;
  text(detail: Detail): string;
  /** What to do about it, for docs/errors.md. */
  fix: string;
  /** Fields of BadRequest. */
  fields?(detail: Detail): FieldProblem[];
  /** ResourceInfo: what the error is about. */
  resource?(detail: Detail): { type: string; name: string };
  /** PreconditionFailure: what must change first. */
  precondition?(detail: Detail): { type: string; subject: string };
  /** RetryInfo: when the same call may succeed. */
  retrySeconds?: number;
}

/** A request with more problems is refused at once, without looking at the rest of it. */
export const fieldProblemsMax = 100;

/** Limits for one problem, and for all of them as they travel: percent-encoded, which turns a space into three characters. */
const problemLengthMax = 300;
const problemsLengthMax = 1900;

function entry<Detail>(value: Entry<Detail>): Entry<Detail> {
  return value;
}

/** Every error that a handler can answer with. docs/errors.md is checked against this table, both ways. */
export const serviceErrors = {
  JOB_SPEC_INVALID: entry<{ problems: FieldProblem[] }>({
    status: Status.INVALID_ARGUMENT,
    text: ({ problems }) => listProblems(problems),
    fix: 'Correct every named field; the message lists the problems of the whole specification.',
    fields: ({ problems }) => problems,
  }),
  REQUEST_INVALID: entry<{ problems: FieldProblem[] }>({
    status: Status.INVALID_ARGUMENT,
    text: ({ problems }) => listProblems(problems),
    fix: 'Correct every named field of the request.',
    fields: ({ problems }) => problems,
  }),
  MESSAGE_UNREADABLE: entry<{ field: string; at: number; expected: string; got: string }>({
    status: Status.INVALID_ARGUMENT,
    text: ({ field, at, expected, got }) =>
      `The message cannot be read at byte ${at}${field === '' ? '' : `, in ${field}`}: expected ${expected}, got ${got}`,
    fix: 'The bytes are not a message of this contract: generate the client from the present contract, and check whatever compresses or proxies the call.',
    fields: ({ field, expected, got }) => [{ field, expected, got }],
  }),
  MESSAGE_TOO_LARGE: entry<{ limit: number; unit: 'bytes' | 'fields and list entries' }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ limit, unit }) => `The message has more than ${limit} ${unit}`,
    fix: 'Send less in one message (files are sent in chunks), or raise RELORA_MESSAGE_BYTES_MAX or RELORA_MESSAGE_FIELDS_MAX.',
  }),
  METHOD_UNKNOWN: entry<{ path: string }>({
    status: Status.UNIMPLEMENTED,
    text: ({ path }) => `This server has no method ${quote(path)}`,
    fix: 'Check the spelling of the method, and whether the server is older than the client; reflection lists all methods.',
  }),
  ENCODING_UNKNOWN: entry<Record<never, never>>({
    status: Status.UNIMPLEMENTED,
    text: () => 'Messages can be compressed with gzip or deflate, or not at all',
    fix: 'Set grpc-encoding to gzip, deflate or identity.',
  }),
  ANSWER_TOO_LARGE: entry<{ answerBytes: number; messageBytesMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ answerBytes, messageBytesMax }) =>
      `The answer would have ${answerBytes} bytes; ${messageBytesMax} are allowed`,
    fix: 'Ask for less: a smaller page, fewer series or points; or raise RELORA_MESSAGE_BYTES_MAX on the server and the limit of the client.',
  }),
  PAGE_TOKEN_INVALID: entry<Record<never, never>>({
    status: Status.INVALID_ARGUMENT,
    text: () => 'page_token is not one that this server gave for this request',
    fix: 'Send next_page_token unchanged, with the same filter and order, or start again without a token.',
    fields: () => [{ field: 'page_token', expected: 'the next_page_token of the same request', got: '' }],
  }),
  NOT_AUTHENTICATED: entry<{ cause: string }>({
    status: Status.UNAUTHENTICATED,
    text: ({ cause }) => `The server does not know who calls: ${cause}`,
    fix: 'Send `authorization: Bearer TOKEN` with a token from `relora-server token add` or from your identity provider.',
  }),
  IDENTITY_PROVIDER_AWAY: entry<{ issuer: string }>({
    status: Status.UNAVAILABLE,
    text: ({ issuer }) =>
      `The keys of the identity provider ${issuer} cannot be fetched, so no JWT can be verified`,
    fix: 'Try again; if it lasts, check that the server can reach the provider, and the settings RELORA_OIDC_ISSUER and RELORA_OIDC_JWKS.',
    retrySeconds: 5,
  }),
  ROLE_TOO_LOW: entry<{ action: string; role: string; needed: string }>({
    status: Status.PERMISSION_DENIED,
    text: ({ action, role, needed }) => `${action} needs the role ${needed}, and the caller has ${role}`,
    fix: 'Use a token with that role, or ask an operator to make the call.',
  }),
  SERVICE_UNKNOWN: entry<{ service: string }>({
    status: Status.NOT_FOUND,
    text: ({ service }) => `There is no service ${quote(service)} here`,
    fix: 'Ask for the health of the empty name, or of a service that reflection lists.',
    resource: ({ service }) => ({ type: 'grpc.health.v1.Service', name: service }),
  }),
  JOB_NOT_FOUND: entry<{ jobId: string }>({
    status: Status.NOT_FOUND,
    text: ({ jobId }) => `Job ${jobId} does not exist`,
    fix: 'Check the name; ListJobs lists all jobs.',
    resource: ({ jobId }) => ({ type: 'relora.v1.Job', name: `jobs/${jobId}` }),
  }),
  CHECKPOINT_NOT_FOUND: entry<{ jobId: string; wanted: string; steps: string }>({
    status: Status.NOT_FOUND,
    text: ({ jobId, wanted, steps }) =>
      `Job ${jobId} has no checkpoint${wanted}; ${steps === '' ? 'it has none' : `it has those of the steps ${steps}`}`,
    fix: 'Choose one of the steps in the message. Only the newest checkpoints are kept (checkpoint.keep_count).',
    resource: ({ jobId }) => ({ type: 'relora.v1.Job', name: `jobs/${jobId}` }),
  }),
  DATASET_NOT_FOUND: entry<{ datasetId: string }>({
    status: Status.NOT_FOUND,
    text: ({ datasetId }) => `Data set ${datasetId} does not exist`,
    fix: 'Check the name; ListDatasets lists all data sets, UploadDataset creates one.',
    resource: ({ datasetId }) => ({ type: 'relora.v1.Dataset', name: `datasets/${datasetId}` }),
  }),
  WEBHOOK_NOT_FOUND: entry<{ webhookId: string }>({
    status: Status.NOT_FOUND,
    text: ({ webhookId }) => `Webhook ${webhookId} does not exist`,
    fix: 'Check the name; ListWebhooks lists all webhooks.',
    resource: ({ webhookId }) => ({ type: 'relora.v1.Webhook', name: `webhooks/${webhookId}` }),
  }),
  WEBHOOK_EXISTS: entry<{ webhookId: string }>({
    status: Status.ALREADY_EXISTS,
    text: ({ webhookId }) => `A webhook ${webhookId} exists already`,
    fix: 'Choose another webhook_id, or delete the existing webhook first.',
    resource: ({ webhookId }) => ({ type: 'relora.v1.Webhook', name: `webhooks/${webhookId}` }),
  }),
  TOO_MANY_WEBHOOKS: entry<{ webhooksMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ webhooksMax }) => `A tenant may have at most ${webhooksMax} webhooks`,
    fix: 'Delete a webhook that is no longer needed, or raise RELORA_WEBHOOKS_MAX.',
  }),
  ARTIFACT_NOT_FOUND: entry<{ jobId: string; artifactId: string }>({
    status: Status.NOT_FOUND,
    text: ({ jobId, artifactId }) => `Job ${jobId} has no artifact ${artifactId}`,
    fix: 'ListArtifacts lists the artifacts of a job; those of its end appear when they are finished.',
    resource: ({ jobId, artifactId }) => ({
      type: 'relora.v1.Artifact',
      name: `jobs/${jobId}/artifacts/${artifactId}`,
    }),
  }),
  ARTIFACT_FILE_NOT_FOUND: entry<{ jobId: string; artifactId: string; fileName: string }>({
    status: Status.NOT_FOUND,
    text: ({ artifactId, fileName }) => `Artifact ${artifactId} has no file ${quote(fileName)}`,
    fix: 'Use a file_name that ListArtifacts shows for the artifact.',
    resource: ({ jobId, artifactId }) => ({
      type: 'relora.v1.Artifact',
      name: `jobs/${jobId}/artifacts/${artifactId}`,
    }),
  }),
  ARTIFACT_NOT_READY: entry<{ jobId: string; artifactId: string; state: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ artifactId, state }) => `Artifact ${artifactId} is ${state}, not READY`,
    fix: 'Wait until GetArtifact shows READY; when it shows FAILED, its failure says why.',
    precondition: ({ jobId, artifactId }) => ({
      type: 'ARTIFACT_STATE',
      subject: `jobs/${jobId}/artifacts/${artifactId}`,
    }),
  }),
  ARTIFACT_FORMAT_WRONG: entry<{ artifactId: string; format: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ artifactId, format }) =>
      `Artifact ${artifactId} is ${format}; text can be generated only from HUGGING_FACE`,
    fix: 'Name an artifact in Hugging Face layout, or the job itself.',
    precondition: ({ artifactId }) => ({ type: 'ARTIFACT_FORMAT', subject: artifactId }),
  }),
  WEIGHTS_NOT_FOUND: entry<{ weightsId: string }>({
    status: Status.NOT_FOUND,
    text: ({ weightsId }) => `Weights ${weightsId} do not exist`,
    fix: 'Check the name; ListWeights lists all weights, UploadWeights adds some.',
    resource: ({ weightsId }) => ({ type: 'relora.v1.Weights', name: `weights/${weightsId}` }),
  }),
  WEIGHTS_EXISTS: entry<{ weightsId: string }>({
    status: Status.ALREADY_EXISTS,
    text: ({ weightsId }) => `Weights ${weightsId} exist already with other files`,
    fix: 'Choose another weights_id, or send the header exactly as before to resume its upload.',
    resource: ({ weightsId }) => ({ type: 'relora.v1.Weights', name: `weights/${weightsId}` }),
  }),
  WEIGHTS_INVALID: entry<{ weightsId: string; cause: string; message: string }>({
    status: Status.INVALID_ARGUMENT,
    text: ({ message }) => `The weights cannot be used and were dropped: ${message}`,
    fix: 'The message names the file, key or tensor, what was expected and what was found. Correct the files and upload them again.',
    fields: ({ message }) => [
      { field: 'header.files', expected: 'a model that is computed here', got: message },
    ],
  }),
  WEIGHTS_IN_USE: entry<{ name: string; job: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ name, job }) => `${name} cannot be deleted: ${job} begins at it and has not ended`,
    fix: 'Wait until the job has ended, or cancel it.',
    precondition: ({ job }) => ({ type: 'JOB_STATE', subject: job }),
  }),
  JOB_EXISTS: entry<{ jobId: string }>({
    status: Status.ALREADY_EXISTS,
    text: ({ jobId }) => `A job ${jobId} exists already`,
    fix: 'Choose another job_id or leave it empty. To make a retry safe, send a request_id.',
    resource: ({ jobId }) => ({ type: 'relora.v1.Job', name: `jobs/${jobId}` }),
  }),
  JOB_ARCHIVE_INVALID: entry<{ problem: string }>({
    status: Status.INVALID_ARGUMENT,
    text: ({ problem }) => `The archive of the job cannot be used and was dropped: expected that ${problem}`,
    fix: 'Export the job again, and import it without changing a file. The message says what did not match.',
  }),
  JOB_ARCHIVE_DATA: entry<{ dataset: string; expected: string; found: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ dataset, expected, found }) =>
      `The job reads ${dataset} with the manifest of SHA-256 ${expected}; here it is ${found}`,
    fix: 'Upload the same files with the same preparation under that name, then import the job again: what was already received is kept.',
  }),
  DATASET_EXISTS: entry<{ datasetId: string }>({
    status: Status.ALREADY_EXISTS,
    text: ({ datasetId }) => `Data set ${datasetId} exists already with other files or another preparation`,
    fix: 'Choose another dataset_id, or send the header exactly as before to resume its upload.',
    resource: ({ datasetId }) => ({ type: 'relora.v1.Dataset', name: `datasets/${datasetId}` }),
  }),
  JOB_DELETED: entry<{ jobId: string; purgeTime: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ jobId, purgeTime }) => `Job ${jobId} is deleted; it can be restored until ${purgeTime}`,
    fix: 'UndeleteJob restores it until the time in the message.',
  }),
  JOB_IN_USE: entry<{ jobId: string; usedBy: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ jobId, usedBy }) => `Job ${jobId} cannot be deleted: ${usedBy} needs it`,
    fix: 'Wait until what the message names has ended, or cancel or delete it.',
  }),
  DATASET_DELETED: entry<{ datasetId: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ datasetId }) =>
      `Data set ${datasetId} is deleted; UndeleteDataset restores it until its purge_time`,
    fix: 'UndeleteDataset restores it until its purge_time, and an upload of it can then continue. Otherwise upload the data under another dataset_id.',
  }),
  DATASET_NAME_KEPT: entry<{ datasetId: string }>({
    status: Status.ALREADY_EXISTS,
    text: ({ datasetId }) =>
      `Data set ${datasetId} is gone, but its name is not free until the jobs that used it are gone, too`,
    fix: 'Choose another dataset_id, or delete the ended jobs that used the data set: they need its tokenizer. Its name is free once the server has removed them and it.',
    resource: ({ datasetId }) => ({ type: 'relora.v1.Dataset', name: `datasets/${datasetId}` }),
  }),
  DATASET_IN_USE: entry<{ datasetId: string; usedBy: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ datasetId, usedBy }) => `Data set ${datasetId} cannot be deleted: ${usedBy} needs it`,
    fix: 'Wait until what the message names has ended, or cancel it.',
  }),
  REQUEST_ID_REUSED: entry<{ requestId: string }>({
    status: Status.ALREADY_EXISTS,
    text: ({ requestId }) => `request_id ${requestId} was used for another request`,
    fix: 'Make a new UUID for every new request; repeat one only to retry the same request.',
    resource: ({ requestId }) => ({ type: 'request', name: requestId }),
  }),
  JOB_STATE_WRONG: entry<{ jobId: string; state: string; action: string; allowed: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ jobId, state, action, allowed }) =>
      `Job ${jobId} is ${state} and cannot be ${action}; it must be ${allowed}`,
    fix: 'Wait for an allowed state (WatchJob reports it), or leave the job as it is.',
    precondition: ({ jobId }) => ({ type: 'JOB_STATE', subject: `jobs/${jobId}` }),
  }),
  JOB_CHANGED: entry<{ jobId: string; etag: string; presentEtag: string }>({
    status: Status.ABORTED,
    text: ({ jobId, etag, presentEtag }) =>
      `Job ${jobId} has changed since it had etag ${etag}; now it has ${presentEtag}`,
    fix: 'Read the job again, and if the change is still wanted, send it with the new etag, or without one.',
  }),
  DATASET_NOT_READY: entry<{ datasetId: string; state: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ datasetId, state }) => `Data set ${datasetId} is ${state}, not READY`,
    fix: 'Wait until GetDataset shows READY; when it shows FAILED, its failure says why.',
    precondition: ({ datasetId }) => ({ type: 'DATASET_STATE', subject: `datasets/${datasetId}` }),
  }),
  MODEL_NOT_READY: entry<{ jobId: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ jobId }) => `Job ${jobId} has neither an artifact nor a checkpoint yet`,
    fix: 'Wait for its first checkpoint event.',
    precondition: ({ jobId }) => ({ type: 'JOB_CHECKPOINT', subject: `jobs/${jobId}` }),
  }),
  MODEL_UNUSABLE: entry<{ model: string; cause: string; message: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ model, message }) => `${model} cannot be used: ${message}`,
    fix: 'The metadata `cause` has one of the reasons in the list of failures below.',
    precondition: ({ model, cause }) => ({ type: cause, subject: model }),
  }),
  SEQUENCE_BEYOND_END: entry<{
    jobId: string;
    afterSequence: number;
    oldestSequence: number;
    newestSequence: number;
  }>({
    status: Status.OUT_OF_RANGE,
    text: ({ jobId, afterSequence, oldestSequence, newestSequence }) =>
      `after_sequence ${afterSequence} is no event of job ${jobId}, whose events are ${oldestSequence} to ${newestSequence}: it belongs to another job, or the store was restored`,
    fix: 'Watch again with after_sequence 0, or with the number of an event of this job.',
  }),
  STORE_CHANGED: entry<{ storeId: string }>({
    status: Status.FAILED_PRECONDITION,
    text: () =>
      'The position to watch from belongs to another store: this one was restored from a backup, or its database failed over',
    fix: 'Watch again from the beginning, without after_sequence or cursor: in this store the same numbers may belong to other events.',
    precondition: ({ storeId }) => ({ type: 'STORE', subject: storeId }),
  }),
  OFFSET_BEYOND_END: entry<{ fileName: string; offsetBytes: number; sizeBytes: number }>({
    status: Status.OUT_OF_RANGE,
    text: ({ fileName, offsetBytes, sizeBytes }) =>
      `offset_bytes ${offsetBytes} is beyond the end of ${fileName}, which has ${sizeBytes} bytes`,
    fix: 'Ask for an offset from 0 to size_bytes.',
  }),
  ARTIFACT_DAMAGED: entry<{ jobId: string; artifactId: string; fileName: string; expectedSha256: string }>({
    status: Status.DATA_LOSS,
    text: ({ jobId, artifactId, fileName }) =>
      `${fileName} of artifact ${artifactId} of job ${jobId} is missing or altered on the server's disk`,
    fix: 'Restore the file from a backup, or train again; other artifacts are not affected.',
  }),
  STORED_FILES_DAMAGED: entry<{ name: string }>({
    status: Status.DATA_LOSS,
    text: ({ name }) => `Files that the server keeps of ${name} are missing or altered`,
    fix: '`relora scrub` says which files. Restore them from a backup, or make what they belong to once more.',
  }),
  UPLOAD_OFFSET_WRONG: entry<{ fileIndex: number; offsetBytes: number; receivedBytes: number }>({
    status: Status.OUT_OF_RANGE,
    text: ({ fileIndex, offsetBytes, receivedBytes }) =>
      `The chunk of file ${fileIndex} begins at ${offsetBytes}, but the server has ${receivedBytes} bytes of it`,
    fix: 'Open the upload again with the same header and send from received_bytes on (GetDataset or GetWeights shows it).',
  }),
  UPLOAD_TOO_LONG: entry<{ fileIndex: number; sizeBytes: number }>({
    status: Status.INVALID_ARGUMENT,
    text: ({ fileIndex, sizeBytes }) =>
      `File ${fileIndex} was announced with ${sizeBytes} bytes, and more came`,
    fix: 'Send the actual size of the file as size_bytes.',
    fields: ({ fileIndex, sizeBytes }) => [
      {
        field: `header.files[${fileIndex}].size_bytes`,
        expected: 'the size of the file',
        got: String(sizeBytes),
      },
    ],
  }),
  UPLOAD_INCOMPLETE: entry<{ name: string; missing: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ name, missing }) => `The upload of ${name} ended early: ${missing}`,
    fix: 'Open the upload again with the same header and send the missing bytes.',
    precondition: ({ name }) => ({ type: 'UPLOAD', subject: name }),
  }),
  UPLOAD_HASH_WRONG: entry<{
    fileIndex: number;
    fileName: string;
    expectedSha256: string;
    actualSha256: string;
  }>({
    status: Status.INVALID_ARGUMENT,
    text: ({ fileName, expectedSha256, actualSha256 }) =>
      `${fileName} arrived with SHA-256 ${actualSha256} instead of ${expectedSha256} and was dropped`,
    fix: 'Send the file again from its beginning; if it fails again, the file changed after it was hashed.',
    fields: ({ fileIndex, expectedSha256, actualSha256 }) => [
      {
        field: `header.files[${fileIndex}].sha256`,
        expected: `the SHA-256 of the bytes that came, ${actualSha256}`,
        got: expectedSha256,
      },
    ],
  }),
  UPLOAD_BUSY: entry<{ name: string }>({
    status: Status.ABORTED,
    text: ({ name }) => `Another call is uploading ${name}`,
    fix: 'Wait until the other call has ended; if its connection broke, the server notices within a minute and a half.',
    retrySeconds: 5,
  }),
  JOB_TOO_LARGE: entry<{ peakMemoryBytes: number; memoryBytesMax: number; fits: string; memory: string }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ peakMemoryBytes, memoryBytesMax, fits, memory }) =>
      `The job would need ${gibibytes(peakMemoryBytes)} of ${memory} at its peak; a job may have ${gibibytes(memoryBytesMax)} here; ${fits}`,
    fix: 'Make one of the changes that the message names, or take a smaller model or shorter sequences; or raise RELORA_JOB_MEMORY_BYTES_MAX if the machine has the memory.',
  }),
  DISK_FULL: entry<{ freeBytesMin: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ freeBytesMin }) =>
      `The disk of the server is full, or below its floor of ${freeBytesMin} free bytes`,
    fix: 'Free some space on the disk of the data folder; nothing that was acknowledged is lost.',
    retrySeconds: 60,
  }),
  FOLDER_UNWRITABLE: entry<{ message: string }>({
    status: Status.FAILED_PRECONDITION,
    text: ({ message }) => message,
    fix: 'Allow the user of the server to write there, or mount the disk for writing, then try again. Nothing that was acknowledged is lost.',
  }),
  DISK_BROKEN: entry<Record<never, never>>({
    status: Status.UNAVAILABLE,
    text: () => 'The disk of the server cannot be read or written',
    fix: 'Try again; nothing that was acknowledged is lost. If it lasts, check the disk: its errors are in the logs of the server and of the machine. If it has none, the store of the server may be damaged: restore it from a backup.',
    retrySeconds: 5,
  }),
  STORE_AWAY: entry<Record<never, never>>({
    status: Status.UNAVAILABLE,
    text: () => 'The database of the server cannot be reached',
    fix: 'Try again; nothing that was acknowledged is lost. If it lasts, check the database.',
    retrySeconds: 5,
  }),
  QUEUE_FULL: entry<{ jobsMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ jobsMax }) => `All ${jobsMax} places in the queue are taken`,
    fix: 'Wait until jobs end, cancel some, or raise RELORA_QUEUE_JOBS_MAX.',
    retrySeconds: 30,
  }),
  QUOTA_EXCEEDED: entry<{
    quota: 'queued_jobs' | 'bytes';
    tenant: string;
    max: number;
    used: number;
    /** Bytes in addition to those used. */
    asked?: number;
  }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ quota, tenant, max, used, asked = 0 }) =>
      `Tenant ${tenant} may have ${max} ${quota} and has ${used}${asked > 0 ? `; this needs ${asked} more` : ''}`,
    fix: 'Wait until jobs start, cancel or delete some, or ask an operator for more; `relora quota` shows what is used.',
    retrySeconds: 60,
  }),
  WATCHERS_FULL: entry<{ watchersMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ watchersMax }) => `All ${watchersMax} watches that the server allows are open`,
    fix: 'Close watches that are not needed, or raise RELORA_WATCHERS_MAX.',
    retrySeconds: 5,
  }),
  DOWNLOADS_FULL: entry<{ downloadsMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ downloadsMax }) => `All ${downloadsMax} downloads that the server allows are open`,
    fix: 'Wait until other downloads end, close those that nobody reads, or raise RELORA_DOWNLOADS_MAX.',
    retrySeconds: 5,
  }),
  UPLOADS_FULL: entry<{ uploadsMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ uploadsMax }) => `All ${uploadsMax} uploads that the server allows are open`,
    fix: 'Wait until other uploads end, or raise RELORA_UPLOADS_MAX.',
    retrySeconds: 5,
  }),
  FILES_FULL: entry<Record<never, never>>({
    status: Status.RESOURCE_EXHAUSTED,
    text: () => 'The server has as many files and connections open as the system allows',
    fix: "Wait, or raise the server process's limit of open files (ulimit -n).",
    retrySeconds: 5,
  }),
  CONNECTIONS_FULL: entry<{ connectionsMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ connectionsMax }) =>
      `All ${connectionsMax} connections that the server allows have calls under way`,
    fix: 'Share one client between calls, or raise RELORA_CONNECTIONS_MAX.',
    retrySeconds: 5,
  }),
  TASKS_FULL: entry<Record<never, never>>({
    status: Status.RESOURCE_EXHAUSTED,
    text: () => 'Too many tasks (texts, previews, data sets) wait for a process',
    fix: 'Try again later, or raise RELORA_TASKS_MAX.',
    retrySeconds: 5,
  }),
  METADATA_TOO_LARGE: entry<{ metadataBytes: number; metadataBytesMax: number }>({
    status: Status.RESOURCE_EXHAUSTED,
    text: ({ metadataBytes, metadataBytesMax }) =>
      `The call has ${metadataBytes} bytes of metadata; ${metadataBytesMax} are allowed`,
    fix: 'Send less metadata; RELORA_METADATA_BYTES_MAX is the limit.',
  }),
  DEVICE_UNAVAILABLE: entry<{ device: string; available: string; problem: string }>({
    status: Status.UNIMPLEMENTED,
    text: ({ device, available, problem }) =>
      `This server cannot run jobs on ${device}; it has ${available}${problem === '' ? '' : `. ${problem}`}`,
    fix: 'Leave spec.device unset, or name a backend that GetServerInfo lists.',
  }),
  TASK_CRASHED: entry<{ message: string }>({
    status: Status.UNAVAILABLE,
    text: ({ message }) => message,
    fix: 'Try again; if it happens again, look into the log of the server, which has what the process printed.',
    retrySeconds: 5,
  }),
  DEADLINE_EXCEEDED: entry<{ seconds: number }>({
    status: Status.DEADLINE_EXCEEDED,
    text: ({ seconds }) => `The call did not finish within ${seconds} s`,
    fix: 'What the call changes may still happen: read the resource, or repeat the call with the same request_id.',
  }),
  DEADLINE_PASSED: entry<Record<never, never>>({
    status: Status.DEADLINE_EXCEEDED,
    text: () => 'The deadline that the client set has passed',
    fix: 'What the call changes may still happen: read the resource, or repeat the call with the same request_id.',
  }),
  CLIENT_SILENT: entry<{ seconds: number }>({
    status: Status.DEADLINE_EXCEEDED,
    text: ({ seconds }) => `No message came from the client for ${seconds} s`,
    fix: 'Send the request whole, and the chunks of an upload without long pauses; RELORA_REQUEST_SILENCE_SECONDS is the limit. The bytes of an upload that were received are kept.',
  }),
  CLIENT_NOT_READING: entry<{ seconds: number }>({
    status: Status.ABORTED,
    text: ({ seconds }) => `The client read nothing of the answer for ${seconds} s`,
    fix: 'Only metrics show it, since the stream is cut off. Read what you ask for, and resume where you stopped; RELORA_READER_SILENCE_SECONDS is the limit.',
  }),
  CALL_CANCELLED: entry<Record<never, never>>({
    status: Status.CANCELLED,
    text: () => 'The call was cancelled',
    fix: 'Only logs and metrics show it, since the client is gone. What was stored stays stored.',
  }),
  SERVER_STOPPING: entry<Record<never, never>>({
    status: Status.UNAVAILABLE,
    text: () => 'The server is stopping; jobs are kept and resume when it runs again',
    fix: 'Retry the call with back-off; continue a watch after the last sequence number that arrived.',
    retrySeconds: 1,
  }),
  INTERNAL_ERROR: entry<{ errorId: string }>({
    status: Status.INTERNAL,
    text: ({ errorId }) => `An error inside the server; its log has the details under the id ${errorId}`,
    fix: 'Report it, with the id in the message.',
  }),
};

type Catalog = typeof serviceErrors;

/** Reason of ErrorInfo. */
export type ErrorReason = keyof Catalog;
export type ErrorDetail<R extends ErrorReason> = Parameters<Catalog[R]['text']>[0];

/** An error of the catalog. Its details travel in `grpc-status-details-bin`, see grpc/statusDetails.ts. */
export class ServiceError<R extends ErrorReason = ErrorReason> extends Error {
  override name = 'ServiceError';
  /** gRPC status. */
  readonly code: Status;

  /** With resource names as the caller's tenant sees them. */
  readonly detail: ErrorDetail<R>;

  constructor(
    readonly reason: R,
    detail: ErrorDetail<R>,
  ) {
    const { status, text } = serviceErrors[reason] as Entry<ErrorDetail<R>>;
    const shown = withNames(detail);
    super(text(shown));
    this.detail = shown;
    this.code = status;
  }

  /** The row of the catalog for this error's detail. */
  get entry(): Entry<ErrorDetail<R>> {
    return serviceErrors[this.reason] as Entry<ErrorDetail<R>>;
  }
}

/** Removes the tenant from ids: in the store they begin with it, but only the server needs it. */
function withNames<Detail extends object>(detail: Detail): Detail {
  const shown = Object.entries(detail).map(([key, value]): [string, unknown] => {
    if (typeof value !== 'string') return [key, value];
    if (key === 'jobId' || key === 'datasetId' || key === 'weightsId') return [key, nameOf(value)];
    return [key, resourcePattern.test(value) ? withName(value) : value];
  });
  return Object.fromEntries(shown) as Detail;
}

const resourcePattern = /^(jobs|datasets|weights)\/[a-z0-9-]+\.[a-z0-9-]+(\/|$)/;

/** Reasons of JobFailure and Dataset.failure that come from the engine. Those of the server are in jobs/jobFailures.ts. */
export const engineFailures = {
  TRAINING_DIVERGED:
    'Loss or gradients were not finite more often than nonfinite_step_count_max allows. Lower the learning rate, or check the data.',
  EXPORT_IMPOSSIBLE: 'The layout cannot describe this model. The message says why.',
  EXPORT_DIFFERS:
    'The files of an export, read back, give results that differ from those of the run by more than the limit for their type (RELORA_EXPORT_DIFFERENCE_*_MAX), or they describe another model. The message has the figures.',
  MERGE_NOT_FINITE:
    'A merge would have written weights that are not finite. Lower the learning rate or alpha.',
  MERGE_DRIFT:
    'A merge changed what the model computes by more than rounding explains; the message names the layer. Fork the job from its last checkpoint with a lower learning rate or alpha.',
  MOMENTS_NOT_ZERO:
    'A restart did not set the moments of the adapters to zero as it should. Fork the job from its last checkpoint; if it happens again, test the memory of the machine.',
  BASE_WEIGHTS_CHANGED:
    'The base weights have changed since they were registered, or since the job first began; the message names the file. Upload them again, or restore the file.',
  RUN_MISMATCH: 'The job asks for something that its data set, base weights or checkpoint do not have.',
  SAFETENSORS_INVALID: 'A safetensors file is malformed, or its tensors do not fit the model.',
  MODEL_FOLDER_INVALID: 'A model folder has no usable config.json, tokenizer or weights.',
  CHECKPOINT_UNKNOWN_FORMAT: 'A later version wrote the checkpoint. Use that version.',
  CHECKPOINT_NO_SPACE: 'The disk has no space for a checkpoint. Jobs are then paused and lose nothing.',
  COMPRESSION_INVALID:
    'A compressed file cannot be decompressed, or gives more than RELORA_DATASET_BYTES_MAX.',
  CHAT_INVALID:
    'A row is not a chat that the template can render. The message names the row and the problem.',
  CHAT_TEMPLATE_INVALID: 'The chat template is not valid Jinja.',
  CSV_INVALID:
    'The CSV is malformed, or a row has a different number of columns than the first. The message has the number of the row.',
  DATASET_CORRUPT: 'The prepared tokens on the disk are not what was written. Upload the data set again.',
  DATASET_EMPTY: 'The training part has no text.',
  DATASET_TOO_SHORT: 'A part has fewer tokens than one sequence.',
  DATASET_FORMAT_UNKNOWN: 'Another version prepared the data set. Upload it again.',
  DEVICE_NOT_FOUND: 'The requested card does not exist, or this process may not use it.',
  DEVICE_LIBRARY_MISSING:
    'A library from NVIDIA is not installed, or too old. The message names it and what to install.',
  DEVICE_DRIVER_TOO_OLD: 'The NVIDIA driver is older than CUDA 12 needs. Install 525 or newer.',
  DEVICE_TOO_OLD:
    'The card is older than Ampere (compute capability 8.0), or than Ada (8.9) with FP8_BASE. Train on the CPU, or in BFLOAT16.',
  DEVICE_PRECISION_UNKNOWN:
    'The device does not support this precision. The message names those that it supports.',
  DEVICE_OUT_OF_MEMORY:
    'The card ran out of memory. Use smaller micro-batches, recomputation or moments in eight bits.',
  DEVICE_LOST:
    'The card stopped, was reset or fell off the bus. The job is tried again from its checkpoint; it fails after RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX attempts without progress.',
  MPI_MISSING:
    'A trainer should join other processes by MPI, but no mpirun started it, or the MPI library cannot be loaded. The message says which.',
  RANK_LOST:
    'One process of a job with several ended, its weights differed from those of the others, or NCCL could not add over its cards. All processes are ended, and the job is tried again from its checkpoint; it fails after RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX attempts without progress.',
  DOCUMENT_TOO_LONG: 'A single document is longer than can be tokenized. Split it.',
  FIELD_MISSING: 'A line or row lacks the text field. The message names the row.',
  FILE_CHANGED: 'A file on the server changed while it was read.',
  FILE_NOT_REGULAR: 'A path is a folder, a device or a pipe.',
  FILE_UNREADABLE: 'A file cannot be read.',
  FORMAT_UNKNOWN: 'A file has none of the known formats. Name its format, or convert it.',
  JSON_INVALID: 'A JSON list is malformed. The message has the number of the element.',
  JSONL_LINE_INVALID: 'A line is not a JSON object. The message has the number of the line.',
  LINE_TOO_LONG: 'A line is longer than can be read. The message has the number of the line.',
  OPTIONS_INVALID: 'Options that were given for reading data contradict each other or the data.',
  PARQUET_INVALID: 'A Parquet file is truncated or malformed, or its column holds no text.',
  PARQUET_TOO_LARGE: 'A Parquet file would take more memory than there is when it is decompressed.',
  ROWS_INVALID:
    'More rows are invalid than skip_invalid_count or skip_invalid_share allows. The message has the first of them.',
  TEXT_LOST:
    'The tokenizer does not know, or drops, most of the text: more than half of all characters, or documents of which it knows less than 1 % and which have more than 1 % of all characters. Use a tokenizer for that language, or check its vocabulary.',
  TOKENIZER_INVALID: 'A tokenizer.json is malformed or cannot be used.',
  TOKENIZER_TIMED_OUT:
    'A tokenizer.json took more processor time than RELORA_TOKENIZER_CPU_SECONDS for a line of text. Sending the same request again tries it again.',
  UTF8_INVALID: 'A file is not UTF-8. The message has the position of the invalid byte.',
  VOCABULARY_TOO_LARGE:
    'The text is too small or too uniform to train a vocabulary of that size. Ask for a smaller one.',
} as const;

/** Reasons of warnings in a job's journal that come from the engine. */
export const engineWarnings = {
  GRAPHS_SLOWER_THAN_PLANNED:
    'The graphs that were planned for the adapted layers turned out slower than separate paths when they were timed; they are kept, since the bits depend on them.',
  RESUMED_ON_OTHER_BACKEND:
    'The run resumed on another backend or instruction set than it began on, so it no longer has the same bits as an uninterrupted run.',
  RESUMED_WITH_OTHER_REPLICAS:
    'The run resumed with a different number of processes, so sums are made in another order from there on and the bits differ.',
  TOKENIZER_DIFFERS:
    'The data set was prepared with another tokenizer than that of the base weights, so the model does not know what its token ids mean.',
  END_OF_TEXT_DIFFERS:
    'The data set ends texts with another token than the base weights; exports name the token of the data set.',
  HEAD_NOT_TIED:
    'config.json says that the head is tied to the embedding, but the weights contain a different head: the model is loaded untied, with that head.',
  TEXT_UNKNOWN:
    'The tokenizer does not know, or drops, 1 % or more of the characters of the text, so nothing is learned about them. The data set has the same warning when it is prepared.',
  SEQUENCES_IDLE:
    'Some sequences contain nothing to learn, since prompts are longer than a sequence. Use a longer sequence_length or shorter prompts.',
} as const;

/** Reasons of warnings of a data set, besides TEXT_UNKNOWN. */
export const datasetWarnings = {
  ROWS_SKIPPED:
    'Invalid rows were left out, as the request allows. The message says how many, and has the first.',
  PROMPTS_LONG:
    'Prompts are so long that some sequences of usual lengths contain nothing to learn. The message has the figures.',
} as const;

/** TEXT_UNKNOWN is also one of a job. */
export type DatasetWarning = keyof typeof datasetWarnings | keyof Pick<typeof engineWarnings, 'TEXT_UNKNOWN'>;

/** Reasons of warnings about a specification: what is allowed but probably not intended. */
export const specWarnings = {
  OPTIMIZER_COSTLY:
    'An update by MUON or LORA_MUON is estimated to take at least as long as the rest of the step.',
  RANK_ABOVE_BREAK_EVEN:
    'The rank is so high that a layer with an adapter needs more arithmetic than training the layer in full.',
  RESTARTS_FEW: 'There are fewer than three restarts, so the rank of the whole change stays low.',
  WARM_START_MISSING: 'ReLoRA from new weights without a warm start learns far worse.',
  CYCLE_SHORT: 'More than a third of every cycle is spent on raising the learning rate again.',
  LAST_CYCLE_SHORT: 'The last cycle is shorter than the others.',
  DATA_REPEATED: 'The run reads its training data more than once.',
  HELD_OUT_EMPTY: 'The data set has no held-out part, so the model is never evaluated.',
  RECOMPUTATION_NEEDED:
    'Recomputation AUTO became BLOCKS, since without it the job would need more memory than it may have.',
  MEMORY_ABOVE_LIMIT:
    'Only from EstimateJob: the job needs more memory than it may have, so CreateJob would refuse it.',
  TASKS_TOO_LARGE:
    'The job trains on a card, but exporting, generating and evaluating its model run on the processors, and need more memory than a job may have there.',
  MEMORY_SCARCE:
    'The machine has enough memory, but other programs use so much of it that the job will not have what it needs.',
} as const;

export type SpecWarning = keyof typeof specWarnings;

/** Reasons of warnings about a comparison: why its numbers cannot be compared as they are. */
export const comparisonWarnings = {
  DATA_DIFFER:
    'The jobs have different data, or it is divided differently, so their losses are of different texts.',
  TOKENIZERS_DIFFER:
    'The jobs have different tokenizers, so their losses per token cannot be compared; compare bits per byte.',
  MODELS_DIFFER: 'The jobs train different models, or start from different weights.',
  SEEDS_DIFFER:
    'The jobs have different seeds, and not the same set of seeds for each setting, so initial weights and the order of data differ.',
  SEQUENCES_DIFFER:
    'The jobs have different sequence lengths, so tokens are predicted from different contexts.',
  BATCHES_DIFFER: 'The jobs have different numbers of tokens per step: compare them by tokens, not by steps.',
  RATES_UNTUNED:
    'Jobs of different kinds have different learning rates, and at least one of them is only the default of its kind: compare each kind at its own best rate.',
  TOKENS_DIFFER: 'The jobs are set to train on different numbers of tokens.',
  HELD_OUT_TOKENS_DIFFER: 'The last evaluations were made on different numbers of held-out tokens.',
  ARITHMETIC_DIFFERS:
    'The jobs ran on different backends, instruction sets or precisions, so times, and the last digits of losses, are not comparable.',
  JOBS_UNFINISHED:
    'Some jobs have not succeeded, or not yet, so their last losses are not those of complete runs.',
  SECONDS_INCOMPLETE:
    'Some jobs begin at a checkpoint of another job; the time and the events before it are not in their series.',
} as const;

export type ComparisonWarning = keyof typeof comparisonWarnings;

/** Quotes text from outside, so that nothing in it can end a line or change a terminal's color. */
export function quote(text: string): string {
  const short = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return JSON.stringify(short).replace(
    /[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

/** Lists the problems, and how many more there are: a message must fit into the trailer size that clients accept. */
function listProblems(problems: readonly FieldProblem[]): string {
  const shown: string[] = [];
  let length = 0;
  for (const problem of problems) {
    const text = cutText(describeProblem(problem), problemLengthMax);
    length += encodedLength(text) + 3;
    if (length > problemsLengthMax && shown.length > 0) break;
    shown.push(text);
  }
  const more = problems.length - shown.length;
  const least = problems.length < fieldProblemsMax ? '' : 'at least ';
  return `${shown.join('; ')}${more > 0 ? `; and ${least}${more} more` : ''}`;
}

function encodedLength(text: string): number {
  return encodeURI(text.replace(/\p{Surrogate}/gu, '\ufffd')).length;
}

/** The beginning of a text that is too long, with a mark where it is cut. `measure` must grow with the text. */
export function cutText(
  text: string,
  max: number,
  measure: (part: string) => number = (part) => part.length,
): string {
  if (text.length <= max / 12 || measure(text) <= max) return text;
  // Only whole characters: half a surrogate pair is not text.
  const characters = [...text.slice(0, max)];
  let [fits, tooMany] = [0, characters.length + 1];
  while (tooMany - fits > 1) {
    const middle = (fits + tooMany) >> 1;
    if (measure(`${characters.slice(0, middle).join('')}…`) <= max) fits = middle;
    else tooMany = middle;
  }
  return `${characters.slice(0, fits).join('')}…`;
}

/** `named`: whether to include the path of the field. */
export function describeProblem({ field, expected, got }: FieldProblem, { named } = { named: true }): string {
  return `${named ? `${field}: ` : ''}expected ${expected}${got === '' ? '' : `, got ${got}`}`;
}

/** For people: 1.50 GiB. */
export function gibibytes(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(2)} GiB`;
}
