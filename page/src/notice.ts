import { messageOf } from './api.js';
import { el } from './element.js';

const place = el('div', { class: 'notices', role: 'status', 'aria-live': 'polite' });
const shownMs = 8000;

export function noticePlace(): HTMLElement {
  return place;
}

/** Shows a message for a few seconds. */
export function notice(text: string, kind: 'good' | 'bad' = 'good'): void {
  const item = el('div', { class: `notice ${kind}` }, text);
  place.append(item);
  setTimeout(() => item.remove(), shownMs);
}

/** Does what a person asked for, and shows why if it fails. */
export async function attempt(action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    notice(messageOf(error), 'bad');
  }
}

/** Asks for confirmation before something that cannot be undone. */
export async function confirmed(question: string, verb: string): Promise<boolean> {
  const dialog = el(
    'dialog',
    { class: 'ask' },
    el(
      'form',
      { method: 'dialog' },
      el('p', {}, question),
      el(
        'div',
        { class: 'buttons' },
        el('button', { value: 'no' }, 'Keep'),
        el('button', { value: 'yes', class: 'danger' }, verb),
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener('close', resolve, { once: true }));
  dialog.remove();
  return dialog.returnValue === 'yes';
}
