/** The result of one check. A fault keeps the server from working; a warning does not, but somebody should know. */
export interface Finding {
  name: string;
  state: 'ok' | 'warning' | 'fault';
  message: string;
  /** What to do; null for nothing. */
  cure: string | null;
}

export const ok = (name: string, message: string): Finding => ({ name, state: 'ok', message, cure: null });
export const warning = (name: string, message: string, cure: string): Finding => ({
  ...{ name, state: 'warning', message, cure },
});
export const fault = (name: string, message: string, cure: string): Finding => ({
  ...{ name, state: 'fault', message, cure },
});
