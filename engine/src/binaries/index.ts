// Locates native code without loading any.
export {
  findNativeAddon,
  findNativeFile,
  loadNativeFile,
  nativeChoice,
  NativeUnusable,
  whyUnfit,
  type NativeFile,
  type NativeFileName,
} from './nativeFiles.js';
export {
  isTranslated,
  packageFor,
  packageNamed,
  platformsWithBinaries,
  platformText,
  thisPlatform,
  type Platform,
  type ThisPlatform,
} from './platform.js';
export { compareVersions, glibcNeeded, readBinary, type Binary } from './readBinary.js';
