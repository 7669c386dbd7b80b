import { messageOf } from './api.js';
import { el, setText } from './element.js';

/** A line that says why something failed, and that is not seen where nothing did. */
export class Problem {
  readonly element = el('p', { class: 'problem', role: 'alert', hidden: true });

  /** Does something; what is over by then has nobody to see why it failed. */
  async of(action: () => Promise<void>, signal: AbortSignal): Promise<void> {
    try {
      await action();
      this.element.hidden = true;
    } catch (error) {
      if (signal.aborted) return;
      this.show(messageOf(error));
    }
  }

  show(text: string): void {
    this.element.hidden = false;
    setText(this.element, text);
  }
}
