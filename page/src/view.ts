/** One of the page's views: its element, and how it ends. */
export interface View {
  element: HTMLElement;
  title: string;
  end(): void;
}

/**
 * Repeats an action while the page is visible, with a pause after each; returns the function that ends it. In the background it pauses, and
 * runs at once when the page becomes visible again.
 */
export function repeat(action: (signal: AbortSignal) => Promise<void>, pauseMs: number): () => void {
  const over = new AbortController();
  const { signal } = over;
  const run = async (): Promise<void> => {
    while (!signal.aborted) {
      if (document.hidden) await seen(signal);
      await action(signal).catch((error: unknown) => {
        if (!signal.aborted) console.warn(error);
      });
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, pauseMs);
        signal.addEventListener('abort', () => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  };
  void run();
  return () => over.abort();
}

async function seen(signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const look = (): void => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener('visibilitychange', look);
      resolve();
    };
    document.addEventListener('visibilitychange', look);
    signal.addEventListener('abort', look);
    look();
  });
}
