/** What native code here is for, as packages of binaries are named: linux-x64, linux-arm64-musl, darwin-arm64. Uses nothing but Node itself. */
export function systemName() {
  process.report.excludeNetwork = true; // else it looks up names of addresses
  const { glibcVersionRuntime } = process.report.getReport().header;
  const isMusl = process.platform === 'linux' && glibcVersionRuntime === undefined;
  return `${process.platform}-${process.arch}${isMusl ? '-musl' : ''}`;
}
