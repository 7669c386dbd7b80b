/** How to end what was started, the last first. */
export class Ends {
  private readonly steps: (() => Promise<void> | void)[] = [];

  add(end: () => Promise<void> | void): void {
    this.steps.push(end);
  }

  async endAll(): Promise<void> {
    for (const end of this.steps.splice(0).reverse()) await end();
  }
}
