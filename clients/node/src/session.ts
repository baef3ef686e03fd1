// Many requests on one stream: docs/session.md of Tokenwire. Goes on with a new stream when the server drains; what was on
// a stream that breaks fails with its status.

import { refuseBadCount, refuseBadRequest, refused } from "./checked.js";
import { TokenwireError } from "./errors.js";
import type { GenerationServiceClient } from "./generated/tokenwire/v1/GenerationService.js";
import type { TextRequest } from "./generated/tokenwire/v1/TextRequest.js";
import { Link } from "./link.js";
import type { Output } from "./output.js";
import { TimeLimit } from "./timelimit.js";

const MAX_CHOICES = 128;

function tooManyChoices(number: number, most: number): TokenwireError {
  return refused("options.num_choices", `${number} is not allowed: at most ${most} outputs may be open here`);
}

function outOfTime(): TokenwireError {
  const message = "the time ran out while the request waited for room on the session";
  return new TokenwireError("DEADLINE_EXCEEDED", message, "DEADLINE_EXCEEDED");
}

export class Session {
  #link?: Link;
  #links = new Set<Link>();
  #open = 0;
  #waiters: (() => void)[] = [];
  #turn: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(
    private readonly stub: GenerationServiceClient,
    private readonly maxOpen: number,
  ) {
    refuseBadCount("max_open", maxOpen);
  }

  /**
   * Sends a request and returns its outputs, one per choice. Waits while there is no room, in order, as long as the request's own
   * time limit says. `credit`: most tokens of an output that are sent before they are read; reading grants more, unless it is 0.
   * Undefined: no limit. Throws a TokenwireError, for what cannot be sent before anything is.
   */
  async submit(request: TextRequest, credit?: number): Promise<Output[]> {
    refuseBadRequest(request);
    if (credit !== undefined) refuseBadCount("credit", credit);
    const number = Math.max(1, request.options?.numChoices ?? 1);
    if (number > MAX_CHOICES) throw tooManyChoices(number, MAX_CHOICES);
    const timeoutMs = request.context?.timeoutMs ?? undefined;
    const limit = new TimeLimit(timeoutMs === undefined ? undefined : Number(timeoutMs));
    const before = this.#turn;
    let pass!: () => void;
    this.#turn = new Promise((resolve) => (pass = resolve));
    try {
      if (!(await limit.within(before))) throw outOfTime();
      return await this.#submit(request, number, credit, limit);
    } finally {
      void before.then(pass);
    }
  }

  /** The whole text of one prompt. */
  async text(prompt: string, request: Omit<TextRequest, "text"> = {}): Promise<string> {
    const [output] = await this.submit({ ...request, text: prompt });
    return output!.whole();
  }

  /** Cancels what is open and ends the streams. */
  close(): void {
    this.#closed = true;
    this.#links.forEach((link) => link.close());
    this.#wakeAll();
  }

  async #submit(request: TextRequest, number: number, credit: number | undefined, limit: TimeLimit): Promise<Output[]> {
    for (;;) {
      if (this.#closed) throw new TokenwireError("UNAVAILABLE", "the session is closed", "SESSION_CLOSED");
      const link = (this.#link ??= this.#connect());
      if (!(await limit.within(link.hello))) throw outOfTime();
      const { maxRequests } = await link.hello;
      const most = Math.min(this.maxOpen, maxRequests || this.maxOpen);
      if (number > most) throw tooManyChoices(number, most);
      if (this.#link !== link) continue;
      if (this.#open + number <= most) {
        const outputs = link.submit(request, number, credit, limit);
        this.#open += number;
        return outputs;
      }
      if (!(await limit.within(new Promise<void>((resolve) => this.#waiters.push(resolve))))) throw outOfTime();
    }
  }

  #connect(): Link {
    const link = new Link(this.stub.Session(), (changed, ended) => {
      this.#open -= ended;
      if (changed.left) {
        if (this.#link === changed) this.#link = undefined;
        if (changed.outputs.size === 0) this.#links.delete(changed);
      }
      this.#wakeAll();
    });
    this.#links.add(link);
    return link;
  }

  #wakeAll(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    waiters.forEach((wake) => wake());
  }
}
