/** Enough to keep a disk busy. */
const atOnceMax = 4;

/** Calls a function with each item, a few at the same time: each call may hold a file and a buffer. After a failure, none is begun. */
export async function fewAtOnce<Item, Result>(
  items: readonly Item[],
  call: (item: Item, index: number) => Promise<Result>,
): Promise<Result[]> {
  const results: Result[] = [];
  let next = 0;
  const work = async () => {
    while (next < items.length) {
      const index = next++;
      try {
        results[index] = await call(items[index]!, index);
      } catch (error) {
        next = items.length;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: atOnceMax }, work));
  return results;
}
