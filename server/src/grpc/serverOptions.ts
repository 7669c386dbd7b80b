import type { ChannelOptions } from '@grpc/grpc-js';
import type { Config } from '../config.js';

/** Silent connections get a ping, so that a watching client whose machine disappeared is noticed. */
const keepaliveMs = 60_000;
const keepaliveTimeoutMs = 20_000;

/** Limits for one connection. */
export function serverOptions(
  config: Pick<
    Config,
    | 'messageBytesMax'
    | 'concurrentStreamsMax'
    | 'connectionIdleSeconds'
    | 'connectionAgeSeconds'
    | 'connectionAgeGraceSeconds'
  >,
): ChannelOptions {
  return {
    'grpc.max_receive_message_length': config.messageBytesMax,
    'grpc.max_send_message_length': config.messageBytesMax,
    'grpc.max_concurrent_streams': config.concurrentStreamsMax,
    'grpc.keepalive_time_ms': keepaliveMs,
    'grpc.keepalive_timeout_ms': keepaliveTimeoutMs,
    'grpc.max_connection_idle_ms': config.connectionIdleSeconds * 1000,
    // Clients then open another connection by themselves, behind a balancer perhaps to a new server.
    ...(config.connectionAgeSeconds === 0
      ? {}
      : {
          'grpc.max_connection_age_ms': config.connectionAgeSeconds * 1000,
          'grpc.max_connection_age_grace_ms': config.connectionAgeGraceSeconds * 1000,
        }),
    'grpc.enable_channelz': 0,
  };
}
