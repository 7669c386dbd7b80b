import type { JobEvent } from '@relora/sdk';
import { evaluationText } from './evaluationText.js';
import { figure, quantity, word } from './format.js';
import { advance, newProgress, type JobProgress } from './jobProgress.js';
import { planText } from './planText.js';
import { palette, renderFrame } from './renderFrame.js';
import { printable } from './screenText.js';

/** Where a view writes; process.stdout fits. */
export interface ViewStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
  write(text: string): unknown;
  on?(event: 'resize', listener: () => void): unknown;
  off?(event: 'resize', listener: () => void): unknown;
}

const frameMs = 160;
const plainEveryMs = 5000;
const hideCursor = '\u001b[?25l';
const showCursor = '\u001b[?25h';
const clearScreen = '\u001b[H\u001b[2J';

/**
 * Shows a job while it trains: on a terminal a picture that is redrawn in place, elsewhere plain lines. `close` leaves the last picture and
 * restores the cursor; so does the end of the process, however it ends.
 */
export class LiveView {
  readonly progress: JobProgress;
  private readonly isTerminal: boolean;
  private readonly paint;
  private drawnLines = 0;
  private timer: NodeJS.Timeout | undefined;
  private plainAt = 0;
  private isClosed = false;
  private readonly onExit = () => this.stream.write(showCursor);
  // The terminal may have wrapped the drawn lines differently, so the position of the first one is unknown.
  private readonly onResize = () => {
    this.stream.write(clearScreen);
    this.drawnLines = 0;
    this.draw();
  };

  constructor(
    private readonly stream: ViewStream,
    options: { title: string; stepCount: number; isColored?: boolean },
  ) {
    this.progress = newProgress(options.title, options.stepCount);
    this.isTerminal = stream.isTTY === true;
    this.paint = palette(options.isColored ?? (this.isTerminal && !process.env.NO_COLOR));
    if (!this.isTerminal) return;
    stream.write(hideCursor);
    process.once('exit', this.onExit);
    stream.on?.('resize', this.onResize);
  }

  /** Takes an event; draws at most six times per second. */
  update(event: JobEvent): void {
    advance(this.progress, event);
    if (!this.isTerminal) return this.printPlain(event);
    this.timer ??= setTimeout(() => this.draw(), frameMs);
  }

  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    if (!this.isTerminal) return;
    this.draw();
    this.stream.write(showCursor);
    process.off('exit', this.onExit);
    this.stream.off?.('resize', this.onResize);
  }

  private draw(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    const size = { width: (this.stream.columns ?? 80) - 1, height: this.stream.rows ?? 24 };
    const lines = renderFrame(this.progress, size, this.paint);
    // Writes the whole picture at once: goes back to its first line, and clears each line to its end and everything below.
    const up = this.drawnLines > 0 ? `\u001b[${this.drawnLines}A` : '';
    this.stream.write(`${up}\r${lines.map((line) => `${line}\u001b[K\n`).join('')}\u001b[J`);
    this.drawnLines = lines.length;
  }

  private printPlain(event: JobEvent): void {
    const line = this.plainLine(event);
    if (line !== null) this.stream.write(`${printable(line)}\n`);
  }

  private plainLine(event: JobEvent): string | null {
    const { progress } = this;
    switch (event.kind) {
      case 'state':
        return `${progress.title}: ${event.state.to.replace('JOB_STATE_', '').toLowerCase()}${progress.reason ? ` (${progress.reason})` : ''}`;
      case 'step': {
        const now = Date.now();
        if (now - this.plainAt < plainEveryMs && progress.step !== progress.stepCount) return null;
        this.plainAt = now;
        const { loss, learningRate, gradientNorm, omitted } = event.step;
        if (omitted) return `step ${progress.step}: omitted`;
        return `step ${progress.step}${progress.stepCount > 0 ? `/${progress.stepCount}` : ''}  loss ${loss.toFixed(3)}  rate ${learningRate.toExponential(2)}  gradient norm ${figure(gradientNorm)}  ${quantity(progress.tokensPerSecond)} tokens/s`;
      }
      case 'evaluation':
        return `held-out after ${event.evaluation.step} steps: loss ${event.evaluation.loss.toFixed(3)}, ${event.evaluation.bitsPerByte.toFixed(3)} bits/byte`;
      case 'namedEvaluation':
        return `${event.namedEvaluation.name} after ${event.namedEvaluation.step} steps: ${evaluationText(event.namedEvaluation)}`;
      case 'restart': {
        const { restart, step, deltaNorm, effectiveRank, logitChangeMax } = event.restart;
        return `merge ${restart} before step ${step}: norm of change ${figure(deltaNorm)}, effective rank ${effectiveRank.toFixed(1)}, largest logit change ${logitChangeMax.toExponential(1)}`;
      }
      case 'plan':
        return planText(event.plan);
      case 'update': {
        const { step, learningRateFactor, stepCount, learningRateBefore, learningRateAfter } = event.update;
        return `changed from step ${step} on: ${stepCount} steps, rate ${figure(learningRateFactor)}x, at this step ${learningRateBefore.toExponential(2)} -> ${learningRateAfter.toExponential(2)}`;
      }
      case 'documents': {
        const { isSpike, step, worst } = event.documents;
        if (!isSpike) return null;
        const most = worst[0] ? `, most by a document of loss ${worst[0].loss.toFixed(3)}` : '';
        return `the loss jumped at step ${step}${most}: relora explain JOB --step ${step}`;
      }
      case 'stop': {
        const { step, reason, value, limit } = event.stop;
        const figures = limit === 0 ? '' : `: ${figure(value)} of ${figure(limit)}`;
        return `ends early after step ${step} by ${word(reason, 'STOP_REASON_')}${figures}`;
      }
      case 'checkpoint': {
        const { step, best } = event.checkpoint;
        return `checkpoint at step ${step}${best?.step === step ? `, the best so far (held-out loss ${best.loss.toFixed(3)})` : ''}`;
      }
      case 'artifact':
        return `artifact ${event.artifact.artifact}`;
      case 'sample':
        return `sample after ${event.sample.step} steps: ${event.sample.prompt}${event.sample.text}`;
      case 'warning':
        return `warning ${progress.warning}`;
      case 'storeChanged':
        return `${event.storeChanged.message}: the job is shown again as this store has it`;
    }
  }
}
