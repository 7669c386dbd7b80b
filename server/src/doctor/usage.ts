/** In a file of its own, so that a start of the server does not load the doctor. */
export const doctorUsage = 'relora-server doctor [--json] [--check [OPTIONS OF THE CHECK]]';
