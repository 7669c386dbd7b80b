import { WatchJobRequest, WatchJobResponse } from '@relora/sdk/contract';

const prefixBytes = 5;

/**
 * A watcher of every event on an HTTP/2 session with as little work as possible, so that hundreds of them in one process do not measure
 * themselves: of each chunk that arrives only the oldest event is decoded. With `isRead` false it reads nothing.
 */
export async function rawWatch(session, name, { isRead = true, afterSequence = 0, onFirst = () => {} } = {}) {
  const stream = session.request({
    ':method': 'POST',
    ':path': '/relora.v1.TrainingService/WatchJob',
    'content-type': 'application/grpc',
    te: 'trailers',
  });
  const request = WatchJobRequest.fromPartial({ name, afterSequence, acceptSpans: true });
  stream.end(framed(WatchJobRequest.encode(request).finish()));
  if (!isRead) {
    stream.on('error', () => {});
    return { ages: [], messageCount: 0 };
  }
  const ages = [];
  let messageCount = 0;
  let rest = Buffer.alloc(0);
  for await (const piece of stream) {
    const bytes = rest.length === 0 ? piece : Buffer.concat([rest, piece]);
    let at = 0;
    for (let isOldest = true; bytes.length - at >= prefixBytes;) {
      const end = at + prefixBytes + bytes.readUInt32BE(at + 1);
      if (end > bytes.length) break;
      if (isOldest) {
        isOldest = false;
        const { event } = WatchJobResponse.decode(bytes.subarray(at + prefixBytes, end));
        if (messageCount === 0) onFirst();
        else ages.push(Date.now() - event.time.getTime());
      }
      messageCount++;
      at = end;
    }
    rest = bytes.subarray(at);
  }
  return { ages, messageCount };
}

function framed(message) {
  const prefix = Buffer.alloc(prefixBytes);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
}
