/**
 * The heartbeat of a child process: a byte each interval on a pipe of its own, written by a thread of its own, so that it
 * does not depend on how long the child's native kernels keep its event loop. Nothing is written while the child neither
 * turns its event loop nor computes: a child that hangs is as silent as one that is stopped or gone.
 */
export const heartbeat = {
  /** Place of the pipe among the child's file descriptors, behind its channel. */
  fileDescriptor: 4,
  intervalMs: 1000,
  /** The event loop has turned since the last beat: messages are heard. */
  turned: 't',
  /** It has not, but the process computes. */
  computing: 'c',
} as const;
