/** Steps that end what was started, run in reverse order. */
export class Ends {
  private readonly steps: (() => Promise<void> | void)[] = [];

  add(end: () => Promise<void> | void): void {
    this.steps.push(end);
  }

  async endAll(): Promise<void> {
    for (const end of this.steps.splice(0).reverse()) await end();
  }
}
