import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

/** Lines of a child's standard error that are quoted in an error message. */
const errorLinesKept = 5;

/**
 * A process that answers one JSON line with one JSON line. It runs only while a request is pending and is stopped otherwise, so that
 * neither spinning threads nor garbage collection slow down the side whose turn it is.
 */
export class Child {
  /** Its first line. @type {Record<string, unknown>} */
  greeting;
  #process;
  #answers;
  #errorLines = [];
  #ended;

  constructor(command, args, environment = {}) {
    this.#process = spawn(command, args, { env: { ...process.env, ...environment } });
    this.#process.stdin.on('error', () => undefined); // its end becomes visible when the answer does not come
    this.#ended = new Promise((resolve) => {
      this.#process.once('error', (error) => resolve(error.message));
      this.#process.once('close', (code, signal) => resolve(`it ended with ${signal ?? code}`));
    });
    createInterface({ input: this.#process.stderr }).on('line', (line) => {
      this.#errorLines = [...this.#errorLines, line].slice(-errorLinesKept);
    });
    this.#answers = createInterface({ input: this.#process.stdout })[Symbol.asyncIterator]();
    running.add(this);
  }

  /** Starts a child and waits for its first line. */
  static async start(command, args, environment) {
    const child = new Child(command, args, environment);
    child.greeting = await child.#answer();
    return child;
  }

  /** Sends one request and returns the answer; throws the child's `error`, or the reason why it ended. */
  async ask(request) {
    this.#process.kill('SIGCONT');
    this.#process.stdin.write(`${JSON.stringify(request)}\n`);
    return await this.#answer();
  }

  async close() {
    this.#process.kill('SIGKILL'); // it has no state that needs an orderly shutdown
    await this.#ended;
    running.delete(this);
  }

  async #answer() {
    const { value, done } = await this.#answers.next();
    if (done) throw new Error([await this.#ended, ...this.#errorLines].join('; '));
    this.#process.kill('SIGSTOP');
    const answer = JSON.parse(value);
    if (answer.error !== undefined) throw new Error(answer.error);
    return answer;
  }

  /** For use at the exit of this process, which cannot wait. */
  kill() {
    this.#process.kill('SIGKILL');
  }
}

const running = new Set();
process.once('exit', () => running.forEach((child) => child.kill()));
// Without these handlers the default action would skip exit handlers and leave stopped children behind.
process.once('SIGINT', () => process.exit(130));
process.once('SIGTERM', () => process.exit(143));
