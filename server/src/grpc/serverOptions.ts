import type { ChannelOptions } from '@grpc/grpc-js';
import type { Config } from '../config.js';

/** Pings a silent connection, so that a client whose machine vanished is noticed while it watches. */
const keepaliveMs = 60_000;
const keepaliveTimeoutMs = 20_000;

/** What a client may ask of one connection. */
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
    // Clients open another by themselves, behind a balancer maybe to a server that is new.
    ...(config.connectionAgeSeconds === 0
      ? {}
      : {
          'grpc.max_connection_age_ms': config.connectionAgeSeconds * 1000,
          'grpc.max_connection_age_grace_ms': config.connectionAgeGraceSeconds * 1000,
        }),
    'grpc.enable_channelz': 0,
  };
}
