// The server serves the library under this name next to the modules of the page.
export { default } from 'uplot';
