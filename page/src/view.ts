/** A page of the page: what it shows, and how it ends. */
export interface View {
  element: HTMLElement;
  title: string;
  end(): void;
}

/**
 * Does something again and again while the page is seen, a pause after the last time; the result ends it. A page in the background
 * asks for nothing, and asks at once when it is seen again.
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
