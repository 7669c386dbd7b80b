import type { Precision } from '@relora/engine/plan';
import type { Logger } from 'pino';
import type { Config } from '../config.js';

/** A task that ended badly: `reason` is in UPPER_SNAKE_CASE, from the engine or TASK_TIMED_OUT, TASK_CRASHED, TASKS_BUSY. */
export class TaskFailed extends Error {
  override name = 'TaskFailed';
  constructor(
    readonly reason: string,
    message: string,
  ) {
    super(message);
  }
}

/** Something jobs can run on, as measured in a child. */
export interface DeviceDescription {
  backend: string;
  isDefault: boolean;
  model: string;
  instructionSet: string;
  threadCount: number;
  memoryBytes: number;
  /** Floating point operations per second; 0 where it cannot be measured. */
  float32Flops: number;
  bfloat16Flops: number;
  autoPrecision: Exclude<Precision, 'auto'>;
}

export interface GenerateOptions {
  /** Folder of a model in Hugging Face layout, or of a checkpoint. */
  source: { kind: 'artifact' | 'checkpoint'; folder: string };
  prompt: string;
  tokenCountMax: number;
  temperature: number;
  /** 0 for all. */
  topK: number;
  topP: number;
  seed: number;
}

export interface GeneratedPiece {
  /** Whole characters. */
  text: string;
  tokenCount: number;
  finishReason: 'endOfText' | 'tokenCount' | null;
}

export interface PreviewedToken {
  id: number;
  /** Bytes that are not whole characters are written as \xNN. */
  text: string;
}

/** Runs short work that needs the engine in child processes, a few at once; a crash there is a TaskFailed here. */
export class TaskRunner {
  constructor(
    private readonly config: Config,
    private readonly log: Logger,
  ) {}

  async describeDevices(_signal?: AbortSignal): Promise<DeviceDescription[]> {
    throw new Error('not yet');
  }

  /** The last piece has a finishReason. Aborting ends the child. */
  generate(_options: GenerateOptions, _signal: AbortSignal): AsyncGenerator<GeneratedPiece> {
    throw new Error('not yet');
  }

  async previewDataset(_preparedFolder: string, _split: 'train' | 'heldOut', _tokenCount: number, _signal: AbortSignal): Promise<PreviewedToken[]> {
    throw new Error('not yet');
  }

  /** Ends every child. */
  async stop(): Promise<void> {
    throw new Error('not yet');
  }
}
