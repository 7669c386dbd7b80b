import { connect } from 'node:net';

/**
 * The program that mpirun starts for a rank. It only represents the rank: the trainer is a child of the server on its machine and uses the
 * variables by which MPI knows this process. It ends the way its rank does, and if it ends first, the rank is ended.
 */
const [door] = process.argv.slice(2);
const rank = Number(process.env.OMPI_COMM_WORLD_RANK ?? process.env.PMI_RANK ?? process.env.PMI_ID);
const socket = connect(door!);
let answer = '';
socket.setEncoding('utf8');
socket.on('connect', () => socket.write(`${JSON.stringify({ rank, environment: process.env })}\n`));
socket.on('data', (text: string) => (answer += text));
socket.on('error', (error) => {
  console.error(`The server of rank ${rank} cannot be reached: ${error.message}`);
});
socket.on('close', () => {
  if (answer === '') process.exit(1); // the server is gone, or has given up the attempt
  const { isWell, what } = JSON.parse(answer) as { isWell: boolean; what: string };
  if (!isWell) console.error(what);
  process.exit(isWell ? 0 : 1);
});
