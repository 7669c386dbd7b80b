// Only grpc-js, with messages as bytes: the minimum cost of calls and streams. `/bare/Echo` returns its request, `/bare/Send` sends a
// number of messages of a given size, `/bare/Take` counts what arrives.
import { Server, ServerCredentials } from '@grpc/grpc-js';

const pass = (bytes) => bytes;
const method = (name, streams) => ({
  path: `/bare/${name}`,
  requestStream: false,
  responseStream: false,
  requestSerialize: pass,
  requestDeserialize: pass,
  responseSerialize: pass,
  responseDeserialize: pass,
  ...streams,
});
const server = new Server({ 'grpc.max_receive_message_length': 64 << 20 });
server.addService(
  {
    Echo: method('Echo', {}),
    Send: method('Send', { responseStream: true }),
    Take: method('Take', { requestStream: true }),
  },
  {
    Echo: (call, done) => done(null, call.request),
    async Send(call) {
      const { count, bytes } = JSON.parse(call.request.toString());
      for (let index = 0; index < count; index++)
        // A new buffer each time, as for data read from disk.
        if (!call.write(Buffer.alloc(bytes, index)))
          await new Promise((resolve) => call.once('drain', resolve));
      call.end();
    },
    Take(call, done) {
      let bytes = 0;
      call.on('data', (data) => (bytes += data.length));
      call.on('end', () => done(null, Buffer.from(String(bytes))));
    },
  },
);
server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) => {
  if (error !== null) throw error;
  console.log(JSON.stringify({ grpcAddress: `127.0.0.1:${port}` }));
});
