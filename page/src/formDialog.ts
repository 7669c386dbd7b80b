import { messageOf } from './api.js';
import { el } from './element.js';

export interface FormDialog {
  /** Id of the dialog's heading. */
  id: string;
  title: string;
  note: string;
  fields: HTMLElement[];
  verb: string;
  /** Does what was requested; if it rejects, the dialog stays open and shows why. */
  send(): Promise<void>;
}

/** A labeled field of a form. */
export function field(
  label: string,
  attributes: Record<string, string | number>,
): [HTMLElement, HTMLInputElement] {
  const input = el('input', attributes);
  return [el('label', {}, label, input), input];
}

/** Shows the dialog, and resolves when it is closed. */
export async function formDialog({ id, title, note, fields, verb, send }: FormDialog): Promise<void> {
  const problem = el('p', { class: 'problem', role: 'alert', hidden: true });
  const go = el('button', { class: 'primary', value: 'go' }, verb);
  const dialog = el(
    'dialog',
    { class: 'ask', 'aria-labelledby': id },
    el(
      'form',
      { method: 'dialog' },
      el('h2', { id }, title),
      el('p', { class: 'muted' }, note),
      ...fields,
      problem,
      el(
        'div',
        { class: 'buttons' },
        el('button', { type: 'button', click: () => dialog.close() }, 'Close'),
        go,
      ),
    ),
  );
  dialog.querySelector('form')!.addEventListener('submit', (event) => {
    if ((event as SubmitEvent).submitter !== go) return;
    event.preventDefault();
    go.disabled = true;
    send()
      .then(() => dialog.close('done'))
      .catch((error: unknown) => {
        problem.hidden = false;
        problem.textContent =
          error instanceof Error ? messageOf(error).replace(/^Error: /, '') : String(error);
      })
      .finally(() => (go.disabled = false));
  });
  document.body.append(dialog);
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener('close', resolve, { once: true }));
  dialog.remove();
}

/** crypto.randomUUID only exists if the page was loaded over TLS or from this machine. */
export function uuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
