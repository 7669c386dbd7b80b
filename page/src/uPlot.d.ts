// The server serves the library under this name beside the modules of the page.
export { default } from 'uplot';
