/** A served metric. docs/metrics.md is checked against these, both ways. */
export interface MetricEntry {
  name: `relora_${string}`;
  type: 'counter' | 'gauge' | 'histogram';
  help: string;
  labels: readonly string[];
  buckets?: readonly number[];
}

const cardLabels = ['uuid', 'model'];
const callSeconds = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60];
const storeSeconds = [0.0001, 0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2];
const stepSeconds = [0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300];
const saveSeconds = [0.05, 0.2, 1, 5, 20, 60, 300];
const waitSeconds = [0.1, 1, 10, 60, 600, 3600, 21_600, 86_400];

/**
 * Every metric of the server. Labels have a fixed set of values, except `job_id`: its series exist while the job runs and some minutes
 * longer, so their number is limited by the slots. (`job` would be overwritten by Prometheus with the scraped target.)
 */
export const metricTable = {
  buildInfo: gauge('relora_build_info', 'Always 1; its labels say what runs.', ['version', 'node_version']),
  startTime: gauge('relora_start_timestamp_seconds', 'When the server started, seconds since 1970.'),

  jobs: gauge('relora_jobs', 'Jobs in the store by state.', ['state']),
  queueLimit: gauge('relora_queue_jobs_max', 'Jobs that may wait; more are refused.'),
  slots: gauge('relora_slots', 'Jobs that can run at once.'),
  slotsInUse: gauge('relora_slots_in_use', 'Places for trainer processes that are taken.'),
  queueWait: histogram(
    'relora_queue_wait_seconds',
    'Time from becoming queued to being started.',
    waitSeconds,
  ),
  jobsCreated: counter('relora_jobs_created_total', 'Jobs that were created.'),
  jobsFinished: counter('relora_jobs_finished_total', 'Jobs that reached a terminal state.', ['outcome']),
  attempts: counter('relora_attempts_total', 'Executions that were started.'),
  crashes: counter('relora_trainer_crashes_total', 'Trainer processes that crashed.'),
  warnings: counter('relora_job_warnings_total', 'Warnings in the journals of jobs.'),
  events: counter('relora_journal_events_total', 'Events that were appended to journals.'),

  steps: counter('relora_steps_total', 'Steps taken by all jobs.'),
  tokens: counter('relora_tokens_total', 'Tokens trained on by all jobs.'),
  stepsSkipped: counter(
    'relora_steps_skipped_total',
    'Steps skipped because loss or gradient was not finite, or no token counted for the loss.',
  ),
  stepDuration: histogram('relora_step_seconds', 'Wall-clock time of a step.', stepSeconds),
  restarts: counter('relora_restarts_total', 'Restarts (merge and new adapters) of all jobs.'),
  restartDuration: histogram(
    'relora_restart_seconds',
    'Wall-clock time of a restart with its merge.',
    saveSeconds,
  ),
  evaluationDuration: histogram(
    'relora_evaluation_seconds',
    'Wall-clock time of an evaluation.',
    saveSeconds,
  ),
  checkpoints: counter('relora_checkpoints_total', 'Checkpoints that were saved.'),
  checkpointDuration: histogram(
    'relora_checkpoint_seconds',
    'Wall-clock time of saving a checkpoint.',
    saveSeconds,
  ),

  jobStep: gauge('relora_job_step', 'Steps that were taken, all phases together.', ['job_id']),
  jobSteps: gauge('relora_job_steps', 'Steps that the job has, all phases together.', ['job_id']),
  jobLoss: gauge('relora_job_loss', 'Training loss of the last step, nats per token.', ['job_id']),
  jobLossSmoothed: gauge(
    'relora_job_loss_smoothed',
    'Training loss, exponential mean over about fifty steps, nats per token.',
    ['job_id'],
  ),
  jobEvaluationLoss: gauge(
    'relora_job_evaluation_loss',
    'Loss on the held-out part in the last evaluation, nats per token.',
    ['job_id'],
  ),
  jobBitsPerByte: gauge(
    'relora_job_evaluation_bits_per_byte',
    'Bits per byte of text in the last evaluation.',
    ['job_id'],
  ),
  datasetEvaluationLoss: gauge(
    'relora_job_dataset_evaluation_loss',
    'Loss on the held-out part of one data set of the job in the last evaluation, nats per token.',
    ['job_id', 'dataset'],
  ),
  datasetEpochs: gauge(
    'relora_job_dataset_epochs',
    'How often the job had read the training part of a data set at the last evaluation.',
    ['job_id', 'dataset'],
  ),
  namedEvaluationLoss: gauge(
    'relora_job_named_evaluation_loss',
    'Loss in the last evaluation of that name, nats per token.',
    ['job_id', 'evaluation'],
  ),
  namedEvaluationAccuracy: gauge(
    'relora_job_named_evaluation_accuracy',
    'Share of questions that were answered correctly in the last evaluation of that name.',
    ['job_id', 'evaluation'],
  ),
  namedEvaluationNormalizedAccuracy: gauge(
    'relora_job_named_evaluation_normalized_accuracy',
    'Share of questions answered correctly if choices are ranked by log-probability per byte.',
    ['job_id', 'evaluation'],
  ),
  jobLearningRate: gauge('relora_job_learning_rate', 'Learning rate of the last step.', ['job_id']),
  jobGradientNorm: gauge('relora_job_gradient_norm', 'Global norm of the last gradient before clipping.', [
    'job_id',
  ]),
  jobTokens: gauge('relora_job_trained_tokens', 'Tokens trained on in the whole run.', ['job_id']),
  jobTokenRate: gauge(
    'relora_job_tokens_per_second',
    'Tokens per second, smoothed over about ten step events.',
    ['job_id'],
  ),
  jobRestarts: gauge('relora_job_restarts', 'Restarts made in the whole run.', ['job_id']),
  jobDeltaNorm: gauge('relora_job_merge_delta_norm', 'Frobenius norm of what the last restart merged.', [
    'job_id',
  ]),
  jobLogitChange: gauge(
    'relora_job_merge_logit_change',
    'Largest change of a logit by the last merge, which is its error.',
    ['job_id'],
  ),
  jobLogitTolerance: gauge(
    'relora_job_merge_logit_tolerance',
    'Largest change of a logit that rounding can explain; above it the job fails.',
    ['job_id'],
  ),
  jobMergeLossBefore: gauge(
    'relora_job_merge_loss_before',
    'Loss just before the last merge, on the fixed batch on which merges are measured, nats per token.',
    ['job_id'],
  ),
  jobMergeLossAfter: gauge(
    'relora_job_merge_loss_after',
    'Loss just after the last merge, on the fixed batch on which merges are measured, nats per token.',
    ['job_id'],
  ),
  jobRestartRateBefore: gauge(
    'relora_job_restart_learning_rate_before',
    'Learning rate of the step before the last restart.',
    ['job_id'],
  ),
  jobRestartRateAfter: gauge(
    'relora_job_restart_learning_rate_after',
    'Learning rate of the first step after the last restart.',
    ['job_id'],
  ),
  moduleDeltaNorm: gauge(
    'relora_job_module_merge_delta_norm',
    'Frobenius norm of what the last restart merged into one kind of layer.',
    ['job_id', 'module'],
  ),
  moduleEffectiveRank: gauge(
    'relora_job_module_effective_rank',
    'Mean effective rank of the change of one kind of layer since the adapter phase began.',
    ['job_id', 'module'],
  ),
  moduleSingularValues: gauge(
    'relora_job_module_singular_values',
    'Mean number of singular values above 1 % of the largest, of the change of one kind of layer since the adapter phase began.',
    ['job_id', 'module'],
  ),
  jobEffectiveRank: gauge(
    'relora_job_effective_rank',
    'Mean effective rank of the change of the weights since the adapter phase began.',
    ['job_id'],
  ),
  jobMomentsZeroed: gauge(
    'relora_job_moments_zeroed_ratio',
    'Share of the moments of A and B that the last restart left at zero.',
    ['job_id'],
  ),
  jobStepsSkipped: gauge(
    'relora_job_steps_skipped',
    'Steps skipped in this execution because loss or gradient was not finite, or no token counted for the loss.',
    ['job_id'],
  ),
  jobCheckpointDuration: gauge(
    'relora_job_checkpoint_seconds',
    'Wall-clock time of saving the newest checkpoint.',
    ['job_id'],
  ),
  jobCheckpointBytes: gauge('relora_job_checkpoint_bytes', 'Size of the newest checkpoint.', ['job_id']),
  jobCheckpointTime: gauge(
    'relora_job_checkpoint_timestamp_seconds',
    'When the newest checkpoint was saved, seconds since 1970.',
    ['job_id'],
  ),
  jobStepTime: gauge(
    'relora_job_step_timestamp_seconds',
    'When the last step was taken, seconds since 1970.',
    ['job_id'],
  ),
  jobAttemptTime: gauge(
    'relora_job_attempt_timestamp_seconds',
    'When this execution began, seconds since 1970.',
    ['job_id'],
  ),
  jobMemory: gauge('relora_job_resident_bytes', 'Resident memory of the trainer process.', ['job_id']),

  rpcStarted: counter('relora_rpc_started_total', 'Calls that were received.', ['service', 'method']),
  rpcHandled: counter('relora_rpc_handled_total', 'Calls that ended.', ['service', 'method', 'code']),
  rpcDuration: histogram(
    'relora_rpc_seconds',
    'Time from arrival to end of a call; of streams until they end.',
    callSeconds,
    ['service', 'method'],
  ),
  watchers: gauge('relora_watchers', 'Watches that are open.'),
  sentBytes: counter(
    'relora_artifact_sent_bytes_total',
    'Bytes of artifacts and of exported jobs sent to clients.',
  ),
  receivedBytes: counter(
    'relora_dataset_received_bytes_total',
    'Bytes of data sets and of imported jobs received from clients.',
  ),
  receivedWeightsBytes: counter(
    'relora_weights_received_bytes_total',
    'Bytes of weights received from clients.',
  ),
  generatedTokens: counter('relora_generated_tokens_total', 'Tokens generated for clients.'),

  webhookSent: counter('relora_webhook_delivered_total', 'Messages that receivers of webhooks accepted.'),
  webhookFailed: counter('relora_webhook_failures_total', 'Failed attempts to send a message of a webhook.'),
  webhookDead: counter('relora_webhook_dead_letters_total', 'Messages of webhooks that were given up.'),
  webhookDuration: histogram(
    'relora_webhook_seconds',
    'Duration of an attempt to send a message of a webhook.',
    callSeconds,
  ),
  trackerWrites: counter('relora_tracker_writes_total', 'Batches of events that trackers accepted.', [
    'tracker',
  ]),
  trackerFailures: counter(
    'relora_tracker_failures_total',
    'Failed attempts to send events to trackers; they are repeated.',
    ['tracker'],
  ),
  webhookPending: gauge(
    'relora_webhook_pending',
    'Messages of webhooks that wait to be sent, of all servers of the store.',
  ),

  storeDuration: histogram(
    'relora_store_statement_seconds',
    'Duration of a statement in the store.',
    storeSeconds,
  ),
  diskFree: gauge('relora_disk_free_bytes', 'Free space on the disk of the data folder.'),
  diskUsed: gauge(
    'relora_disk_used_bytes',
    'Space that the data folder takes, by kind of content; measured every RELORA_CLEANUP_SECONDS.',
    ['kind'],
  ),
  diskDeleted: gauge(
    'relora_disk_deleted_bytes',
    'Space taken by what is deleted and can still be undeleted.',
  ),
  purged: counter('relora_purged_total', 'What was permanently removed, by kind.', ['kind']),
  cardUtilization: gauge(
    'relora_card_utilization_ratio',
    'Share of time in which a kernel ran on the card, over a short period; absent if the card does not report it.',
    cardLabels,
  ),
  cardMemoryUsed: gauge(
    'relora_card_memory_used_bytes',
    'Memory of the card in use, by all processes.',
    cardLabels,
  ),
  cardMemory: gauge('relora_card_memory_bytes', 'Memory of the card.', cardLabels),
  cardTemperature: gauge('relora_card_temperature_celsius', 'Temperature of the chip.', cardLabels),
  cardPower: gauge('relora_card_power_watts', 'Power that the card draws.', cardLabels),
  cardThrottled: gauge(
    'relora_card_throttled',
    '1 while the card runs below its normal clock for that cause: power, thermal or hardware.',
    [...cardLabels, 'cause'],
  ),
  eventLoopLag: gauge(
    'relora_event_loop_lag_seconds',
    '99th percentile of the delay of the event loop since the last scrape.',
  ),
  serverMemory: gauge(
    'relora_server_resident_bytes',
    'Resident memory of the service process, without trainers.',
  ),
} as const satisfies Record<string, MetricEntry>;

function gauge(
  name: MetricEntry['name'],
  help: string,
  labels: readonly string[] = [],
): MetricEntry & { type: 'gauge' } {
  return { name, type: 'gauge', help, labels };
}

function counter(
  name: MetricEntry['name'],
  help: string,
  labels: readonly string[] = [],
): MetricEntry & { type: 'counter' } {
  return { name, type: 'counter', help, labels };
}

function histogram(
  name: MetricEntry['name'],
  help: string,
  buckets: readonly number[],
  labels: readonly string[] = [],
): MetricEntry & { type: 'histogram' } {
  return { name, type: 'histogram', help, labels, buckets };
}
