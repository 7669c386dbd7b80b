/** Apart from the doctor, so that a start of the server loads nothing of it. */
export const doctorUsage = 'relora-server doctor [--json]';
