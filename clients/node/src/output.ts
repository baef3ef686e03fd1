// One output of a request on a session: an async iterator of what comes, then how it ended.

import { refuseBadCount } from "./checked.js";
import { messageType } from "./contract.js";
import { errorOfFinish, TokenwireError } from "./errors.js";
import type { Finish__Output } from "./generated/tokenwire/v1/Finish.js";
import type { TimeLimit } from "./timelimit.js";

export interface Delta {
  text: string;
  /** Tokens that stand behind it. */
  numTokens: number;
}

/** What an output's stream does for it. */
export interface Up {
  cancel(handle: number): void;
  grant(handle: number, tokens: number): void;
}

/** So much longer than a request's time limit its end is waited for: the server's own may be on its way. */
const LATE_MS = 1000;

export class Output implements AsyncIterable<Delta> {
  /** All text that was read. */
  text = "";
  /** How it ended; undefined until then. */
  finish?: Finish__Output;
  #waiting: Delta[] = [];
  #lost?: TokenwireError;
  #readers: (() => void)[] = []; // that wait
  #taken = 0;
  #came = 0;
  #mayCome: number;

  constructor(
    private readonly up: Up,
    private readonly handle: number,
    private readonly window: number | undefined,
    private readonly limit: TimeLimit,
  ) {
    this.#mayCome = window ?? Infinity;
  }

  /** Reads what comes, as `next` does. Leaving the loop before its end cancels the output. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Delta> {
    try {
      for (let delta = await this.next(); delta !== undefined; delta = await this.next()) yield delta;
    } finally {
      this.cancel();
    }
  }

  /** Waits for more text; undefined after the last. Throws a TokenwireError where the stream breaks. */
  async next(): Promise<Delta | undefined> {
    for (;;) {
      const delta = this.#waiting.shift();
      if (delta !== undefined) {
        this.text += delta.text;
        this.#took(delta.numTokens);
        return delta;
      }
      if (this.finish !== undefined) return undefined;
      if (this.#lost !== undefined) throw this.#lost;
      const arrived = new Promise<void>((resolve) => this.#readers.push(resolve));
      if (!(await this.limit.within(arrived, LATE_MS))) this.#endLate();
    }
  }

  /** Reads to the end and returns all text; throws the error that the output, or its stream, ended with. */
  async whole(): Promise<string> {
    while ((await this.next()) !== undefined);
    const error = errorOfFinish(this.finish!.error ?? null);
    if (error !== undefined) throw error;
    return this.text;
  }

  /** Takes the output back. Its end still comes: CANCELLED, if nothing else was first. */
  cancel(): void {
    if (this.finish === undefined && this.#lost === undefined) this.up.cancel(this.handle);
  }

  /** Lets the server send more tokens than reading has granted. */
  grant(tokens: number): void {
    refuseBadCount("tokens", tokens);
    this.#mayCome += tokens;
    if (this.finish === undefined && this.#lost === undefined) this.up.grant(this.handle, tokens);
  }

  /** @internal Throws a TokenwireError for more tokens than were granted. */
  add(delta: Delta): void {
    this.#came += delta.numTokens;
    this.#mayCome -= delta.numTokens;
    if (this.#mayCome < 0) {
      const message = `handle ${this.handle}: ${-this.#mayCome} tokens came that were not granted`;
      throw new TokenwireError("INTERNAL", message, "CREDIT_EXCEEDED");
    }
    if (this.finish !== undefined) return; // it was over by this side's clock
    this.#waiting.push(delta);
    this.#wake();
  }

  /** @internal */
  end(finish: Finish__Output): void {
    this.finish ??= finish;
    this.#wake();
  }

  /** @internal */
  lose(error: TokenwireError): void {
    this.#lost = error;
    this.#wake();
  }

  #wake(): void {
    const readers = this.#readers;
    this.#readers = [];
    readers.forEach((wake) => wake());
  }

  /** What came stands; the server is told, and frees the place. */
  #endLate(): void {
    if (this.finish !== undefined || this.#lost !== undefined) return;
    this.cancel();
    const type = messageType("tokenwire.v1.Finish");
    const finish = type.create({ handle: this.handle, usage: { completionTokens: this.#came } });
    const whole = type.toObject(finish, { defaults: true, enums: String, longs: String }) as Finish__Output;
    this.end({ ...whole, reason: "FINISH_REASON_DEADLINE", error: null });
  }

  #took(tokens: number): void {
    if (!this.window) return;
    this.#taken += tokens;
    if (this.#taken >= Math.max(1, this.window >> 1)) {
      this.grant(this.#taken);
      this.#taken = 0;
    }
  }
}
