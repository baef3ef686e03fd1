// One output of a request on a session: an async iterator of what comes, then how it ended.

import { errorOfFinish, TokenwireError } from "./errors.js";
import type { Finish__Output } from "./generated/tokenwire/v1/Finish.js";

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

export class Output implements AsyncIterable<Delta> {
  /** All text that was read. */
  text = "";
  /** How it ended; undefined until then. */
  finish?: Finish__Output;
  #waiting: Delta[] = [];
  #lost?: TokenwireError;
  #wake?: () => void;
  #taken = 0;

  constructor(
    private readonly up: Up,
    private readonly handle: number,
    private readonly window: number | undefined,
  ) {}

  /** Reads what comes; throws a TokenwireError where the stream breaks. Read it once. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Delta> {
    for (;;) {
      const delta = this.#waiting.shift();
      if (delta !== undefined) {
        this.text += delta.text;
        this.#took(delta.numTokens);
        yield delta;
      } else if (this.finish !== undefined) return;
      else if (this.#lost !== undefined) throw this.#lost;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** Reads to the end and returns all text; throws the error that the output, or its stream, ended with. */
  async whole(): Promise<string> {
    for await (const _ of this);
    const error = errorOfFinish(this.finish!.error ?? null);
    if (error !== undefined) throw error;
    return this.text;
  }

  /** Takes the output back. Its end still comes: CANCELLED, if nothing else was first. */
  cancel(): void {
    if (this.finish === undefined) this.up.cancel(this.handle);
  }

  /** Lets the server send more tokens than reading has granted. */
  grant(tokens: number): void {
    if (this.finish === undefined) this.up.grant(this.handle, tokens);
  }

  /** @internal */
  add(delta: Delta): void {
    this.#waiting.push(delta);
    this.#wake?.();
  }

  /** @internal */
  end(finish: Finish__Output): void {
    this.finish = finish;
    this.#wake?.();
  }

  /** @internal */
  lose(error: TokenwireError): void {
    this.#lost = error;
    this.#wake?.();
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
