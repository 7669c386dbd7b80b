import { failureOf, messageOf } from './api.js';
import { el } from './element.js';

interface Caller {
  name: string;
  tenant: string;
  role: 'viewer' | 'trainer' | 'operator';
}

let caller: Caller | undefined;

/** Whether the user may start, stop and change jobs. */
export function mayChange(): boolean {
  return caller?.role === 'trainer' || caller?.role === 'operator';
}

/** Asks the server who the user is; undefined if it needs a token first. */
export async function whoAmI(): Promise<Caller | undefined> {
  const response = await fetch('/api/session');
  if (response.status === 401) return undefined;
  if (!response.ok) throw await failureOf(response);
  caller = (await response.json()) as Caller;
  return caller;
}

/** The user, with a way to log out; nothing on a server without a login. */
export function accountLine({ name, tenant, role }: Caller): HTMLElement | null {
  if (name === 'anyone') return null;
  const leave = async (): Promise<void> => {
    await fetch('/api/session', { method: 'DELETE' });
    location.reload();
  };
  return el(
    'div',
    { class: 'account' },
    el('span', {}, name, el('small', {}, ` ${role} in ${tenant}`)),
    el('button', { click: () => void leave() }, 'Log out'),
  );
}

/** The form for entering a token. */
export function loginForm(onLogin: () => void): HTMLElement {
  const token = el('input', {
    type: 'password',
    autocomplete: 'current-password',
    required: true,
    id: 'token',
  });
  const problem = el('p', { class: 'problem', role: 'alert', hidden: true });
  const enter = async (): Promise<void> => {
    const response = await fetch('/api/session', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ token: token.value }),
    });
    if (!response.ok) throw await failureOf(response);
    onLogin();
  };
  return el(
    'form',
    {
      class: 'login',
      submit: (event) => {
        event.preventDefault();
        enter().catch((error: unknown) => {
          problem.hidden = false;
          problem.textContent = messageOf(error);
        });
      },
    },
    el('h1', {}, 'Log in'),
    el('label', { for: 'token' }, 'Token'),
    token,
    el(
      'p',
      { class: 'muted' },
      'An operator makes one: relora-server token add. It stays in a cookie that only this server reads.',
    ),
    problem,
    el('button', { class: 'primary' }, 'Log in'),
  );
}
