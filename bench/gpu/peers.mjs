import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Child } from '../sides/child.mjs';

const script = fileURLToPath(new URL('peer.py', import.meta.url));

/** { command, version } of a Python whose torch finds a card; if there is none, `command` is null and `reason` says why. */
export async function findPeer(command) {
  try {
    const asked = 'import torch; assert torch.cuda.is_available(), "no card"; print(torch.__version__)';
    const { stdout } = await promisify(execFile)(command, ['-c', asked], { timeout: 60_000 });
    return { command, version: stdout.trim() };
  } catch (error) {
    const said = String(error.stderr ?? error.message)
      .trim()
      .split('\n')
      .at(-1);
    return { command: null, version: null, reason: `no PyTorch with a card by ${command}: ${said}` };
  }
}

/** PyTorch's side of a comparison, with the interface of Ours. */
export class Peer {
  #child;
  #side;
  #text;
  #step = 0;
  peakBytes = 0;

  static async open({ command }, text, side, kind) {
    const child = await Child.start(command, [script]);
    try {
      const { config, rank, batch, time } = side;
      await child.ask({ open: { config, kind, rank, batch, time, pad: true } });
      return new Peer(child, text, side);
    } catch (error) {
      await child.close();
      throw error;
    }
  }

  constructor(child, text, side) {
    this.#child = child;
    this.#text = text;
    this.#side = side;
  }

  async steps(count) {
    const { batch, time } = this.#side;
    const { inputs, targets } = this.#text.batchOf(this.#step++, batch, time);
    const answer = await this.#child.ask({
      steps: { count, inputs: Array.from(inputs), targets: Array.from(targets) },
    });
    this.peakBytes = answer.peakBytes;
    return answer;
  }

  async close() {
    await this.#child.close();
  }
}
