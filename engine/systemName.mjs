/**
 * Target of native code here, as in the names of packages of binaries: linux-x64, linux-arm64-musl, darwin-arm64. Uses only Node itself.
 */
export function systemName() {
  process.report.excludeNetwork = true; // otherwise it does reverse DNS lookups
  const { glibcVersionRuntime } = process.report.getReport().header;
  const isMusl = process.platform === 'linux' && glibcVersionRuntime === undefined;
  return `${process.platform}-${process.arch}${isMusl ? '-musl' : ''}`;
}
