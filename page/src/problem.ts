import { messageOf } from './api.js';
import { el, setText } from './element.js';

/** A line that says why something failed; hidden if nothing did. */
export class Problem {
  readonly element = el('p', { class: 'problem', role: 'alert', hidden: true });

  /** Does something and shows its error, unless the view has ended by then. */
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
