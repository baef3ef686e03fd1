// How long a request may take, from when it was asked for, by this side's clock.

const LONGEST_TIMER_MS = 2 ** 31 - 1;

export class TimeLimit {
  readonly #until: number;

  /** Undefined: no limit. */
  constructor(timeoutMs: number | undefined) {
    this.#until = timeoutMs !== undefined ? performance.now() + timeoutMs : Infinity;
  }

  /** What is left, at least 1; undefined: no limit. */
  leftMs(): number | undefined {
    return this.#until === Infinity ? undefined : Math.max(1, Math.round(this.#until - performance.now()));
  }

  /** Waits for `promise`; false where the time, and so much more, ran out first. Throws as it does. */
  async within(promise: Promise<unknown>, laterMs = 0): Promise<boolean> {
    const left = this.#until + laterMs - performance.now();
    if (left > LONGEST_TIMER_MS) return promise.then(() => true);
    let timer: NodeJS.Timeout | undefined;
    const over = new Promise<boolean>((resolve) => (timer = setTimeout(() => resolve(false), Math.max(0, left))));
    return Promise.race([promise.then(() => true), over]).finally(() => clearTimeout(timer));
  }
}
