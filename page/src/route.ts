const listeners = new Set<() => void>();

/** Opens a path of this page without loading the document again. */
export function open(path: string): void {
  history.pushState(null, '', path);
  for (const listener of listeners) listener();
}

/** Called when another path is shown. Links to paths of this page are opened without loading the document. */
export function onRoute(listener: () => void): void {
  listeners.add(listener);
  addEventListener('popstate', listener);
  document.addEventListener('click', (event) => {
    const link = (event.target as Element).closest?.('a');
    const isPlain =
      event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
    if (
      !link ||
      !isPlain ||
      link.origin !== location.origin ||
      link.target !== '' ||
      link.hasAttribute('download')
    )
      return;
    if (link.pathname.startsWith('/api/') || link.pathname === '/metrics') return;
    event.preventDefault();
    open(link.pathname + link.search);
  });
}
