/** Version of this package, written into checkpoints and artifacts; a test holds it equal to package.json. */
export const engineVersion = '0.1.0';
