/**
 * The heartbeat of a child process: a byte per interval on a separate pipe, written by a separate thread, so that it does not depend on how
 * long native kernels block the child's event loop. The beats of a child whose event loop does not turn and that does not compute count for
 * nothing: for the server, a child that hangs is as silent as one that is stopped or gone. They show the child that its server is there.
 */
export const heartbeat = {
  /** File descriptor of the pipe in the child, after that of its channel. */
  fileDescriptor: 4,
  intervalMs: 1000,
  /** The event loop has turned since the last beat: messages are received. */
  turned: 't',
  /** It has not turned, but the process computes. */
  computing: 'c',
  /** Neither. */
  hanging: 'h',
} as const;
